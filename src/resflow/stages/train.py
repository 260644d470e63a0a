"""The stage `train`: prepared arrays -> a network, its metrics and its learning curves.

A run keeps checkpoints (`runs`) under the hash of all that its result depends on: killed anywhere, it goes on from
there when it is run again, to the same bits. One process trains in a project at a time, and one a run, also where
projects share RESFLOW_STORAGE.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from resflow.data import arrays, shards
from resflow.data.shards import Shard
from resflow.errors import DataError, ParamsError
from resflow.files import csv_bytes, json_bytes, sha256, write
from resflow.nets import file as model_file
from resflow.nets import weights
from resflow.nets.file import ModelCard
from resflow.params import Params, project_of, read
from resflow.processes import alone
from resflow.stages import runs
from resflow.stages.card import card as describe
from resflow.stages.paths import METRICS, MODEL, PLOTS, PREPARED, SHEET, STATE, TIMINGS
from resflow.training.cluster.trainer import fit
from resflow.training.display import Timing
from resflow.training.job import Job
from resflow.training.loop import State
from resflow.training.remote import Arrays

__all__ = ["job_of", "run"]


def run(root: Path, params: Params) -> None:
    """Train the network that `params` describe; the best epoch on the validation split is kept.

    Raises `TrainingError` where another process trains here or trains this run, and when training fails.
    """
    with alone(root / STATE / "train.lock", "trains here"):
        started = time.perf_counter()
        job = job_of(root, params)
        with runs.held(job.runs, job.name):
            folder = job.folder()
            if made := runs.made(folder):  # whoever has trained again what is recorded wants to see it made
                runs.reopen(folder, anew=made == _recorded(root))
            state, timings = fit(job, os.environ.get("RAY_ADDRESS"), root / TIMINGS / "live")
            model_file.save(root / MODEL, state.best, job.card)
            _report(root, state, job.card)
            _report_times(root, state, timings, time.perf_counter() - started)
            if "DVC_STAGE" in os.environ:
                runs.settle(folder, _md5(root / MODEL))
            runs.clean(job.runs, job.name)


def job_of(root: Path, params: Params) -> Job:
    """The training that `params` describe, of the arrays under `root`. Raises `DataError` or `NetError`."""
    given, card = _arrays(root, params.data.loader), describe(root, params.net)
    card.network()  # a structure that does not fit is told before anything starts
    return Job(
        train=params.train,
        checkpoint=params.checkpoint,
        seed=params.seed,
        card=card,
        initial=_initial(root, params, card),
        arrays=given,
        loader=params.data.loader,
        shuffle_mib=params.data.shuffle_mib,
        runs=runs.place(root, os.environ.get("RESFLOW_STORAGE")),
        name=_run_name(root, params, given),
    )


def _initial(root: Path, params: Params, card: ModelCard) -> dict[str, Tensor]:
    """What `train.init_from` brings; nothing without it."""
    path, sha256 = params.train.init_from, params.train.init_sha256
    return weights.starting(project_of(root) / path, sha256, card) if path and sha256 else {}


def _arrays(root: Path, loader: str) -> Arrays:
    folder = (root / PREPARED).resolve()
    whole = ("validation",) if loader == "stream" else ("train", "validation")
    paths = [path for split in whole for path in arrays.paths(folder, split)]
    streamed: dict[str, Shard] = {}
    if loader == "stream":  # the index holds the digests of the files that it lists
        paths.append(folder / "train" / shards.INDEX)
        index = shards.load(folder / "train")
        shards.check(folder / "train", index)  # to a worker, a lost file is a folder not shared
        streamed = {f"train/{shard.name}": shard for shard in index.shards}
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in paths}
    return Arrays(folder=folder, digests=digests, streamed=streamed)


def _run_name(root: Path, params: Params, given: Arrays) -> str:
    """A run is known by what its result depends on: parameters, the data it reads, and the code that is loaded.

    With shards it does not depend on the workers, so that as many as there are go on with it. The file to start from
    is known by its SHA-256, wherever it lies.
    """
    indifferent = {"max_failures", "init_from"} | ({"num_workers"} if params.train.shards else set())
    train = params.train.model_dump(exclude=indifferent)
    order = params.data.loader, params.data.shuffle_mib
    digest = hashlib.sha256(repr((torch.__version__, params.seed, params.net, train, order, given.key)).encode())
    # with `python -m resflow` the command's own module has another name
    names = [name for name in sys.modules if name.startswith("resflow.") and name != "resflow.__main__"]
    code = [Path(sys.modules[name].__file__ or "") for name in names]
    for path in (root / SHEET, *sorted(code)):
        digest.update(path.name.encode() + _digest(path).encode())
    return digest.hexdigest()[:16]


def _digest(path: Path) -> str:
    if digest := sha256(path):
        return digest
    raise DataError(str(path), "is missing or cannot be read", "Run `dvc repro`")


def _recorded(root: Path) -> str:
    """The MD5 that dvc.lock has of a model: DVC has recorded the training of that one. Empty where it has none."""
    try:
        outs = read(root / "dvc.lock")["stages"]["train"]["outs"]
        return next((str(out["md5"]) for out in outs if out["path"] == str(MODEL)), "")
    except (ParamsError, KeyError, TypeError):  # none, or damaged: `dvc repro` says so
        return ""


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


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


def _report_times(root: Path, state: State, timings: list[Timing], whole: float) -> None:
    """What depends on time goes where nothing is hashed."""
    first = len(state.history) - len(timings) + 1  # a run that went on has times of its last epochs only
    rows = [(number, *timing) for number, timing in enumerate(timings, first)]
    write(root / TIMINGS / "train.csv", csv_bytes(("epoch", "seconds", "images_per_second"), rows))
    seconds = [timing.seconds for timing in timings]
    write(root / TIMINGS / "train.json", json_bytes({"seconds": whole, "epoch_seconds": seconds}))
