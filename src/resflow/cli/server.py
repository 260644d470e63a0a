"""The Prefect server of a command that runs a flow, and the lines that the flow's tasks show on this terminal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

__all__ = ["check", "show_tasks", "start"]


def start() -> Callable[[], None]:
    """See to the Prefect server of a run, the configured one or a temporary one; the function returned waits for it."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if check(needed=False):
        return lambda: None
    from flows import temporary

    return temporary.start()


def check(needed: bool) -> str | None:
    for name, value in {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}.items():
        os.environ.setdefault(name, value)
    from flows import server

    return server.check(needed)


def show_tasks() -> None:
    """Show the tasks' own lines on this terminal, on which Prefect is quiet."""
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(lambda record: bool(getattr(record, "resflow", False)))
    handler.setFormatter(logging.Formatter("%(message)s"))
    for logger in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(logger).addHandler(handler)
