"""One training step after the other on given images, as `resflow.training.loop` does them, to be timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from resflow.data.batches import Batches
from resflow.nets import create
from resflow.training import optimizer
from resflow.training.gradients import gradients

if TYPE_CHECKING:
    from resflow.data.arrays import Split
    from resflow.params import Train

__all__ = ["stepper"]


def stepper(
    structure: str, train: Train, split: Split, device: torch.device, *, classes: int, rank: int = 0, world: int = 1
) -> Callable[[int], None]:
    """A function that does the step of a number: batch, gradients, optimiser; the learning rate stays."""
    channels = split.images.shape[3]
    torch.manual_seed(0)
    net = create(structure, in_channels=channels, num_classes=classes).train()
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    feed = Batches(split, train, **pixels, classes=classes, seed=0, device=device)
    compute, move = gradients(net, train, seed=0, rank=rank, world=world), optimizer.make(net, train)

    def step(number: int) -> None:
        compute.run(partial(feed.get, number // feed.steps, number % feed.steps), number)
        move.step()

    return step
