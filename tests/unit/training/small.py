"""A small run that all tests of training share: images of 12 x 12 pixels, three classes, four steps an epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resflow.data.arrays import Split
from resflow.data.batches import to_input
from resflow.nets import Structure, create
from resflow.nets.file import ModelCard
from resflow.params import Train
from resflow.training import loop
from resflow.training.loop import Keeper, State

CARD = ModelCard(structure="resnet8_avg", image_shape=(12, 12, 1), classes=("a", "b", "c"), mean=(0.3,), std=(0.3,))
CPU = torch.device("cpu")
STEPS = 4
"""Of an epoch."""
SETTINGS = {
    "init_from": None,
    "init_sha256": None,
    "epochs": 3,
    "batch_size": 16,
    "accumulate": 1,
    "optimizer": "sgd",
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "clip_norm": 0.0,
    "schedule": "triangular",
    "warmup_fraction": 0.25,
    "label_smoothing": 0.1,
    "ema": 0.0,
    "shift": 0,
    "flip": False,
    "rotate": 0.0,
    "scale": 0.0,
    "erase": 0.0,
    "mixup": 0.0,
    "adversarial": {"epsilon": 0.0, "steps": 2, "step_size": 0.6, "warmup_fraction": 0.5},
    "precision": "float32",
    "compile": False,
    "device": "cpu",
    "num_workers": 1,
    "shards": 0,
    "threads": 1,
    "max_failures": 0,
}


def settings(**changes: Any) -> Train:
    """The parameters of a small run, all augmentation off."""
    return Train.model_validate({**SETTINGS, **changes})


def split(count: int, seed: int = 0) -> Split:
    """Images whose label is the third that is bright."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, count, dtype=np.uint8)
    images = draw.integers(0, 80, (count, 12, 12, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 150
    return Split(images, labels)


TRAINING, VALIDATION = split(70), split(23, 1)


class Every:
    """Keeps the state of every step."""

    def __init__(self) -> None:
        self.states: list[State] = []

    def due_by_steps(self, step: int) -> bool:
        return True

    def due_by_time(self) -> bool:
        return False

    def stops(self) -> bool:
        return False

    def keep(self, state: State) -> None:
        self.states.append(state)


class Always(Every):
    """Keeps one also between batches of validation: says that the run ends early, and lets it go on."""

    def stops(self) -> bool:
        return True


def run(
    train: Train,
    *,
    structure: str | Structure = "resnet8_avg",
    net: nn.Module | None = None,
    state: State | None = None,
    seed: int = 0,
    keeper: Keeper | None = None,
    validation: Split = VALIDATION,
    rank: int = 0,
    world: int = 1,
    on_step: Callable[[int, Tensor], None] = lambda step, sums: None,
    on_epoch: Callable[[State], None] = lambda state: None,
) -> State:
    """Train as a worker does. A run that goes on starts from other weights, so that only `state` can bring its own."""
    loop.prepare_torch(seed if state is None else 99, train.threads)
    return loop.train(
        net or create(structure, in_channels=1, num_classes=3),
        TRAINING,
        validation,
        CARD,
        train,
        seed=seed,
        device=CPU,
        state=state,
        keeper=keeper or loop.KeepsNothing(),
        rank=rank,
        world=world,
        on_step=on_step,
        on_epoch=on_epoch,
    )


def differences(one: Any, other: Any, where: str = "state") -> list[str]:
    """Where two states, or parts of them, are not the same bits."""
    if isinstance(one, State) and isinstance(other, State):
        return differences(vars(one), vars(other), where)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys"]
        return [found for key in one for found in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for number, (a, b) in pairs for found in differences(a, b, f"{where}[{number}]")]
    return [] if one == other else [where]


def accuracy(weights: dict[str, Tensor], validation: Split = VALIDATION, structure: str = "resnet8_avg") -> float:
    """Share of the validation images that a network with these weights gets right."""
    net = create(structure, in_channels=1, num_classes=3)
    net.load_state_dict(weights)
    with torch.inference_mode():
        answers = net.eval()(to_input(validation.images, CARD.mean, CARD.std, CPU)).argmax(1).numpy()
    return float((answers == validation.labels).mean())
