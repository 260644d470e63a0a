"""Errors cross process borders and end as one line."""

from __future__ import annotations

import pickle

import pytest

from resflow import errors
from resflow.errors import ResflowError

ALL = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", ALL)
def test_an_error_survives_the_way_out_of_a_worker(kind: type[ResflowError]) -> None:
    error = kind("params.yaml", "lr is -1 but must be positive", "Raise it")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (back.where, back.problem, back.mend) == (error.where, error.problem, error.mend)


@pytest.mark.parametrize("kind", ALL)
def test_an_error_is_one_line_that_says_where_what_and_how_to_mend_it(kind: type[ResflowError]) -> None:
    assert str(kind("a.npy", "is truncated", "Run `dvc repro`")) == "a.npy: is truncated. Run `dvc repro`"


def test_only_what_may_pass_by_itself_is_tried_again() -> None:
    assert {kind.__name__ for kind in ALL if kind.retryable} == {"SourceError", "ClusterError", "StoreUnavailable"}


def test_the_tree_in_the_module_names_every_error() -> None:
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in errors.__all__)
