"""Networks by name: `create("resnet20", in_channels=3, num_classes=10)`; `names()` lists them.

Knows torch only. Blocks and initialisation are in `resnet`, model files in `file`.
"""

from __future__ import annotations

import difflib

from torch import nn

from resflow.errors import NetError
from resflow.nets.article import ArticleCNN
from resflow.nets.resnet import ResidualNet, Structure

__all__ = ["create", "names"]


def _cifar(blocks: int) -> Structure:
    """He et al. 2016, section 4.2: 6n + 2 layers for 32x32 images."""
    return Structure(blocks=(blocks,) * 3, widths=(16, 32, 64), stem="conv3x3", shortcut="A", pool="average")


STRUCTURES = {
    "resnet8_max": Structure(
        blocks=(1, 1, 1), widths=(16, 48, 96), stem="patch5x5", shortcut="B", pool="max"
    ),
    "resnet8_avg": Structure(
        blocks=(1, 1, 1), widths=(16, 32, 64), stem="patch4x4", shortcut="B", pool="average"
    ),
    "resnet20": _cifar(3),
    "resnet32": _cifar(5),
    "resnet44": _cifar(7),
    "resnet56": _cifar(9),
    "resnet110": _cifar(18),
}  # fmt: skip


def names() -> list[str]:
    """Every name that `create` knows."""
    return [*STRUCTURES, "article_cnn"]


def create(name: str, *, in_channels: int, num_classes: int) -> nn.Module:
    """Build a structure by name, in float32 on the CPU, its weights drawn from torch's global generator.

    The module maps images (N, in_channels, H, W) to logits (N, num_classes). Raises `NetError` for an unknown name.
    """
    if name == "article_cnn":
        return ArticleCNN(in_channels=in_channels, num_classes=num_classes)
    if name not in STRUCTURES:
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4) or names()
        raise NetError("net.name", f"unknown structure {name!r}", f"Nearest known: {', '.join(near)}")
    return ResidualNet(STRUCTURES[name], in_channels=in_channels, num_classes=num_classes)
