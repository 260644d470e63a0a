"""The card of the network that params.yaml describes, for the data that `prepare` has described."""

from __future__ import annotations

import json
from pathlib import Path

from resflow.errors import DataError
from resflow.nets import altered
from resflow.nets.file import ModelCard
from resflow.params import Net
from resflow.stages.paths import SHEET

__all__ = ["called", "card"]


def card(root: Path, net: Net) -> ModelCard:
    """What a network of `net` takes and gives. Raises `DataError`, or `NetError` for what does not go together."""
    try:
        described = json.loads((root / SHEET).read_text())
        height, width, channels = described["image_shape"]
        classes, mean, std = (tuple(described[key]) for key in ("classes", "mean", "std"))
    except OSError as error:
        raise DataError(str(root / SHEET), "is missing", "Run `dvc repro`, which prepares the data first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(str(root / SHEET), f"is damaged ({error})", "Run `dvc repro --force prepare`") from error
    return ModelCard(
        structure=altered(net.name, net.changes),
        image_shape=(height, width, channels),
        classes=classes,
        mean=mean,
        std=std,
    )


def called(name: str, made: ModelCard) -> str:
    """What to call the network of a card: `name`, unless parameters have changed what that names."""
    return name if isinstance(made.structure, str) else f"{name} (changed)"
