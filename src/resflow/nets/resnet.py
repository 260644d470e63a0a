"""Residual networks, built from a `Structure`.

The block is that of He et al. 2016, "Deep Residual Learning for Image Recognition" (figure 2), with batch
normalisation; the shortcuts are its options A and B (section 3.3). Names are given in `resflow.nets`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BasicBlock", "ResidualNet", "Structure"]


STEMS = {"conv3x3": (3, 1, 1), "patch4x4": (4, 2, 1), "patch5x5": (5, 2, 0)}
"""Kernel, stride and padding of each."""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What tells one residual network from another."""

    blocks: tuple[int, ...]
    """Blocks in each stage; every stage but the first halves height and width."""
    widths: tuple[int, ...]
    """Channels of each stage."""
    stem: Literal["conv3x3", "patch4x4", "patch5x5"]
    """`conv3x3` keeps the size, `patch4x4` has stride 2 and halves it, `patch5x5` too, without padding:
    for images whose border is blank. docs/log.md has what that saves."""
    shortcut: Literal["A", "B"]
    """Where sizes differ: A subsamples and pads with zeros, B is a strided 1x1 convolution."""
    pool: Literal["average", "max"]
    """Global pooling before the classifier."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, C, H, W) -> (N, width, H / stride, W / stride)."""

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, width - in_channels
        self.downsample: nn.Module | None = None
        if shortcut == "B" and (stride != 1 or self.padding):
            conv = nn.Conv2d(in_channels, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self._shortcut(x), inplace=True)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            return self.downsample(x)  # type: ignore[no-any-return]  # modules are untyped callables
        if self.stride == 1 and not self.padding:
            return x
        before = self.padding // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.padding - before))


class ResidualNet(nn.Module):
    """A residual classifier: float32 (N, in_channels, H, W) -> logits (N, num_classes)."""

    def __init__(self, structure: Structure, *, in_channels: int, num_classes: int) -> None:
        super().__init__()
        width = structure.widths[0]
        kernel, stride, padding = STEMS[structure.stem]
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages = []
        for number, (count, wide) in enumerate(zip(structure.blocks, structure.widths, strict=True)):
            strides = [1 if number == 0 else 2] + [1] * (count - 1)
            inputs = [width] + [wide] * (count - 1)
            pairs = zip(inputs, strides, strict=True)
            stages.append(nn.Sequential(*(BasicBlock(c, wide, s, structure.shortcut) for c, s in pairs)))
            width = wide
        self.stages = nn.Sequential(*stages)
        self.pool = structure.pool
        self.fc = nn.Linear(width, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.bn1(self.conv1(x)), inplace=True))
        x = x.amax((2, 3)) if self.pool == "max" else x.mean((2, 3))
        return self.fc(x)  # type: ignore[no-any-return]  # modules are untyped callables


def _initialise(module: nn.Module) -> None:
    """He et al. 2015, "Delving Deep into Rectifiers", equation 14 (fan-out); norms start as the identity."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        torch.nn.init.zeros_(module.bias)
