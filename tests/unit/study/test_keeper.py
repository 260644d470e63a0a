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
    ("reported", "accuracies", "kept", "left", "next_time"),
    [
        ("running", (0.5,), "stopped", 2, 2),
        ("running", (0.5, 0.6), "done", 2, 2),  # stopped after its last epoch
        ("done", (0.5, 0.6), "done", 2, 2),
        ("diverged", (), "diverged", 2, 2),
        ("memory", (), "memory", 2, 3),
        ("slow", (0.5,), "slow", 3, 3),
    ],
)
def test_a_trial_that_ended_is_kept_and_all_but_slow_ones_count_for_lack_of_memory_this_time_only(
    tmp_path: Path, reported: str, accuracies: tuple[float, ...], kept: str, left: int, next_time: int
) -> None:
    of = plan(tmp_path, max_seconds=15.0 if reported == "slow" else None)
    searched = Searched(of)
    searched.end(reported, accuracies)
    (record,) = trial.read(of.trials)
    assert (record.status, record.accuracies) == (kept, accuracies)
    assert (searched.proposals.wanted, plans.remaining(of)) == (left, next_time)


@pytest.mark.parametrize(("failures", "kept"), [(("killed", "lost"), "running"), (("lost", "killed"), "memory")])
def test_a_trial_that_ray_gave_up_is_out_of_memory_where_its_last_failure_says_so(
    tmp_path: Path, failures: tuple[str, str], kept: str
) -> None:
    of = plan(tmp_path)
    searched = Searched(of)
    given: Any = searched.proposals.suggest("0")
    said = {"killed": "Task was killed due to the node running low on memory.\nMemory", "lost": "The actor died"}
    told = tmp_path / "error.txt"
    told.write_text("".join(f"Failure # {at} (occurred at noon)\n{said[one]}\n" for at, one in enumerate(failures, 1)))
    ended = SimpleNamespace(status="ERROR", config=given, error_file=str(told), last_result=None)
    searched.keeper.on_step_end(0, [ended])
    assert [one.status for one in trial.read(of.trials)] == [kept]
    assert searched.keeper.lost == (kept == "running")


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
