"""A trained network as one `.safetensors` file: weights, and in its metadata all that is needed to use them.

The same network gives the same bytes: tensors in the order of their names, metadata in one canonical JSON string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resflow.errors import DataError, NetError
from resflow.files import write
from resflow.nets import Structure, check_fits, create

__all__ = ["ModelCard", "content", "load", "renamed", "save"]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a network takes and gives."""

    structure: str | Structure
    """Its name in `resflow.nets`, or all that tells it from others."""
    image_shape: tuple[int, int, int]
    """Height, width and channels of an image."""
    classes: tuple[str, ...]
    """Name of each class, in the order of the logits."""
    mean: tuple[float, ...]
    """Mean of each channel of the training images, as fractions of full intensity."""
    std: tuple[float, ...]
    """Standard deviation of each channel, likewise."""

    def network(self) -> nn.Module:
        """A new network of this structure, with untrained weights. Raises `NetError` for images that are too small."""
        check_fits(self.structure, *self.image_shape[:2])
        return create(self.structure, in_channels=self.image_shape[2], num_classes=len(self.classes))


def save(path: Path, weights: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write weights (a state dict) and card to `path`, which appears whole or not at all."""
    write(path, content(weights, card))


def content(weights: Mapping[str, Tensor], card: ModelCard) -> bytes:
    """The bytes of the file."""
    from safetensors.torch import save as serialise

    tensors = {name: weights[name].detach().to("cpu").contiguous() for name in sorted(weights)}
    return serialise(tensors, metadata={"resflow": json.dumps(asdict(card), sort_keys=True)})


def load(path: Path) -> tuple[nn.Module, ModelCard]:
    """Read a network, in evaluation mode and channels-last, and its card. Raises `DataError`."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DataError(str(path), "there is no such model", "Train one with `dvc repro`, or `resflow models pull` one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise DataError(
            str(path), f"is not a whole safetensors file ({error})", "Restore it with `dvc checkout`"
        ) from error
    try:
        fields: dict[str, Any] = json.loads(metadata["resflow"])
        if isinstance(fields["structure"], dict):
            fields["structure"] = Structure(**_tuples(fields["structure"]))
        card = ModelCard(**_tuples(fields))
        net = card.network()
        net.load_state_dict(renamed(weights))
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, NetError) as error:
        reason = str(error).strip().partition("\n")[0]
        problem = f"is not a model of this resflow: its metadata or its weights do not fit ({reason})"
        raise DataError(str(path), problem, "Give a model that this version of resflow has trained") from error
    return net.eval().to(memory_format=torch.channels_last), card  # type: ignore[call-overload]


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of today: older files count stages from 0, as `stages.0`, where torchvision has `layer1`."""
    return {re.sub(r"^stages\.(\d+)", lambda found: f"layer{int(found[1]) + 1}", key): weights[key] for key in weights}


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
