"""Runs that are killed, wherever it hits them, end in the bits of a run left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Project, make_project, stop_store
from tests.drills.drill import KINDS, RECIPE, drill, outputs, undisturbed

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Project:
    made = make_project(tmp_path_factory.mktemp("drills") / "project", home)
    made.edit(**RECIPE, train__shards=2)  # with which one worker gives the bits of two, so that it is trained once
    made.run("dvc", "repro", "prepare")
    yield made
    stop_store(made)


@pytest.fixture(scope="module")
def alone(prepared: Project) -> tuple[float, dict[str, str]]:
    """The seconds and the outputs of a run left alone."""
    return undisturbed(prepared, KINDS["stage"]), outputs(prepared)


@pytest.mark.parametrize(("kind", "seed"), [*((kind, 5) for kind in KINDS), ("stage", 6)])  # `stage` is quick
def test_a_run_killed_at_a_random_moment_ends_in_the_bits_of_one_left_alone(
    prepared: Project, alone: tuple[float, dict[str, str]], kind: str, seed: int
) -> None:
    outcome = drill(prepared, KINDS[kind], seed)
    assert outcome.kills, "nothing was killed"
    assert outcome.outputs == alone[1]


@pytest.mark.parametrize(("kind", "seed"), [("stage", 1), ("stage", 56), ("dvc", 1)])
def test_also_where_it_starts_or_writes_what_it_has_made(
    prepared: Project, alone: tuple[float, dict[str, str]], kind: str, seed: int
) -> None:
    outcome = drill(prepared, KINDS[kind], seed, seconds=alone[0])
    assert outcome.outputs == alone[1]
