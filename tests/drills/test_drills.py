"""Runs that are killed, wherever it hits them, end in the bits of a run left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Project, make_project, stop_store
from tests.drills.drill import KINDS, RECIPE, drill, outputs

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Project:
    made = make_project(tmp_path_factory.mktemp("drills") / "project", home)
    made.edit(**RECIPE, train__shards=2)  # with which one worker gives the bits of two, so that it is trained once
    made.run("dvc", "repro", "prepare")
    yield made
    stop_store(made)


@pytest.fixture(scope="module")
def undisturbed(prepared: Project) -> dict[str, str]:
    """The outputs of a run left alone."""
    prepared.run("resflow", "stage", "train", OMP_WAIT_POLICY="PASSIVE")
    return outputs(prepared)


@pytest.mark.parametrize(("kind", "seed"), [*((kind, 5) for kind in KINDS), ("stage", 6)])  # `stage` is quick
def test_a_run_killed_at_a_random_moment_ends_in_the_bits_of_one_left_alone(
    prepared: Project, undisturbed: dict[str, str], kind: str, seed: int
) -> None:
    outcome = drill(prepared, KINDS[kind], seed)
    assert outcome.kills, "nothing was killed"
    assert outcome.outputs == undisturbed
