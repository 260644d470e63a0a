"""What a network costs by its shape alone, counted without computing anything: `cost("resnet20", ...)`."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from resflow.nets import Structure, create

__all__ = ["Cost", "cost"]


class Cost(NamedTuple):
    """As papers count."""

    parameters: int
    """Numbers that training changes: weights, biases, scales and offsets of norms, but not their statistics."""
    macs: int
    """Multiply-accumulates of convolutions and products for one image, forward: no norms, activations or pooling."""


@cache
def cost(structure: str | Structure, *, image_shape: tuple[int, int, int], num_classes: int) -> Cost:
    """The cost for images of (height, width, channels). Raises `NetError` for an unknown name."""
    from torch.utils.flop_counter import FlopCounterMode

    height, width, channels = image_shape
    with torch.device("meta"), torch.no_grad():
        net = create(structure, in_channels=channels, num_classes=num_classes).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, channels, height, width))
    operations = int(counter.get_total_flops())
    return Cost(sum(parameter.numel() for parameter in net.parameters()), operations // 2)  # a product and a sum each
