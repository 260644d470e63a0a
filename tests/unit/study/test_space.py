"""The space of a search: what it may name, what its points are, and one clear error for whatever is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from resflow.errors import NetError, ParamsError
from resflow.params import Range
from resflow.study import space
from tests.unit.study.searched import POINT, SPACE, settings
from tests.unit.training.small import CARD


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "parameter 'search.space' is empty: there is nothing to search. Give it names of parameters with their"),
        ({"net.block": []}, "has no choices for 'net.block'. Give some, or remove 'net.block'"),
        ({"net.blok": ["plain"]}, "unknown parameter 'net.blok'. Did you mean 'net.block'?"),
        ({"train.learning_rate": [0.1]}, "unknown parameter 'train.learning_rate'. Did you mean 'train.lr'?"),
        ({"net": ["plain"]}, "unknown parameter 'net'. It is a section: name one of its parameters"),
        ({"net.block": ["plain", "basik"]}, "parameter 'net.block' is 'basik', but should be 'plain', 'basic'"),
        ({"net.widths": [[16, 32], 64]}, "parameter 'net.widths' is 64, but should be a list"),
        ({"train.lr": [0.1, 0]}, "parameter 'train.lr' is 0, but should be greater than 0"),
        ({"train.lr": {"low": -1.0, "high": 1.0}}, "parameter 'train.lr' is -1.0, but should be greater than 0"),
        ({"net.block": {"low": 1, "high": 2}}, "parameter 'net.block' is 1, but should be 'plain'"),
        ({"evaluate.mistakes": [1]}, "has 'evaluate.mistakes', but a search varies parameters of net and train"),
        ({"train.epochs": [1]}, "has 'train.epochs', but search.epochs says how long trials train"),
    ],
    ids=str,
)
def test_a_space_that_cannot_be_searched_is_told(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ParamsError) as caught:
        space.check(settings(space=given), "params.yaml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("params.yaml: ")


def test_a_space_of_choices_and_ranges_is_accepted() -> None:
    space.check(settings(), "params.yaml")
    space.check(settings(space={"net.se": [0, 4], "net.init": ["he", None], "train.shift": {"low": 0, "high": 2}}), "x")


def test_the_parameters_of_a_trial_are_those_of_the_point_and_the_rest_as_they_are() -> None:
    base = settings(cpus=2)
    made = space.resolved(base, POINT, seed=7, epochs=5)
    assert made.net.changes == {"blocks": (1, 1), "widths": (4, 8)}
    assert (made.train.lr, made.train.epochs, made.train.threads, made.seed) == (0.1, 5, 2, 7)
    assert made.train.model_copy(update={"lr": base.train.lr, "epochs": 3, "threads": 1}) == base.train


def test_a_point_whose_parts_do_not_go_together_has_no_network() -> None:
    made = space.resolved(settings(), {**POINT, "net.widths": [4, 8, 8]}, seed=0, epochs=1)
    with pytest.raises(NetError, match=r"has 2 stages, but net.widths has 3"):
        space.network(made, CARD)


def test_a_space_has_the_points_that_are_made_of_its_values() -> None:
    asked = settings().search.space
    assert space.contains(asked, POINT)
    assert not space.contains(asked, {**POINT, "train.lr": 0.3})
    assert not space.contains(asked, {**POINT, "net.blocks": [2, 2]})
    assert not space.contains(asked, {"net.blocks": [1, 1]})
    assert not space.contains(asked, {**POINT, "net.block": "plain"})


@pytest.mark.parametrize(
    ("values", "value", "expected"),
    [
        ({"low": 0, "high": 4}, 2, True),
        ({"low": 0, "high": 4}, 2.0, False),
        ({"low": 0.0, "high": 4.0}, 2, True),
        ({"low": 0, "high": 4}, True, False),
        ({"low": 0, "high": 4}, "2", False),
        ({"low": 0, "high": 4}, [2], False),
        ({"low": 0, "high": 4}, None, False),
        ([0, 1], True, False),
        ([0, 1], 1.0, True),
        ([True], 1, False),
        ([[1, 2]], [1.0, 2], True),
        ([[1, 2]], [True, 2], False),
        ([[1, 2]], 1, False),
        ([None], 0, False),
        (["1"], 1, False),
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_none_of_a_space(values: Any, value: Any, expected: bool) -> None:
    asked = settings(space={"train.shift": values}).search.space
    assert space.contains(asked, {"train.shift": value}) is expected


def test_values_of_a_range_have_three_digits_and_stay_within_it() -> None:
    values = Range(low=0.0512345, high=0.2, log=True)
    assert [space.rounded(values, one) for one in (0.123456, 0.0512346, 0.19999)] == [0.123, 0.0512345, 0.2]
    assert space.rounded(Range(low=1, high=4096), 4095) == 4095


def test_all_structures_of_a_small_space_are_looked_at_and_some_of_a_large_one() -> None:
    asked = settings().search.space
    every = list(space.some(asked, 100, seed=0))
    assert [(one["net.blocks"], one["net.widths"]) for one in every] == [
        (blocks, widths) for blocks in SPACE["net.blocks"] for widths in SPACE["net.widths"]
    ]
    few = list(space.some(asked, 3, seed=0))
    assert len(few) == 3
    assert all(space.contains(asked, one) for one in few)
