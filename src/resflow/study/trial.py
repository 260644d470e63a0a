"""One training of a study: what it depends on, the training itself, and what is kept of it.

    job = job_of(base, params, {"net.block": "basic"}, seed=0, epochs=2)
    outcome = train(job, on_epoch)

A training is known by the hash of all that its result depends on, under which its record is kept: it is found again, by
any search, and never run twice. It trains with the loop of the stage `train`, keeps checkpoints as that does, and goes
on from the last one. Where trainings run is `search`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter
from torch import Tensor

from resflow import compute
from resflow.data import arrays
from resflow.errors import DataError, TrainingError
from resflow.files import write
from resflow.params import Params
from resflow.study import space
from resflow.study.record import checked, code
from resflow.study.space import Point
from resflow.training import checkpoint, loop
from resflow.training.cluster.worker import local_arrays
from resflow.training.job import Job

__all__ = ["ENDS", "OPEN", "Outcome", "Status", "Training", "job_of", "read", "train"]

Status = Literal["running", "done", "stopped", "diverged", "slow", "memory"]
"""`stopped` early by ASHA; `slow` is above `search.max_seconds`; `memory` of the GPU or machine did not do."""
ENDS: dict[Status, str] = {
    "done": "done",
    "stopped": "stopped early",
    "diverged": "diverged",
    "slow": "above search.max_seconds",
    "memory": "out of memory",
}
"""Each way to end in words."""
OPEN: tuple[Status, ...] = ("running", "memory")
"""What the next search trains, or trains again: how much memory there is depends on the machine and on what else runs
there, and Ray kills the newest worker, not the largest."""
CODE = ("compute.py", "data/*.py", "nets/*.py", "training/**/*.py")
"""Modules whose code decides what a training gives."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is kept of a training, as JSON."""

    name: str
    """The hash of what it depends on."""
    number: int
    """In the order in which they were begun, from 1."""
    point: Point
    seed: int
    epochs: int
    """That it was to have."""
    rule: tuple[int, int]
    """`grace_epochs` and `reduction`, by which it may have been stopped."""
    status: Status
    accuracies: tuple[float, ...]
    """On the validation split, after each epoch."""
    seconds: float | None
    """Of training; None where that went on after a kill with nothing left to do."""
    parameters: int
    macs: int
    latency_ms: float

    @property
    def accuracy(self) -> float:
        """Of the epoch that validates best, whose weights are kept; 0 where there is none."""
        return max(self.accuracies, default=0.0)

    def keep(self, folder: Path) -> None:
        """Write it. Raises `SetupError`."""
        # not files.json_bytes, which rounds: a point must be found again by its exact values
        write(folder / f"{self.name}.json", (json.dumps(asdict(self), indent=2) + "\n").encode())


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended."""

    status: Status
    accuracies: tuple[float, ...]
    seconds: float | None
    weights: dict[str, Tensor]
    """Of the best epoch."""
    reason: str = ""
    """Why it diverged, or what memory was asked for."""


def read(folder: Path) -> list[Training]:
    """All records there, in the order in which they were begun. Raises `DataError`."""
    kind, found = TypeAdapter(Training), []
    for path in folder.glob("*.json"):
        problem, mend = "is no record of a training", "Remove it, whose training then runs again"
        try:
            found.append(checked(kind, path.read_text(), str(path), problem, mend))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(str(path), f"{problem} ({error})", mend) from error
    return sorted(found, key=lambda record: (record.number, record.name))


def job_of(base: Job, params: Params, point: Point, *, seed: int, epochs: int) -> Job:
    """The training at a point: `base`, the job of the stage `train`, with the point's network and parameters.

    Raises `ParamsError` or `NetError` for what does not go together.
    """
    made = space.resolved(params, point, seed=seed, epochs=epochs)
    card = space.network(made, base.card)
    inputs = (
        torch.__version__,
        seed,
        card,
        made.train.model_dump(exclude={"max_failures"}),
        base.arrays.key,
        code(CODE),
    )
    name = hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]
    return replace(base, train=made.train, seed=seed, card=card, initial={}, name=name)


def train(job: Job, on_epoch: Callable[[dict[str, Any]], None], max_seconds: float | None = None) -> Outcome:
    """Train, going on from the last checkpoint. `on_epoch` gets the figures of each epoch, also of those before it.

    Raises `ResflowError` but for divergence and a lack of memory, which are outcomes.
    """
    loop.prepare_torch(job.seed, job.train.threads)
    device, place, folder = torch.device(compute.device(job.train.device)), local_arrays(job), job.folder()
    state = checkpoint.latest(folder, device.type) or loop.State()
    keeper = checkpoint.Keeper(folder, device=device.type, steps=job.checkpoint.steps, seconds=job.checkpoint.seconds)
    accuracies: list[float] = []
    spent: list[float] = []
    started = time.perf_counter()

    def estimate() -> float | None:
        """Of the whole training, from the epochs seen here."""
        return sum(spent) / len(spent) * job.train.epochs if spent else None

    def tell(state: loop.State) -> None:
        nonlocal started
        spent.append(time.perf_counter() - started)
        accuracies.append(state.history[-1].validation_accuracy)
        if max_seconds is not None and (estimate() or 0.0) > max_seconds:
            raise _TooSlow
        on_epoch(_figures(accuracies, estimate()))
        started = time.perf_counter()

    for epoch in state.history:
        accuracies.append(epoch.validation_accuracy)
        on_epoch(_figures(accuracies, None))
    status: Status = "done"
    reason = ""
    with keeper:
        try:
            state = loop.train(
                job.card.network(),
                arrays.load(place, "train"),
                arrays.load(place, "validation"),
                job.card,
                job.train,
                seed=job.seed,
                device=device,
                state=state,
                keeper=keeper,
                on_epoch=tell,
            )
        except _TooSlow:
            status = "slow"
        except TrainingError as error:
            if error.where != "train":  # such as a batch that is larger than the split
                raise
            status, reason = "diverged", error.problem
        except (RuntimeError, MemoryError) as error:
            if not compute.is_out_of_memory(error):
                raise
            status, reason = "memory", str(error)
    return Outcome(status=status, accuracies=tuple(accuracies), seconds=estimate(), weights=state.best, reason=reason)


class _TooSlow(Exception):
    """The training takes longer than it may."""


def _figures(accuracies: list[float], seconds: float | None) -> dict[str, Any]:
    return {
        "epoch": len(accuracies),
        "accuracy": max(accuracies),
        "accuracies": tuple(accuracies),
        "seconds": seconds,
    }
