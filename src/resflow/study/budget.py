"""What a structure may cost: `search.max_parameters`, `max_macs` and `max_latency_ms`, held against a point's network
before it is trained.

`search.max_seconds` is about training, and seen there (`trial`).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from resflow.errors import NetError, ParamsError
from resflow.evaluation import inference
from resflow.nets.cost import cost
from resflow.nets.file import ModelCard
from resflow.params import Params, Search
from resflow.study import space
from resflow.study.speed import inference_seconds

__all__ = ["Price", "check", "excess", "latency_ms", "price"]

LOOKED_AT = 200
"""Points among which one must fit the budgets, if there are more than so many."""
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


def check(params: Params, card: ModelCard, where: str) -> None:
    """Refuse budgets that no network of the space meets, for the images of `card`; `where` names params.yaml.

    Raises `ParamsError`.
    """
    search, networks, reasons = params.search, [], []
    for point in space.some(search.space, LOOKED_AT, params.seed):
        try:
            made = space.resolved(params, point, seed=params.seed, epochs=search.epochs)
            networks.append(space.network(made, card))
        except (NetError, ParamsError) as error:
            reasons.append(f"{error.where} {error.problem}")
    if not networks:
        problem = f"no point of 'search.space' is a network ({reasons[0]})"
        raise ParamsError(where, problem, "Give choices that go together")
    mend = "Raise the budget, or give smaller choices"
    priced = [(price(card), card) for card in networks]
    within = [(paid, card) for paid, card in priced if excess(search, paid) is None]
    if not within:
        limits = {"max_parameters": search.max_parameters, "max_macs": search.max_macs}
        given = " and ".join(f"search.{name} {limit:,}" for name, limit in limits.items() if limit is not None)
        least = f"{min(paid.parameters for paid, _ in priced):,} parameters and {min(p.macs for p, _ in priced):,} MACs"
        raise ParamsError(where, f"no structure of 'search.space' meets {given}: the least found are {least}", mend)
    if search.max_latency_ms is not None:
        lightest = sorted(within, key=lambda one: (one[0].macs, one[0].parameters))[:FASTEST_OF]
        fastest = min(latency_ms(card) for _, card in lightest)
        if fastest > search.max_latency_ms:
            problem = f"no structure of 'search.space' meets search.max_latency_ms {search.max_latency_ms:g}"
            raise ParamsError(where, f"{problem}: the fastest found takes {fastest:.3g} ms", mend)


def latency_ms(card: ModelCard) -> float:
    """Median time from one image to its logits, in milliseconds, on one CPU thread."""
    with inference.deterministic(1):
        times = inference_seconds(card, 1, SECONDS, torch.device("cpu"), "a structure of search.space")
    return 1000 * statistics.median(times)
