"""What a structure may cost: `search.max_parameters`, `max_macs` and `max_latency_ms`, held against a point's network
before it is trained.

`search.max_seconds` is about training, and seen there (`trial`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from resflow import compute
from resflow.errors import NetError, ParamsError
from resflow.nets.cost import cost
from resflow.nets.file import ModelCard
from resflow.params import Params, Search
from resflow.study import space
from resflow.study.space import Point
from resflow.study.speed import inference_seconds

__all__ = ["Price", "check", "excess", "latency_ms", "price"]

LOOKED_AT = 200
"""Points that are all priced; of more, the lightest is descended to, then as many drawn by chance are priced."""
FASTEST_OF = 3
"""Networks of the fewest MACs, of which the fastest stands for all."""
SECONDS = 0.05
"""For each latency, which is the median of 20 images at least."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a structure costs."""

    parameters: int
    macs: int
    """For one image."""
    latency_ms: float | None = None
    """Of one image on one CPU thread of this machine, the median, batch norms folded into convolutions."""


@lru_cache(maxsize=4096)  # a descent comes by the same structures again and again
def price(card: ModelCard) -> Price:
    """What the network of `card` costs by its shape; `latency_ms` measures the rest."""
    counted = cost(card.structure, image_shape=card.image_shape, num_classes=len(card.classes))
    return Price(parameters=counted.parameters, macs=counted.macs)


def excess(search: Search, paid: Price) -> str | None:
    """Which budget a structure is above, in words; None where it is above none."""
    for name, unit in (("parameters", "parameters"), ("macs", "MACs"), ("latency_ms", "ms")):
        most, value = getattr(search, f"max_{name}"), getattr(paid, name)
        if most is not None and value is not None and value > most:
            return f"{value:,.6g} {unit} are above search.max_{name} {most:,.6g}"
    return None


def check(params: Params, card: ModelCard, where: str) -> Point | None:
    """Refuse budgets that no network of the space meets, for the images of `card`; `where` names params.yaml.

    Returns the values of `net` that meet them with the fewest MACs, or the fastest; None where there are no budgets.
    Raises `ParamsError`.
    """
    search, networks, reasons = params.search, [], []
    for point in (*space.lightest(search.space), *space.some(search.space, LOOKED_AT, params.seed)):
        try:
            _network(params, point, card)
            networks.append(point)
        except (NetError, ParamsError) as error:
            reasons.append(f"{error.where} {error.problem}")
    if not networks:
        problem = f"no point of 'search.space' is a network ({reasons[0]})"
        raise ParamsError(where, problem, "Give choices that go together")
    if search.max_parameters is search.max_macs is search.max_latency_ms is None:
        return None
    mend = "Raise the budget, or give smaller choices"
    priced: list[tuple[Price, Point]] = []
    fastest = math.inf
    for points in _looked_at(params, networks, card):
        priced += [(price(_network(params, point, card)), point) for point in points]
        within = [(paid, point) for paid, point in priced if excess(search, paid) is None]
        lightest = [point for _, point in sorted(within, key=lambda one: (one[0].macs, one[0].parameters))]
        if lightest and search.max_latency_ms is None:
            return _of_net(lightest[0])
        times = {latency_ms(_network(params, point, card)): point for point in lightest[:FASTEST_OF]}
        fastest = min([fastest, *times])
        if times and min(times) <= (search.max_latency_ms or math.inf):
            return _of_net(times[min(times)])
    if fastest < math.inf:
        problem = f"no structure of 'search.space' meets search.max_latency_ms {search.max_latency_ms:g}"
        raise ParamsError(where, f"{problem}: the fastest found takes {fastest:.3g} ms", mend)
    limits = {"max_parameters": search.max_parameters, "max_macs": search.max_macs}
    given = " and ".join(f"search.{name} {limit:,}" for name, limit in limits.items() if limit is not None)
    least = f"{min(paid.parameters for paid, _ in priced):,} parameters and {min(p.macs for p, _ in priced):,} MACs"
    raise ParamsError(where, f"no structure of 'search.space' meets {given}: the least found are {least}", mend)


def _of_net(point: Point) -> Point:
    return {name: value for name, value in point.items() if name.startswith("net.")}


def _looked_at(params: Params, networks: list[Point], card: ModelCard) -> Iterator[list[Point]]:
    """Points by which budgets are judged, more and more of them as long as none is within: all of a small space, else
    descents, `networks` drawn by chance, and descents from the lightest of these that has a value, for each value. What
    goes only with a value of another parameter is not on the way from the lightest choices.
    """
    if space.count(params.search.space) <= LOOKED_AT:
        yield networks
        return
    starts = {space.stages(point): point for point in reversed(networks)}
    yield [point for start in starts.values() for point in _descent(params, start, card)]
    yield networks
    falling = sorted(networks, key=lambda point: _weight(params, point, card), reverse=True)
    lightest = {(name, str(value)): point for point in falling for name, value in _of_net(point).items()}
    seen: list[Point] = []
    for start in lightest.values():
        if start not in seen:
            seen += _descent(params, start, card)
    yield seen


def _network(params: Params, point: Point, card: ModelCard) -> ModelCard:
    made = space.resolved(params, point, seed=params.seed, epochs=params.search.epochs)
    return space.network(made, card)


def _descent(params: Params, start: Point, card: ModelCard) -> Iterator[Point]:
    """Points on the way down from `start`, the last of which no single change makes lighter: above budgets by less,
    then of fewer MACs. Pricing all of a large space would take hours, and a few drawn by chance miss what is rare.
    """
    best = start
    while True:
        yield best
        before = best
        for name, values in space.ends(params.search.space).items():
            if name.startswith("net."):
                changed = ({**best, name: value} for value in values)
                best = min((best, *changed), key=lambda point: _weight(params, point, card))
        if best == before:
            return


def _weight(params: Params, point: Point, card: ModelCard) -> tuple[float, ...]:
    """By how much a point is above budgets, then what it costs."""
    try:
        paid = price(_network(params, point, card))
    except (NetError, ParamsError):
        return (math.inf,)
    limits = (paid.parameters, params.search.max_parameters), (paid.macs, params.search.max_macs)
    return max([1.0, *(value / most for value, most in limits if most)]), paid.macs, paid.parameters


def latency_ms(card: ModelCard) -> float:
    """Median time from one image to its logits, in milliseconds, on one CPU thread."""
    with compute.deterministic(1):
        times = inference_seconds(card, 1, SECONDS, torch.device("cpu"), "a structure of search.space")
    return 1000 * statistics.median(times)
