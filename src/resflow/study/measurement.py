"""Run one trial of the study on prepared arrays: train and measure errors, or time steps.

Training is `training.loop`, the same as the stage `train` runs; through Ray Train only where workers are compared.
Which trials there are is `experiments`, keeping results `record`.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resflow import compute
from resflow.data import arrays
from resflow.data.arrays import Split
from resflow.errors import DataError, TrainingError
from resflow.evaluation import inference, metrics
from resflow.files import sha256, write_together
from resflow.nets import altered
from resflow.nets.cost import cost
from resflow.nets.file import ModelCard
from resflow.params import Checkpoint
from resflow.study.experiments import Trial
from resflow.training import loop

__all__ = ["Ground", "check", "perform", "step_seconds"]

EVALUATION_BATCH = 1000
FEW = 100
"""Validation images within the loop, whose figures are not used: they are measured once, after training."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What trials have in common: the prepared splits and their data sheet."""

    training: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def card(trial: Trial, ground: Ground) -> ModelCard:
    """What the network of a trial takes and gives. Raises `NetError` where it does not fit the images."""
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in trial.net.items()}
    height, width, channels = ground.training.images.shape[1:]
    made = ModelCard(
        structure=altered(trial.structure, changes),
        image_shape=(height, width, channels),
        classes=ground.classes,
        mean=ground.mean,
        std=ground.std,
    )
    made.network()
    return made


def perform(trial: Trial, ground: Ground) -> dict[str, Any]:
    """Run it; returns its result in JSON's types. Errors are fractions. Raises `ResflowError`.

    A training that diverges has the result `diverged`, which says how, and no errors.
    """
    if trial.kind == "speed":
        seconds = step_seconds(trial, ground, trial.images // trial.train["batch_size"] - 1)
        return {"images_per_second": trial.train["batch_size"] / seconds}
    if trial.kind == "workers":
        return {"images_per_second": _through_ray(trial, ground)}
    return _trained(trial, ground)


def step_seconds(trial: Trial, ground: Ground, steps: int) -> float:
    """Median seconds of a step over `steps` of them, after a first one that is left out."""
    marks: list[float] = []

    def mark(step: int, sums: Tensor) -> None:
        sums.sum().item()  # a GPU is waited for
        marks.append(time.perf_counter())

    batch = trial.train["batch_size"]
    needed = batch * (steps + 1)
    rows = np.arange(needed) % len(ground.training.labels)  # a small data set comes round again
    given = Split(ground.training.images[rows], ground.training.labels[rows])
    # hardly moving: so short a schedule reaches its peak at once, and a diverging training would end the study
    once = replace(trial, train={**trial.train, "epochs": 1, "lr": 1e-6})
    made = card(trial, ground)
    _loop(once, _drawn(once, made), made, given, ground, mark)
    return statistics.median(after - before for before, after in itertools.pairwise(marks))


def _trained(trial: Trial, ground: Ground) -> dict[str, Any]:
    made = card(trial, ground)
    given = Split(ground.training.images[: trial.images], ground.training.labels[: trial.images])
    priced = cost(made.structure, image_shape=made.image_shape, num_classes=len(made.classes))
    price = {"parameters": priced.parameters, "macs": priced.macs}
    norms: dict[str, list[float]] = {}
    last = len(given.labels) // int(trial.train["batch_size"])

    def look(step: int, sums: Tensor) -> None:
        # the gradients of a step stay until the next one: those of the first are of the initial weights
        if step == 1:
            norms["start"] = _norms(net)
        if step == last:
            norms["epoch"] = _norms(net)

    net = _drawn(trial, made)
    try:
        state = _loop(trial, net, made, given, ground, look)
    except TrainingError as error:
        if not norms:  # it never began
            raise
        return {**price, "gradients": norms, "diverged": error.problem}
    errors = {}
    for name, split in (("train", given), ("validation", ground.validation), ("test", ground.test)):
        answers = inference.logits(net, split.images, made, EVALUATION_BATCH, str(_device(trial)))
        errors[f"{name}_error"] = 1 - metrics.accuracy(answers, split.labels)
    curve = [epoch.train_loss for epoch in state.history]
    return {**price, **errors, "train_losses": curve, "gradients": norms}


def _drawn(trial: Trial, made: ModelCard) -> nn.Module:
    """A network whose weights follow from the seed."""
    loop.prepare_torch(trial.seed, trial.train["threads"])
    return made.network()


def _loop(
    trial: Trial,
    net: nn.Module,
    made: ModelCard,
    given: Split,
    ground: Ground,
    on_step: Callable[[int, Tensor], None],
) -> loop.State:
    few = Split(ground.validation.images[:FEW], ground.validation.labels[:FEW])
    return loop.train(net, given, few, made, trial.settings, seed=trial.seed, device=_device(trial), on_step=on_step)


def _device(trial: Trial) -> torch.device:
    return torch.device(trial.train["device"])


def _norms(net: nn.Module) -> list[float]:
    """The L2 norm of the gradient of each 3x3 or larger convolution's weights, from the input on."""
    weights = (p for p in net.parameters() if p.ndim == 4 and p.shape[-1] > 1)
    return [float(f"{0.0 if p.grad is None else p.grad.norm().item():.4g}") for p in weights]


def _through_ray(trial: Trial, ground: Ground) -> float:
    """Images per second of the fastest epoch but the first, with so many workers on this machine."""
    from resflow.training.cluster.trainer import fit
    from resflow.training.job import Job
    from resflow.training.remote import Arrays

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "prepared"
        splits = {"train": ground.training, "validation": ground.validation}
        count = {"train": trial.images, "validation": FEW}
        paths = {}
        for name, split in splits.items():
            paths[arrays.images_path(folder, name)] = arrays.writer(split.images[: count[name]])
            paths[arrays.labels_path(folder, name)] = arrays.writer(split.labels[: count[name]])
        write_together(paths)
        digests = {path.relative_to(folder).as_posix(): sha256(path) or "" for path in paths}
        job = Job(
            train=trial.settings,
            checkpoint=Checkpoint(steps=0, seconds=0.0),
            seed=trial.seed,
            card=card(trial, ground),
            initial={},
            arrays=Arrays(folder=folder, digests=digests),
            loader="memory",
            shuffle_mib=1,
            runs=Path(place) / "runs",
            name="speed",
        )
        _, timings = fit(job, None, Path(place) / "live")
    return max(timing.images_per_second for timing in timings[1:])


def check(trial: Trial, ground: Ground) -> None:
    """Refuse what cannot run before anything does. Raises `NetError`, `DataError`, `TrainingError`."""
    compute.device(trial.train["device"])
    card(trial, ground)
    batch, there = trial.train["batch_size"], min(trial.images, len(ground.training.labels))
    if trial.kind != "speed" and there < batch:
        raise DataError("study.images", f"leaves {there} training images for batches of {batch}", "Raise it")
