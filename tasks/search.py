"""The tasks of a structure search: its trials, the front once more with several seeds, and what that gives.

Each finds what was trained before, so that a search that was killed goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from resflow.errors import DataError
from resflow.study import plan as plans
from resflow.study import results
from resflow.study.plan import Plan
from resflow.study.trial import Training
from resflow.training.cluster.session import connected
from tasks.stages import log

__all__ = ["finals", "report", "trials"]


@task(task_run_name="trials", cache_policy=NO_CACHE)
def trials(plan: Plan) -> list[Training]:
    """Train what is left of the trials; returns the front. Raises `TrainingError`."""
    left, wanted, elsewhere = plans.remaining(plan), plan.params.search.trials, 0
    log(f"trials: {left} of {wanted} to train, {wanted - left} found" if left else f"trials: all {wanted} found")
    if left:
        with connected(plan.base, plan.address):
            from resflow.study import search  # Ray reads some of its settings when it is imported

            elsewhere = search.run_trials(plan, log)
    front = plans.front(plan)
    if not front:
        raise plans.no_front(elsewhere)
    log(f"front: {len(front)} points")
    return front


@task(task_run_name="finals", cache_policy=NO_CACHE)
def finals(plan: Plan, front: list[Training]) -> None:
    """Train the points of the front with seeds of their own. Raises `TrainingError`."""
    left = plans.finals_left(plan, front)
    log(f"front again: {len(left)} trainings, each with a seed of its own" if left else "front again: all found")
    if left:
        with connected(plan.base, plan.address):
            from resflow.study import search

            search.run_finals(plan, front, log)


@task(task_run_name="report", cache_policy=NO_CACHE)
def report(root: Path, plan: Plan, front: list[Training]) -> dict[str, Any]:
    """Measure the points on the test split and write study/search.*; a table in the UI. Raises `DataError`."""
    try:
        earlier = results.load(root)
    except DataError:
        earlier = None
    found = results.measured(plan, front, earlier)
    results.save(root, found)
    rows = [dict(zip(results.COLUMNS, row, strict=True)) for row in results.rows(found)]
    create_table_artifact(rows, key="front", description="The front of the search: mean and deviation over seeds")
    return found
