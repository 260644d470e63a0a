"""Runs that are killed, wherever it hits them, end in the bits of a run left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Project, make_project, stop_store
from tests.drills.drill import KINDS, RECIPE, drill, outputs, undisturbed

pytestmark = pytest.mark.integration

EARLY_AND_LATE = {"stage": (1, 56), "dvc": (30, 35)}
"""Seeds of drills at any time."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Project:
    made = make_project(tmp_path_factory.mktemp("drills") / "project", home)
    made.edit(**RECIPE, train__shards=2)  # with which one worker gives the bits of two, so that it is trained once
    made.run("dvc", "repro", "prepare")
    yield made
    stop_store(made)


@pytest.fixture(scope="module")
def wanted(prepared: Project) -> dict[str, str]:
    """The outputs of a run left alone."""
    undisturbed(prepared, KINDS["stage"])
    return outputs(prepared)


@pytest.mark.parametrize(("kind", "seed"), [*((kind, 5) for kind in KINDS), ("stage", 6)])  # `stage` is quick
def test_a_run_killed_at_a_random_moment_ends_in_the_bits_of_one_left_alone(
    prepared: Project, wanted: dict[str, str], kind: str, seed: int
) -> None:
    outcome = drill(prepared, KINDS[kind], seed)
    assert outcome.kills, "nothing was killed"
    assert outcome.outputs == wanted


@pytest.mark.parametrize("kind", ["stage", "dvc"])
def test_also_where_it_starts_or_writes_what_it_has_made(prepared: Project, wanted: dict[str, str], kind: str) -> None:
    seconds = undisturbed(prepared, KINDS[kind])
    outcomes = [drill(prepared, KINDS[kind], seed, seconds) for seed in EARLY_AND_LATE[kind]]
    assert all(outcome.outputs == wanted for outcome in outcomes)
    assert any(outcome.kills for outcome in outcomes), "nothing was killed"
