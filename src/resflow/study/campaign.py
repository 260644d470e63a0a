"""Run all trials of the study that have no result yet, in an order that makes stopping cheap.

    study(root, root / "docs/study", chosen(params, []), ["resflow", "study"], report_only=False, say=print)

Seeds come round one after the other, so that a study which is stopped has answered every question, if with fewer runs.
What it will take is said beforehand, from the speed of each structure. The results are `record`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from resflow.data import arrays, sheet
from resflow.files import sha256
from resflow.processes import alone
from resflow.study.experiments import Experiment, Trial
from resflow.study.measurement import Ground, check, perform, step_seconds
from resflow.study.record import Record, Records, code, digest, machine

__all__ = ["Campaign", "data_digest", "ground", "study"]

RESULTS = "results.jsonl"
PREPARED, SHEET = Path("data/prepared"), Path("data/datasheet.json")
"""What the stage `prepare` made, within the project."""

TRAINING = (
    "compute.py",
    "nets/*.py",
    "data/arrays.py",
    "data/augment.py",
    "data/batches.py",
    "data/idx.py",
    "evaluation/inference.py",
    "evaluation/metrics.py",
    "training/adversary.py",
    "training/gradients.py",
    "training/loop.py",
    "training/optimizer.py",
    "study/measurement.py",
)
CODE = {"train": TRAINING, "speed": TRAINING, "workers": (*TRAINING, "data/*.py", "training/**/*.py")}
"""What results depend on, by the kind of trial; what is asked is in the key as it is, and how they are shown changes
none."""
CALIBRATION_STEPS = 6
"""The first two or three are slow: memory is taken, and kernels are chosen."""
FORWARD_SHARE = 0.3
"""What measuring an image takes of training it: one pass of about three, and all images are read."""
RAY_SECONDS = 30.0
"""What starting workers takes; docs/benchmarks.md."""


def study(
    root: Path,
    folder: Path,
    experiments: Sequence[Experiment],
    command: Sequence[str],
    *,
    report_only: bool,
    say: Callable[[str], None],
) -> Path:
    """Run what has no result yet, unless only a report is wanted, and write the page; returns where it lies.

    `command` is what the page names as its own. Raises `ResflowError`.
    """
    from resflow.study.report import write_report

    if report_only:
        return write_report(folder, experiments, Records(folder / RESULTS), command)
    with alone(folder / ".lock", "runs a study into this folder", wait=0):
        records = Records(folder / RESULTS)
        given = ground(root / PREPARED, root / SHEET)
        Campaign(experiments, records, given, data_digest(root / PREPARED, given)).run(say)
        return write_report(folder, experiments, records, command)


class Campaign:
    """The trials of some experiments, on some data, with their results."""

    def __init__(self, experiments: Iterable[Experiment], records: Records, given: Ground, data: str) -> None:
        """Raises `NetError` or `DataError` for a trial that cannot run."""
        self._records, self._ground, self._data = records, given, data
        trials = {digest(trial.asked): trial for experiment in experiments for trial in _all(experiment)}
        self._trials = sorted(trials.values(), key=lambda trial: trial.seed)
        for trial in self._trials:
            check(trial, given)

    def key(self, trial: Trial) -> str:
        """Of its result: errors are those of a release of torch, a speed is one of this machine, with this GPU."""
        if trial.kind == "train":
            # without `+cpu` or `+cu126`: another build of a release rounds otherwise, as does another processor or GPU,
            # which are not in the key either; another release may change what an optimiser or a layer does
            made_by = f"torch {version('torch').partition('+')[0]}"
        else:
            made_by = machine("torch", device=trial.train["device"])
        return digest([code(CODE[trial.kind]), self._data, trial.asked, made_by])

    @property
    def pending(self) -> list[Trial]:
        """Those without a result of this code, torch and data, in the order in which they run."""
        return [trial for trial in self._trials if not self._records.done(self.key(trial))]

    def run(self, say: Callable[[str], None]) -> None:
        """Run what is pending; each result is recorded at once. Raises `ResflowError`."""
        pending = self.pending
        say(f"{len(self._trials)} trials, {len(self._trials) - len(pending)} of which are recorded")
        if not pending:
            return
        foreseen = self._foreseen(pending, say)
        left, factor = sum(foreseen), 1.0
        say(f"{len(pending)} to run: about {_minutes(left)} on this machine")
        spent = expected = 0.0
        for number, (trial, seconds) in enumerate(zip(pending, foreseen, strict=True), 1):
            took, told = self._one(trial)
            spent, expected, left = spent + took, expected + seconds, left - seconds
            factor = spent / expected if expected else 1.0
            say(f"[{number}/{len(pending)}] {told} ({took:.1f} s; {_minutes(max(0.0, left) * factor)} left)")

    def _one(self, trial: Trial) -> tuple[float, str]:
        started = time.perf_counter()
        result = perform(trial, self._ground)
        seconds = time.perf_counter() - started
        record = Record(
            key=self.key(trial),
            code=code(CODE[trial.kind]),
            data=self._data,
            asked=trial.asked,
            result=result,
            seconds=round(seconds, 2),
            machine=machine("torch", device=trial.train["device"]),
            load=round(os.getloadavg()[0], 1),
        )
        self._records.add(record)
        if "images_per_second" in result:
            told = f"{result['images_per_second']:,.0f} images/s"
        elif "diverged" in result:
            told = "diverged"
        else:
            told = f"error {result['train_error']:.2%} in training, {result['validation_error']:.2%} in validation"
        return seconds, f"{_named(trial)}: {told}"

    def _foreseen(self, pending: list[Trial], say: Callable[[str], None]) -> list[float]:
        """Seconds that each will take, from runs of the same structure here, or else from a few of its steps."""
        images = self._known()
        new = {_kind(trial.asked): trial for trial in pending if _kind(trial.asked) not in images}
        if new:
            say(f"calibrating: {CALIBRATION_STEPS} steps of each of {len(new)} structures")
        for kind, trial in new.items():
            one = replace(trial, train={**trial.train, "num_workers": 1})
            images[kind] = step_seconds(one, self._ground, CALIBRATION_STEPS) / trial.train["batch_size"]
        workers = [RAY_SECONDS if trial.train["num_workers"] != 1 else 0.0 for trial in pending]
        counts = [self._images(trial.asked) for trial in pending]
        kinds = [_kind(trial.asked) for trial in pending]
        return [more + images[kind] * count for kind, count, more in zip(kinds, counts, workers, strict=True)]

    def _known(self) -> dict[str, float]:
        """Seconds an image of the trainings that this machine has done, by kind; the newest counts."""
        here = {device: machine("torch", device=device) for device in {each.train["device"] for each in self._trials}}
        return {
            _kind(record.asked): record.seconds / self._images(record.asked)
            for record in self._records
            if record.asked["kind"] == "train" and record.machine == here.get(record.asked["train"]["device"])
        }

    def _images(self, asked: dict[str, Any]) -> float:
        """What a trial takes, in images trained on."""
        count = asked["images"] * asked["train"]["epochs"]
        if asked["kind"] == "train":
            measured = sum(len(split.labels) for split in (self._ground.validation, self._ground.test))
            count += FORWARD_SHARE * (measured + asked["images"])
        return float(count)


def ground(prepared: Path, described: Path) -> Ground:
    """The prepared arrays in memory, and what their sheet says. Raises `DataError`."""
    inputs = sheet.read(described)
    splits = {name: arrays.load(prepared, split) for name, split in _SPLITS.items()}
    return Ground(**splits, classes=inputs.classes, mean=inputs.mean, std=inputs.std)


_SPLITS = {"training": "train", "validation": "validation", "test": "test"}


def data_digest(prepared: Path, given: Ground) -> str:
    """One name for the prepared arrays, by their content, and for what their sheet says that trials use.

    The sheet counts by itself: other names, a mean or a deviation can be told of the same arrays.
    """
    paths = (path for split in arrays.SPLITS for path in arrays.paths(prepared, split))
    return digest([*map(sha256, paths), given.classes, given.mean, given.std])


def _all(experiment: Experiment) -> Iterator[Trial]:
    return (trial for point in experiment.points for trial in point.trials)


def _kind(asked: dict[str, Any]) -> str:
    """What decides how long an image takes."""
    train = (asked["train"][key] for key in ("batch_size", "device", "threads", "precision", "compile"))
    return digest([asked["structure"], asked["net"], *train])


def _named(trial: Trial) -> str:
    shown = [f"{key} {value}" for key, value in trial.net.items()]
    shown += [f"batch {trial.train['batch_size']}"] if trial.kind != "train" else []
    shown += [f"{trial.train['num_workers']} workers"] if trial.kind == "workers" else []
    shown += [f"{trial.train['optimizer']} {trial.train['lr']:g} {trial.train['schedule']}"]
    return f"{trial.structure} ({', '.join(shown)}), seed {trial.seed}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
