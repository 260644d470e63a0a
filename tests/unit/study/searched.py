"""A small search that the tests of the study share: images of 12 x 12 pixels, three classes, tiny networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from resflow import params
from resflow.data import arrays
from resflow.files import sha256, write_together
from resflow.params import Params
from resflow.stages import runs
from resflow.study.plan import Plan
from resflow.study.trial import Training
from resflow.training.job import Job
from resflow.training.remote import Arrays
from tests.unit.training.small import CARD, SETTINGS, TRAINING, VALIDATION

FILE = Path(__file__).parents[3] / "params.yaml"
SPACE: dict[str, Any] = {
    "net.blocks": [[1, 1], [1, 1, 1]],
    "net.widths": [[4, 8], [4, 8, 8]],
    "train.lr": {"low": 0.05, "high": 0.2, "log": True},
}
POINT = {"net.blocks": [1, 1], "net.widths": [4, 8], "train.lr": 0.1}
BUDGETS = {"max_parameters": None, "max_macs": None, "max_latency_ms": None, "max_seconds": None}


def settings(**search: Any) -> Params:
    """Parameters of a small search."""
    asked = {"space": SPACE, "epochs": 2, "trials": 3, "final_seeds": 2, **BUDGETS, **search}
    tree = params.override(
        params.read(FILE), {"net": {"name": "resnet8_avg"}, "train": SETTINGS, "search": asked}, "here"
    )
    return params.parse(tree, "here")


def plan(root: Path, **search: Any) -> Plan:
    """A search under `root`, with its arrays."""
    folder = root / "prepared"
    writes: dict[Path, Callable[[Any], object]] = {}
    for name, split in {"train": TRAINING, "validation": VALIDATION, "test": VALIDATION}.items():
        writes[arrays.images_path(folder, name)] = arrays.writer(split.images)
        writes[arrays.labels_path(folder, name)] = arrays.writer(split.labels)
    write_together(writes)
    asked = settings(**search)
    base = Job(
        train=asked.train,
        checkpoint=asked.checkpoint,
        seed=asked.seed,
        card=CARD,
        initial={},
        arrays=Arrays(folder=folder, digests={str(path.relative_to(folder)): sha256(path) or "" for path in writes}),
        loader="memory",
        shuffle_mib=1,
        runs=root / "runs",
        name="base",
    )
    return Plan(params=asked, base=base, folder=root / "study", address=None, held=partial(runs.held, base.runs))


def record(of: Plan, number: int, **changes: Any) -> Training:
    """The record of a trial that ended, at another rate for each number."""
    point = {**POINT, "train.lr": round(0.1 + number / 1000, 3)}
    made = Training(
        name=of.job(point).name,
        number=number,
        point=point,
        seed=0,
        epochs=2,
        rule=of.rule,
        status="done",
        accuracies=(0.5, 0.9),
        seconds=10.0,
        parameters=1000,
        macs=2000,
        latency_ms=1.0,
    )
    made = replace(made, **changes)
    made.keep(of.trials)
    return made
