"""What a search varies: points of `search.space`, checked against the parameters that they are values of.

    check(params, "params.yaml")
    trial = resolved(params, {"net.block": "basic", "train.lr": 0.3})

A point is a value for each name of the space, as JSON would have it. Proposing points is `search`; which of them a
budget excludes is `budget`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from resflow import params as parameters
from resflow.errors import ParamsError
from resflow.nets import altered, check_fits
from resflow.nets.file import ModelCard
from resflow.params import Params, Range

__all__ = [
    "Point",
    "check",
    "contains",
    "count",
    "ends",
    "lightest",
    "network",
    "resolved",
    "rounded",
    "same",
    "some",
    "stages",
]

Point = Mapping[str, Any]
FIXED = {
    "train.epochs": "search.epochs says how long trials train",
    "train.threads": "search.cpus says how many a trial has",
    "train.num_workers": "one worker trains a trial",
    "train.max_failures": "it changes no result",
    "train.device": "all trials run on the same",
    "train.init_from": "trials start anew",
    "train.init_sha256": "trials start anew",
}
"""Parameters of `net` and `train` that no space has."""
DIGITS = 3
"""Significant digits of values in a range: what `search apply` writes is what was trained, and is legible."""


def check(params: Params, where: str) -> None:
    """Refuse a space that is empty or holds what its parameters cannot be; `where` names params.yaml in errors.

    Raises `ParamsError`.
    """
    if not params.search.space:
        mend = "Give it names of parameters with their choices; docs/search.md has an example"
        raise ParamsError(where, "parameter 'search.space' is empty: there is nothing to search", mend)
    if params.data.loader != "memory":
        mend = "Set it to memory, in params.yaml, to search"
        raise ParamsError(where, "parameter 'data.loader' is stream, but trials read images from memory", mend)
    if params.train.init_from:
        mend = "Set train.init_from and train.init_sha256 to null to search"
        raise ParamsError(where, "parameter 'train.init_from' is given, but trials have other structures", mend)
    for name, values in params.search.space.items():
        entry = f"{where}: parameter 'search.space'"
        if isinstance(values, tuple) and not values:
            raise ParamsError(entry, f"has no choices for {name!r}", f"Give some, or remove {name!r}")
        for value in _ends(values):
            parameters.check(name, value, entry)
        if name in FIXED or not name.startswith(("net.", "train.")):
            reason = FIXED.get(name, "a search varies parameters of net and train")
            raise ParamsError(entry, f"has {name!r}, but {reason}", f"Remove {name!r}")


def resolved(params: Params, point: Point, *, seed: int, epochs: int) -> Params:
    """The parameters of one training at `point`. Raises `ParamsError` for what does not go together."""
    tree = params.model_dump()
    fixed = {"train.epochs": epochs, "train.threads": params.search.cpus, "train.num_workers": 1, "seed": seed}
    return parameters.parse(parameters.override(tree, {**point, **fixed}, "search.space"), "search.space")


def network(params: Params, card: ModelCard) -> ModelCard:
    """`card` with the structure of `params`. Raises `NetError` for what does not go together or does not fit."""
    structure = altered(params.net.name, params.net.changes)
    check_fits(structure, *card.image_shape[:2])
    return replace(card, structure=structure)


def contains(space: Mapping[str, Any], point: Point) -> bool:
    """Whether the space has this point; that of a record may be of a space whose parameters were of other kinds."""
    return point.keys() == space.keys() and all(
        any(same(value, one) for one in _lists(values)) if isinstance(values, tuple) else _is_within(values, value)
        for (name, values), value in zip(space.items(), (point[name] for name in space), strict=True)
    )


def same(one: Any, other: Any) -> bool:
    """Whether two values are one to a parameter: 1 is 1.0, but it is not True, which Python takes for equal."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _is_within(values: Range, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    is_of_kind = isinstance(value, int) or isinstance(values.low, float) or isinstance(values.high, float)
    return is_of_kind and values.low <= value <= values.high


def rounded(values: Range, value: float) -> float | int:
    """A value of the range, rounded to three significant digits."""
    if isinstance(value, int):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), values.low), values.high)


def some(space: Mapping[str, Any], most: int, seed: int) -> Iterator[Point]:
    """All combinations of what a structure is made of, the ends of ranges for them; as many as `most`, drawn by chance,
    where there are more. What is of `train` stays at its first value.
    """
    spread = ends(space)
    if count(space) <= most:
        yield from (dict(zip(spread, chosen, strict=True)) for chosen in itertools.product(*spread.values()))
        return
    draw = np.random.default_rng(seed)
    for _ in range(most):
        yield {name: one[draw.integers(len(one))] for name, one in spread.items()}


def count(space: Mapping[str, Any]) -> int:
    """Combinations of what a structure is made of, the ends of ranges for them."""
    return math.prod(map(len, ends(space).values()))


def ends(space: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The choices of what a structure is made of, the ends of ranges for them; of `train` the first of each."""
    return {name: _ends(one) if name.startswith("net.") else _ends(one)[:1] for name, one in space.items()}


def lightest(space: Mapping[str, Any]) -> Iterator[Point]:
    """For each number of stages, the least choice of each parameter: a list by its sum, words by their order."""
    spread = ends(space)
    for stages in sorted({len(value) for one in spread.values() for value in one if isinstance(value, list)} or {0}):
        fit = {
            name: [value for value in one if not isinstance(value, list) or len(value) == stages]
            for name, one in spread.items()
        }
        if all(fit.values()):
            yield {name: min(one, key=_size) for name, one in fit.items()}


def stages(point: Point) -> frozenset[int]:
    """The numbers of stages that a point's lists are for: one where they go together."""
    return frozenset(len(value) for value in point.values() if isinstance(value, list))


def _size(value: Any) -> float:
    return sum(value) if isinstance(value, list) else value if isinstance(value, int | float) else 0


def _ends(values: tuple[Any, ...] | Range) -> list[Any]:
    return [values.low, values.high] if isinstance(values, Range) else _lists(values)


def _lists(values: tuple[Any, ...]) -> list[Any]:
    return [list(value) if isinstance(value, tuple) else value for value in values]
