"""Serve the training flow on a schedule from this very process, for machines without a Prefect worker.

The command is `resflow schedule`. What a work pool runs instead is declared in prefect.yaml.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.runner import Runner

from flows.training import training_pipeline, with_overrides
from resflow.errors import ParamsError

__all__ = ["serve"]


def serve(name: str, overrides: dict[str, Any], *, cron: str | None = None, interval: int | None = None) -> None:
    """Make the deployment `name`, and run it whenever its schedule or the server says so, until SIGINT or SIGTERM.

    `interval` is in seconds. A run that is due while another goes on waits for it, as both would change the same files.
    """
    with_overrides(Path.cwd(), overrides)
    if cron:
        _check_cron(cron)
    runner = _Runner(name=name, limit=1)
    asyncio.run(_serve(runner, name, overrides, cron, interval))


def _check_cron(cron: str) -> None:
    try:
        CronSchedule(cron=cron)
    except ValueError as error:
        mend = 'Write five fields, such as "0 2 * * *" for two at night'
        raise ParamsError(f"--cron {cron!r}", "is no cron schedule", mend) from error


async def _serve(runner: Runner, name: str, overrides: dict[str, Any], cron: str | None, interval: int | None) -> None:
    await runner.aadd_flow(
        training_pipeline,
        name=name,
        description="From raw data to a registered, published network. What is up to date is not run again.",
        tags=["training"],
        cron=cron,
        interval=interval,
        parameters={"overrides": overrides} if overrides else {},
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
    )
    print(f"Serving training-pipeline/{name}; Ctrl-C stops it and pauses its schedule. To run it now:", flush=True)
    print(f"  prefect deployment run training-pipeline/{name}", flush=True)
    await runner.start()


class _Runner(Runner):
    """Prefect's own waits for the run that goes on, however long, when it is told to end."""

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """Cancel the run and end; called between two steps of the event loop."""
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(lambda: loop.create_task(self.astop()))
