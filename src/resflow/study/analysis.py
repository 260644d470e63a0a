"""Analyse several structures side by side: `analyse({"resnet20": card}, train, settings)`.

The figures are those of `size` and `speed`; `tables` and `picture` show what comes of it.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from resflow import compute
from resflow.study import speed
from resflow.study.size import Layer, Size, layers, size
from resflow.study.speed import Speed

if TYPE_CHECKING:
    from resflow.nets.file import ModelCard
    from resflow.params import Analyze, Train

__all__ = ["Analysis", "Machine", "Report", "analyse"]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One structure."""

    image_shape: tuple[int, int, int]
    """Height, width and channels of the images that all figures are for."""
    classes: int
    size: Size
    layers: tuple[Layer, ...]
    speed: Speed | None
    """None where nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What figures were measured on, and how."""

    device: str
    torch: str
    threads: int
    precision: str
    """Of training."""
    optimizer: str
    batch_size: int
    """Of training."""
    peak_flops: float
    """A second, of a product of matrices in that precision."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Structures by name."""

    structures: Mapping[str, Analysis]
    machine: Machine | None
    """None where nothing was measured."""

    def json(self, *, with_layers: bool = False) -> dict[str, Any]:
        """All figures, by the names of their fields."""
        machine = asdict(self.machine) if self.machine else None
        return {"machine": machine, "structures": {name: self._json(name, with_layers) for name in self.structures}}

    def share_of_peak(self, name: str) -> float:
        """What training reaches of what the machine could do."""
        measured = self.structures[name].speed
        assert measured, "nothing was measured"
        assert self.machine
        return measured.training_flops / self.machine.peak_flops

    def _json(self, name: str, with_layers: bool) -> dict[str, Any]:
        one = self.structures[name]
        told: dict[str, Any] = {"image_shape": list(one.image_shape), "classes": one.classes, **one.size._asdict()}
        if with_layers:
            told["layers"] = [layer._asdict() for layer in one.layers]
        if one.speed:
            told |= asdict(one.speed) | {"share_of_peak": self.share_of_peak(name)}
            told["parts"] = [part._asdict() for part in one.speed.parts]
        return told


def analyse(cards: Mapping[str, ModelCard], train: Train, settings: Analyze) -> Report:
    """Count, and unless `settings.seconds` is 0 measure, the network of each card.

    Raises `NetError` for a structure that is unknown or does not fit, before anything is measured, and `SetupError`
    where memory does not suffice.
    """
    sizes = {name: size(card) for name, card in cards.items()}
    found = {}
    for name, card in cards.items():
        found[name] = Analysis(
            image_shape=card.image_shape,
            classes=len(card.classes),
            size=sizes[name],
            layers=layers(card),
            speed=speed.measure(card, train, settings, name) if settings.seconds else None,
        )
    return Report(structures=found, machine=_machine(train) if settings.seconds else None)


def _machine(train: Train) -> Machine:
    device = compute.device(train.device)
    return Machine(
        device=torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})",
        torch=torch.__version__,
        threads=train.threads,
        precision=train.precision,
        optimizer=train.optimizer,
        batch_size=train.batch_size,
        peak_flops=speed.machine_peak(train),
    )
