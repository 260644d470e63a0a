"""The structure search: trials under budgets, their Pareto front, and its points once more with several seeds.

By hand it is `resflow search`. Data is fetched and prepared first where it is not; nothing is registered.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow

from resflow import params, pipeline, storage, store
from resflow.processes import alone
from resflow.stages import runs
from resflow.stages.paths import STATE
from resflow.stages.train import job_of
from resflow.study import budget, space
from resflow.study.plan import Plan, sweep
from tasks import search as acts
from tasks.stages import meeting_place, run_stage

__all__ = ["plan_of", "structure_search"]


@flow(name="structure-search", description=__doc__, persist_result=False)
def structure_search() -> dict[str, Any]:
    """Which structure is best, at what cost: the report that study/search.json holds."""
    root = pipeline.find_root(Path.cwd())
    settings = params.load(root / "params.yaml")
    space.check(settings, "params.yaml")
    for name in ("fetch", "prepare"):
        run_stage(root, name, {})
    if os.environ.get("RAY_ADDRESS") and os.environ.get("AWS_ENDPOINT_URL_S3"):
        endpoint = store.endpoint(root)
        storage.ensure_bucket(endpoint, settings.store.bucket)
        os.environ |= meeting_place(settings, endpoint)  # trials are no stages, which would be given it
    with alone(root / STATE / "search.lock", "searches here"):
        plan = plan_of(root, settings)
        plan = replace(plan, first=budget.check(settings, plan.base.card, "params.yaml"))
        front = acts.trials(plan)
        acts.finals(plan, front)
        found = acts.report(root, plan, front)
        sweep(plan)
        return found


def plan_of(root: Path, settings: params.Params) -> Plan:
    """The search that the parameters describe, of the data prepared under `root`. Raises `DataError` or `NetError`."""
    base = job_of(root, settings)
    return Plan(
        params=settings,
        base=base,
        folder=(root / STATE / "study").resolve(),
        address=os.environ.get("RAY_ADDRESS"),
        held=partial(runs.held, base.runs),
    )
