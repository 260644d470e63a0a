"""The card of the network that params.yaml describes, for the data that `prepare` has described."""

from __future__ import annotations

from pathlib import Path

from resflow.data import sheet
from resflow.nets import altered
from resflow.nets.file import ModelCard
from resflow.params import Net
from resflow.stages.paths import SHEET

__all__ = ["called", "card"]


def card(root: Path, net: Net) -> ModelCard:
    """What a network of `net` takes and gives. Raises `DataError`, or `NetError` for what does not go together."""
    inputs = sheet.read(root / SHEET)
    return ModelCard(structure=altered(net.name, net.changes), **inputs._asdict())


def called(name: str, made: ModelCard) -> str:
    """What to call the network of a card: `name`, unless parameters have changed what that names."""
    return name if isinstance(made.structure, str) else f"{name} (changed)"
