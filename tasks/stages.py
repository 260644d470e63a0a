"""The task that runs one stage of dvc.yaml, its output streamed as logs and its training as progress."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from resflow import pipeline, store
from resflow.errors import ResflowError
from resflow.params import Params
from resflow.pipeline import StageRun
from resflow.training import lines
from tasks.progress import Progress

__all__ = ["can_help", "log", "meeting_place", "run_stage"]


def can_help(task: Any, run: Any, state: Any) -> bool:
    """Whether trying a failed task again may help: for an error that says so, never for a bug or bad parameters."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, ResflowError) and error.retryable


def log(line: str, passing: bool = False) -> None:
    """Show a line to whoever watches the run: in Prefect's logs, and on the terminal of `resflow run`.

    One that is `passing` is outdated by the next, which takes its place on a terminal; the server does not keep it.
    """
    get_run_logger().info(line, extra={"resflow": True, "passing": passing, "send_to_api": not passing})


def meeting_place(settings: Params, endpoint: store.Endpoint) -> dict[str, str]:
    """What trainings are told: the workers of a cluster meet in the store, unless it is this machine's own."""
    if not os.environ.get("RAY_ADDRESS") or endpoint.embedded or os.environ.get("RESFLOW_STORAGE"):
        return {}
    return {**endpoint.environment(), "RESFLOW_STORAGE": f"s3://{settings.store.bucket}/runs"}


@task(task_run_name="{name}", retries=1, retry_delay_seconds=3, retry_condition_fn=can_help, cache_policy=NO_CACHE)
def run_stage(root: Path, name: str, env: Mapping[str, str]) -> StageRun:
    """Bring one stage up to date. Raises `StageError`."""
    progress = Progress(name)

    def on_line(line: str) -> None:
        told = lines.read(line)
        log(line, passing=bool(told and told.passing))
        if told:
            progress.show(told)

    return pipeline.run_stage(root, name, on_line, env)
