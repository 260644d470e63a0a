"""What is kept of each trial that ends, and when a search ends because of them; without a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resflow.study import plan as plans
from resflow.study import search, trial
from resflow.study.plan import Plan
from tests.unit.study.searched import plan


class Searched:
    """A search whose trials end as a test says."""

    def __init__(self, of: Plan) -> None:
        holds, self.said = plans.Holds(of), list[str]()
        self.proposals = search.Proposals(of, plans.known(of), holds, self.said.append)
        self.keeper = search.Keeper(of, self.proposals, holds, self.said.append)

    def end(self, status: str, accuracies: tuple[float, ...] = (0.5,), seconds: float | None = 20.0) -> None:
        """Begin a trial, which ends so."""
        given: Any = self.proposals.suggest(str(len(self.proposals.begun)))
        result = {"status": status, "accuracies": accuracies, "seconds": seconds}
        self.keeper.on_trial_complete(0, [], SimpleNamespace(config=given, last_result=result))


@pytest.mark.parametrize(
    ("reported", "accuracies", "kept", "left"),
    [
        ("running", (0.5,), "stopped", 2),
        ("running", (0.5, 0.6), "done", 2),  # stopped after its last epoch
        ("done", (0.5, 0.6), "done", 2),
        ("diverged", (), "diverged", 2),
        ("memory", (), "memory", 2),
        ("slow", (0.5,), "slow", 3),
    ],
)
def test_a_trial_that_ended_is_kept_and_all_but_slow_ones_count(
    tmp_path: Path, reported: str, accuracies: tuple[float, ...], kept: str, left: int
) -> None:
    of = plan(tmp_path, max_seconds=15.0 if reported == "slow" else None)
    searched = Searched(of)
    searched.end(reported, accuracies)
    (record,) = trial.read(of.trials)
    assert (record.status, record.accuracies) == (kept, accuracies)
    assert plans.remaining(of) == searched.proposals.wanted == left


def test_a_search_whose_budget_of_seconds_nothing_meets_ends_with_the_fastest_of_the_last_ten(tmp_path: Path) -> None:
    searched = Searched(plan(tmp_path, max_seconds=15.0))
    for turn in range(search.SLOW - 1):
        searched.end("slow", seconds=16.0 + turn)
    searched.end("done", seconds=14.0)  # one that does
    for turn in range(search.SLOW - 1):
        searched.end("slow", seconds=30.0 - turn)
    assert searched.keeper.failure is None
    searched.end("slow", seconds=25.0)
    said = "params.yaml: search.max_seconds: is 15, and of the last 10 trials the fastest would take 22 s. Raise it, or"
    assert str(searched.keeper.failure).startswith(said)
