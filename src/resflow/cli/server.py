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
    _keep_quiet()
    from flows import temporary

    own = None if os.environ.get("PREFECT_API_URL") else temporary.Server()  # at once: it takes the longest to start
    if check(needed=False):
        if own:
            own.leave()
        return lambda: None
    return (own or temporary.Server()).take()


def check(needed: bool) -> str | None:
    _keep_quiet()
    from flows import server

    return server.check(needed)


def _keep_quiet() -> None:
    for name, value in {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}.items():
        os.environ.setdefault(name, value)


def show_tasks() -> None:
    """Show the tasks' own lines on this terminal, on which Prefect is quiet."""
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(lambda record: bool(getattr(record, "resflow", False)))
    handler.setFormatter(logging.Formatter("%(message)s"))
    for logger in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(logger).addHandler(handler)
