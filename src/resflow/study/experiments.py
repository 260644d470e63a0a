"""What the study asks, as data: questions, and for each the trials that answer it.

    for experiment in plan(params.study, params.train):
        experiment.question, [(point.label, point.trials) for point in experiment.points]

Two questions may share trials, which run once. Running one is `measurement`, what the answers are `answers`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from resflow import compute
from resflow.errors import ParamsError
from resflow.params import Params, Study, Train

__all__ = ["KINDS", "NAMES", "OFF", "Experiment", "Point", "Trial", "chosen", "plan"]

RECIPE: Mapping[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "triangular",
    "warmup_fraction": 0.2,
    "num_workers": 1,
}
"""Optimiser, momentum and decay of He et al. 2016a, section 4.2. Fixed here, so that a new default recipe does not
touch it."""
OFF: Mapping[str, Any] = {
    "init_from": None,
    "init_sha256": None,
    "accumulate": 1,
    "clip_norm": 0.0,
    "label_smoothing": 0.0,
    "ema": 0.0,
    "shift": 0,
    "flip": False,
    "rotate": 0.0,
    "scale": 0.0,
    "erase": 0.0,
    "mixup": 0.0,
    "adversarial": {"epsilon": 0.0, "steps": 1, "step_size": 1.0, "warmup_fraction": 0.0},
    "shards": 0,
    "max_failures": 0,
}
"""What no trial uses, and so none records: when training learns something new, it is turned off here, and earlier
results still stand. Nothing is augmented: the study is about structures, and training error should be that of the
images as they are."""
ARTICLE = {
    "optimizer": "adamw",
    "lr": 0.001,
    "schedule": "constant",
    "weight_decay": 0.0,
    "batch_size": 64,
    "warmup_fraction": 0.0,
}
"""The article's own recipe, as in experiments/article.yaml."""
KINDS = {"plain": "plain8", "residual": "resnet8", "pre-activation": "preact_resnet8"}
"""The kinds of networks that are compared by depth, each by its shallowest structure."""
STAGES = 3
WORKER_EPOCHS = 3
FACTORS: Mapping[str, Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]] = {
    "schedule": {name: ({}, {"schedule": name}) for name in ("cosine", "step", "constant")},
    "optimiser": {
        f"{name} at {lr:g}": ({}, {"optimizer": name.lower(), "lr": lr})
        for name, rates in (("AdamW", (0.001, 0.004)), ("Muon", (0.01, 0.04)))
        for lr in rates
    },
    "activation": {name: ({"activation": name}, {}) for name in ("leaky_relu", "silu", "gelu", "mish")},
    "initialisation": {
        "zero_norm": ({"init": "zero_norm"}, {}),
        "orthogonal": ({"init": "orthogonal"}, {}),
        "fixup, no norms": ({"init": "fixup", "norm": "none"}, {}),
        "skipinit, no norms": ({"init": "skipinit", "norm": "none"}, {}),
    },
}
"""What differs from the base in the network and in training; learning rates stand in `_factors`."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One thing to run: all that its result depends on but code and data."""

    kind: Literal["train", "speed", "workers"]
    """`train` trains and measures errors; `speed` times steps; `workers` times epochs through Ray Train."""
    structure: str
    net: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the structure of that name, in JSON's types."""
    train: Mapping[str, Any]
    """The fields of `params.Train` that trials set; `OFF` has the others."""
    images: int
    seed: int = 0

    @property
    def settings(self) -> Train:
        """How it trains."""
        return Train.model_validate({**OFF, **self.train})

    @property
    def asked(self) -> dict[str, Any]:
        """All of it, as it is recorded."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell of a table: the same trial with different seeds."""

    group: str
    label: str
    x: float = 0.0
    """Where it stands on the axis of its figure, if that has one: layers, channels, images, workers."""
    trials: tuple[Trial, ...]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One question."""

    name: str
    title: str
    question: str
    splits: str
    """Which images its figures are of."""
    points: tuple[Point, ...]


NAMES = ("depth", "gradients", "zero-norm", "front", "factors", "scaling")


def chosen(params: Params, names: Sequence[str]) -> tuple[Experiment, ...]:
    """The experiments of these names, or all of them. Raises `ParamsError` for an unknown one."""
    for name in names:
        if name not in NAMES:
            raise ParamsError("--only", f"there is no question {name!r}", f"Choose among {', '.join(NAMES)}")
    return tuple(one for one in plan(params.study, params.train) if not names or one.name in names)


def plan(study: Study, machine: Train) -> tuple[Experiment, ...]:
    """All experiments, in the order of `NAMES`; of `machine` only device, threads, precision and compile are taken.

    The device `auto` becomes the one that this machine has, so that a result is never taken for one of another.
    """
    recipe = {
        **RECIPE,
        **machine.model_dump(include={"threads", "precision", "compile"}),
        # `cuda` is not looked for: a report may be of what another machine recorded
        "device": compute.device("auto") if machine.device == "auto" else machine.device,
        "epochs": study.epochs,
        "batch_size": study.batch_size,
        "lr": study.lr,
    }
    depth = tuple(_depth(study, recipe))
    residual = [point for point in depth if point.group == "residual"]
    return (
        Experiment(
            name="depth",
            title="Depth",
            question="Does a plain network get worse when it gets deeper, and do shortcuts cure that?",
            splits="Training error: the images trained on. Test error: the test split, measured once after training.",
            points=depth,
        ),
        Experiment(
            name="gradients",
            title="Gradients by depth",
            question="How large is the gradient in each layer, with and without shortcuts?",
            splits="Single batches of the training split: the first one, and the last one of the first epoch.",
            points=tuple(point for point in depth if point.group != "pre-activation"),
        ),
        Experiment(
            name="zero-norm",
            title="Zero-initialised last norm",
            question="Does it help to start each block with its branch closed (the last norm's scale at zero)?",
            splits="Training error, on the images trained on; validation error decides; test error beside it.",
            points=(
                *(_regrouped(point, "He") for point in residual),
                *_zero(study, recipe),
            ),
        ),
        Experiment(
            name="front",
            title="Accuracy for its price",
            question="Which structure gives how much accuracy for its parameters and multiply-accumulates, and what "
            "does a residual network save against the article's?",
            splits="Validation error decides; test error stands beside it and decides nothing.",
            points=tuple(_front(study, recipe)),
        ),
        Experiment(
            name="factors",
            title="One factor at a time",
            question="Which learning rate, schedule, optimiser, activation and initialisation is better than the base?",
            splits="Validation error decides; test error stands beside it and decides nothing.",
            points=tuple(_factors(study, recipe)),
        ),
        Experiment(
            name="scaling",
            title="Speed",
            question="How many images per second are trained, by batch, depth, width and workers?",
            splits="Training images; no error is measured.",
            points=tuple(_scaling(study, recipe)),
        ),
    )


def _trials(study: Study, seeds: int, structure: str, net: Mapping[str, Any], train: Mapping[str, Any]) -> Any:
    return tuple(
        Trial(kind="train", structure=structure, net=net, train=train, images=study.images, seed=seed)
        for seed in range(seeds)
    )


def _deep(study: Study, layers: int) -> dict[str, Any]:
    stem = {} if study.stem is None else {"stem": study.stem}
    return {"blocks": [(layers - 2) // 6] * STAGES, **stem}


def _wide(width: int) -> dict[str, Any]:
    return {"widths": [width * 2**stage for stage in range(STAGES)]}


def _depth(study: Study, recipe: Mapping[str, Any]) -> Iterator[Point]:
    for kind, structure in KINDS.items():
        for layers in study.depths:
            trials = _trials(study, study.seeds, structure, _deep(study, layers), recipe)
            yield Point(group=kind, label=f"{kind}, {layers} layers", x=layers, trials=trials)


def _regrouped(point: Point, group: str) -> Point:
    return Point(group=group, label=f"{group}, {point.x:g} layers", x=point.x, trials=point.trials)


def _zero(study: Study, recipe: Mapping[str, Any]) -> Iterator[Point]:
    for layers in study.depths:
        net = {**_deep(study, layers), "init": "zero_norm"}
        trials = _trials(study, study.seeds, KINDS["residual"], net, recipe)
        yield Point(group="last norm at zero", label=f"last norm at zero, {layers} layers", x=layers, trials=trials)


def _front(study: Study, recipe: Mapping[str, Any]) -> Iterator[Point]:
    rows: Iterable[tuple[str, str, str, dict[str, Any], dict[str, Any]]] = [
        ("article", "article_cnn, its own recipe", "article_cnn", {}, {**ARTICLE}),
        ("article", "article_cnn, this recipe", "article_cnn", {}, {}),
        ("residual", "resnet8_max", "resnet8_max", {}, {}),
        *(("residual", f"resnet8_avg, width {width}", "resnet8_avg", _wide(width), {}) for width in study.widths),
        *(
            (
                "residual",
                f"resnet8_avg of 20 layers, width {width}",
                "resnet8_avg",
                {**_wide(width), "blocks": [3] * 3},
                {},
            )
            for width in study.widths[:2]
        ),
        *(("plain", f"plain, width {w}", "resnet8_avg", {**_wide(w), "block": "plain"}, {}) for w in study.widths),
    ]
    for group, label, structure, net, changes in rows:
        yield Point(
            group=group,
            label=label,
            trials=_trials(study, study.factor_seeds, structure, net, {**recipe, **changes}),
        )


def _factors(study: Study, recipe: Mapping[str, Any]) -> Iterator[Point]:
    rates: Mapping[str, Any] = {f"{lr:g}": ({}, {"lr": lr}) for lr in (study.lr / 4, study.lr * 4)}
    base = f"the base, {study.lr:g}"
    yield _factor(study, recipe, "base", base, {}, {})
    for factor, levels in {"learning rate": rates, **FACTORS}.items():
        for label, (net, changes) in levels.items():
            yield _factor(study, recipe, factor, label, net, changes)


def _factor(
    study: Study, recipe: Mapping[str, Any], group: str, label: str, net: Mapping[str, Any], train: Mapping[str, Any]
) -> Point:
    whole = {**_wide(study.factor_width), **net}
    trials = _trials(study, study.factor_seeds, "resnet8_avg", whole, {**recipe, **train})
    return Point(group=group, label=label, trials=trials)


def _scaling(study: Study, recipe: Mapping[str, Any]) -> Iterator[Point]:
    def timed(structure: str, net: Mapping[str, Any], batch: int) -> tuple[Trial, ...]:
        train = {**recipe, "batch_size": batch, "epochs": 1}
        images = batch * (study.speed_steps + 1)  # the first step is left out
        return (Trial(kind="speed", structure=structure, net=net, train=train, images=images),)

    width = _wide(study.factor_width)
    for batch in study.batches:
        yield Point(group="batch", label=f"batch {batch}", x=batch, trials=timed("resnet8_avg", width, batch))
    for layers in study.depths:
        trials = timed(KINDS["residual"], _deep(study, layers), study.batch_size)
        yield Point(group="depth", label=f"{layers} layers", x=layers, trials=trials)
    for channels in study.widths:
        trials = timed("resnet8_avg", _wide(channels), study.batch_size)
        yield Point(group="width", label=f"width {channels}", x=channels, trials=trials)
    # one thread each, else one worker would have all cores already
    batch = study.batch_size - study.batch_size % math.lcm(*study.workers)
    for workers in study.workers:
        train = {**recipe, "batch_size": batch, "num_workers": workers, "threads": 1, "epochs": WORKER_EPOCHS}
        trial = Trial(kind="workers", structure="resnet8_avg", net=width, train=train, images=study.images)
        yield Point(group="workers", label=f"{workers} of one thread", x=workers, trials=(trial,))
