"""Networks by name: `create("resnet20", in_channels=3, num_classes=10)`; `names()` lists them, `altered` changes one.

Knows torch only, and that not before a network is built. What tells structures apart is `structure`, those with a name
are in `table`, `resnet` builds them, `file` has model files, `weights` those to start from.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from resflow.errors import NetError
from resflow.nets.structure import Structure
from resflow.nets.table import STRUCTURES

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Structure", "altered", "check_fits", "create", "names"]

ARTICLE = "article_cnn"
ARTICLE_SIDE = 8
"""Its three poolings halve."""


def names() -> list[str]:
    """Every name that `create` knows."""
    return [*STRUCTURES, ARTICLE]


def create(structure: str | Structure, *, in_channels: int, num_classes: int) -> nn.Module:
    """Build a structure, in float32 on the CPU, its weights drawn from torch's global generator.

    The module maps images (N, in_channels, H, W) to logits (N, num_classes). Raises `NetError` for an unknown name.
    """
    # both, whichever is asked for: dvc.yaml says what a stage loads
    from resflow.nets.article import ArticleCNN
    from resflow.nets.resnet import ResidualNet

    if structure == ARTICLE:
        return ArticleCNN(in_channels=in_channels, num_classes=num_classes)
    return ResidualNet(find(structure), in_channels=in_channels, num_classes=num_classes)


def altered(name: str, changes: Mapping[str, Any]) -> str | Structure:
    """The structure of that name with some fields changed; its name alone where that changes nothing.

    Raises `NetError` for an unknown name, or for what does not go together.
    """
    if name == ARTICLE:
        if changes:
            mend = "Set it to null, or name a residual network"
            raise NetError(f"net.{min(changes)}", f"is given, but {ARTICLE} has no such part", mend)
        return name
    made = replace(find(name), **changes)
    return name if made == STRUCTURES[name] else made


def check_fits(structure: str | Structure, height: int, width: int) -> None:
    """Raise `NetError` where images of so many pixels are too small for the strides of a structure."""
    if structure != ARTICLE:
        name = structure if isinstance(structure, str) else "the structure"
        find(structure).check_fits(height, width, name)
    elif min(height, width) < ARTICLE_SIDE:
        problem = f"{ARTICLE} halves images 3 times, which {height}x{width} ones do not bear"
        raise NetError("net.name", problem, f"Give it at least {ARTICLE_SIDE}x{ARTICLE_SIDE} pixels")


def find(structure: str | Structure) -> Structure:
    """What a name stands for, but for the article's network. Raises `NetError`."""
    if isinstance(structure, Structure):
        return structure
    if structure not in STRUCTURES:
        near = difflib.get_close_matches(structure, names(), n=3, cutoff=0.4) or names()
        raise NetError("net.name", f"unknown structure {structure!r}", f"Nearest known: {', '.join(near)}")
    return STRUCTURES[structure]
