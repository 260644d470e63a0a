"""Budgets: what is above one is told, and that nothing meets one is told before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

from resflow.errors import ParamsError
from resflow.study import budget, space
from resflow.study.budget import Price
from tests.unit.study.searched import POINT, settings
from tests.unit.training.small import CARD

SMALL = space.network(space.resolved(settings(), POINT, seed=0, epochs=1), CARD)
PAID = budget.price(SMALL)


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ({}, None),
        ({"max_parameters": 1000, "max_macs": 2000, "max_latency_ms": 3.0}, None),
        ({"max_parameters": 999}, "1,000 parameters are above search.max_parameters 999"),
        ({"max_macs": 1999}, "2,000 MACs are above search.max_macs 1,999"),
        ({"max_latency_ms": 2.5}, "3 ms are above search.max_latency_ms 2.5"),
    ],
    ids=str,
)
def test_what_is_above_a_budget_is_told(budgets: dict[str, Any], said: str | None) -> None:
    assert budget.excess(settings(**budgets).search, Price(parameters=1000, macs=2000, latency_ms=3.0)) == said


def test_a_price_is_what_the_network_has() -> None:
    assert PAID.parameters == sum(parameter.numel() for parameter in SMALL.network().parameters())
    assert PAID.macs > 0
    assert budget.latency_ms(SMALL) > 0


def test_budgets_that_some_structure_meets_are_accepted() -> None:
    budget.check(settings(max_parameters=PAID.parameters, max_macs=PAID.macs), CARD, "params.yaml")
    budget.check(settings(max_latency_ms=1000.0), CARD, "params.yaml")


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        (
            {"max_parameters": 10},
            f"meets search.max_parameters 10: the least found are {PAID.parameters:,} parameters and {PAID.macs:,} MAC",
        ),
        ({"max_macs": PAID.macs - 1}, f"meets search.max_macs {PAID.macs - 1:,}: the least found are"),
        ({"max_latency_ms": 1e-6}, "meets search.max_latency_ms 1e-06: the fastest found takes"),
    ],
    ids=["parameters", "macs", "latency"],
)
def test_budgets_that_no_structure_meets_are_told_with_the_least_that_was_found(
    budgets: dict[str, Any], said: str
) -> None:
    with pytest.raises(ParamsError) as caught:
        budget.check(settings(**budgets), CARD, "params.yaml")
    assert f"params.yaml: no structure of 'search.space' {said}" in str(caught.value)


def test_the_one_structure_of_a_large_space_that_meets_the_budgets_is_found() -> None:
    many: dict[str, Any] = {
        "net.block": ["bottleneck", "basic"],
        "net.blocks": [[1, 1], [2, 2], [1, 2], [1, 2, 1], [1, 1, 1], [2, 1, 2]],
        "net.widths": [[64, 8], [4, 64], [4, 8], [4, 8, 8], [32, 8, 16], [8, 32, 8]],
        "net.stem": ["conv3x3", "patch4x4", "patch5x5"],
        "net.se": [4, 0],
        "net.shortcut": ["C", "B"],
        "train.lr": {"low": 0.05, "high": 0.2},
    }
    asked = settings(space=many)
    assert space.count(asked.search.space) > budget.LOOKED_AT
    light = {"net.block": "basic", "net.blocks": [1, 1], "net.widths": [4, 8], "net.stem": "patch5x5"}
    light |= {"net.se": 0, "net.shortcut": "B"}
    made = space.network(space.resolved(asked, light, seed=0, epochs=1), CARD)
    paid = budget.price(made)
    tight = settings(space=many, max_macs=paid.macs, max_parameters=paid.parameters)
    assert budget.check(tight, CARD, "params.yaml") == light
    assert budget.check(asked, CARD, "params.yaml") is None
    with pytest.raises(ParamsError, match=rf"the least found are {paid.parameters:,} parameters and {paid.macs:,} MAC"):
        budget.check(settings(space=many, max_macs=paid.macs - 1), CARD, "params.yaml")


def test_the_lightest_structure_is_found_where_parameters_go_only_together() -> None:
    many: dict[str, Any] = {
        "net.block": ["basic", "bottleneck"],  # of which the second is heavier without groups, which the first has not
        "net.groups": [1, 16],
        "net.blocks": [[1, 1], [1, 2]],
        "net.widths": [[16, 32], [32, 64]],
        "net.se": [0, 4, 8],
        "net.shortcut": ["B", "C"],
        "net.activation": ["relu", "silu", "gelu"],
        "net.stem": ["patch4x4"],
        "net.stem_width": [16, 32],
    }
    asked = settings(space=many, max_macs=300_000)
    assert space.count(asked.search.space) == 576 > budget.LOOKED_AT
    light = {"net.block": "bottleneck", "net.groups": 16, "net.blocks": [1, 1], "net.widths": [16, 32]}
    assert light.items() <= (budget.check(asked, CARD, "params.yaml") or {}).items()
    with pytest.raises(ParamsError, match=r"the least found are 18,995 parameters and 287,232 MACs"):
        budget.check(settings(space=many, max_macs=287_231), CARD, "params.yaml")


def test_a_space_without_any_network_is_told_with_the_reason() -> None:
    with pytest.raises(ParamsError, match=r"no point of 'search.space' is a network \(net.blocks has 2 stages, but"):
        budget.check(settings(space={"net.blocks": [[1, 1]], "net.widths": [[4]]}), CARD, "params.yaml")
