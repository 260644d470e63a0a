"""The stage `train`: prepared arrays -> a network, its metrics and its learning curves.

A run keeps checkpoints in .resflow/runs, or where RESFLOW_STORAGE says, under the hash of all that its result depends
on: killed anywhere, it goes on from there when it is run again, to the same bits. One process trains in a project at a
time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from resflow.data import arrays
from resflow.errors import DataError, TrainingError
from resflow.files import csv_bytes, explained, json_bytes, write
from resflow.nets import file as model_file
from resflow.nets.file import ModelCard
from resflow.params import Params
from resflow.stages.paths import METRICS, MODEL, PLOTS, PREPARED, SHEET, STATE, TIMINGS
from resflow.training.cluster import Job, fit
from resflow.training.loop import State
from resflow.training.remote import Arrays, Bucket

__all__ = ["run"]

SPLITS = ("train", "validation")
WAIT_SECONDS = 5.0
"""A stage whose `dvc repro` was killed ends a moment after it; whoever starts it again at once waits for that."""


def run(root: Path, params: Params) -> None:
    """Train the network that `params` describe; the best epoch on the validation split is kept.

    Raises `TrainingError` where another process trains here, and when training fails.
    """
    with _alone(root / STATE / "train.lock"):
        _train(root, params)


def _train(root: Path, params: Params) -> None:
    started = time.perf_counter()
    given = _arrays(root)
    job = Job(
        train=params.train,
        checkpoint=params.checkpoint,
        seed=params.seed,
        card=_card(root, params),
        arrays=given,
        runs=_runs(root, os.environ.get("RESFLOW_STORAGE")),
        name=_run_name(root, params, given),
    )
    state, seconds = fit(job, os.environ.get("RAY_ADDRESS"), root / TIMINGS / "live")
    model_file.save(root / MODEL, state.best, job.card)
    _report(root, state, job.card)
    _report_times(root, state, seconds, time.perf_counter() - started)
    _clean(root, job)


def _card(root: Path, params: Params) -> ModelCard:
    try:
        described = json.loads((root / SHEET).read_text())
        height, width, channels = described["image_shape"]
    except OSError as error:
        raise DataError(str(root / SHEET), "is missing", "Run `dvc repro`, which prepares the data first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(str(root / SHEET), f"is damaged ({error})", "Run `dvc repro --force prepare`") from error
    card = ModelCard(
        structure=params.net.name,
        image_shape=(height, width, channels),
        classes=tuple(described["classes"]),
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
    )
    card.network()  # an unknown structure is told before anything starts
    return card


def _arrays(root: Path) -> Arrays:
    folder = (root / PREPARED).resolve()
    paths = [path(folder, split) for split in SPLITS for path in (arrays.images_path, arrays.labels_path)]
    return Arrays(folder=folder, digests={path.name: _digest(path) for path in paths})


def _runs(root: Path, storage: str | None) -> Path | Bucket:
    """Where checkpoints lie: `RESFLOW_STORAGE`, a folder or an `s3://` prefix, or else the project itself."""
    if not (storage or "").startswith("s3://"):
        return (Path(storage) if storage else root / STATE / "runs").resolve()
    return Bucket(
        url=str(storage),
        endpoint=os.environ.get("AWS_ENDPOINT_URL_S3"),
        access_key=os.environ.get("AWS_ACCESS_KEY_ID"),
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        session_token=os.environ.get("AWS_SESSION_TOKEN") or None,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    )


def _run_name(root: Path, params: Params, given: Arrays) -> str:
    """A run is known by what its result depends on: parameters, the data it reads, and the code that is loaded.

    With shards it does not depend on the workers, so that as many as there are go on with it.
    """
    train = params.train.model_dump(exclude={"max_failures"} | ({"num_workers"} if params.train.shards else set()))
    digest = hashlib.sha256(repr((torch.__version__, params.seed, params.net, train, given.key)).encode())
    code = [Path(module.__file__ or "") for name, module in sys.modules.items() if name.startswith("resflow.")]
    for path in (root / SHEET, *sorted(code)):
        digest.update(path.name.encode() + _digest(path).encode())
    return digest.hexdigest()[:16]


def _clean(root: Path, job: Job) -> None:
    """The run is finished: remove its checkpoints, and those of runs given up on this machine."""
    if isinstance(job.runs, Bucket):
        job.runs.folder(job.name).remove()
    else:
        shutil.rmtree(job.runs / job.name, ignore_errors=True)
    shutil.rmtree(root / STATE / "runs", ignore_errors=True)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error.strerror})", "Run `dvc repro`") from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from training here until this one is done or dead. Raises `TrainingError`."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        deadline = time.monotonic() + WAIT_SECONDS
        while not _locked(file.fileno()):
            if time.monotonic() > deadline:
                file.seek(0)
                problem = f"another process trains here: {file.read().strip() or 'unknown'}"
                raise TrainingError(str(path), problem, "Wait for it or end it, then run again")
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees it when its holder dies
    except BlockingIOError:
        return False
    return True


def _report(root: Path, state: State, card: ModelCard) -> None:
    best = asdict(state.best_epoch)
    summary = {
        "parameters": sum(parameter.numel() for parameter in card.network().parameters()),
        "epochs": len(state.history),
        "best_epoch": best.pop("epoch"),
        **best,
    }
    curves = [list(asdict(epoch).values()) for epoch in state.history]
    header = list(asdict(state.history[0]))
    write(root / METRICS / "train.json", json_bytes(summary))
    write(root / PLOTS / "train" / "curves.csv", csv_bytes(header, curves))


def _report_times(root: Path, state: State, seconds: list[float], whole: float) -> None:
    """What depends on time goes where nothing is hashed."""
    images = len(arrays.load(root / PREPARED, "train").labels)
    first = len(state.history) - len(seconds) + 1  # a run that went on has times of its last epochs only
    rates = [(number, second, images / second) for number, second in enumerate(seconds, first)]
    write(root / TIMINGS / "train.csv", csv_bytes(("epoch", "seconds", "images_per_second"), rates))
    write(root / TIMINGS / "train.json", json_bytes({"seconds": whole, "epoch_seconds": seconds}))
