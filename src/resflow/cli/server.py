"""The Prefect server of a command that runs a flow, and the lines that the flow's tasks show on this terminal."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable
from typing import TextIO

from resflow.files import home

__all__ = ["check", "show_tasks", "start"]

ERASE_LINE_ABOVE = "\x1b[1A\x1b[2K"


def start() -> Callable[[], None]:
    """See to the Prefect server of a run, the configured one or a temporary one; the function returned waits for it."""
    home()  # which Prefect asks for when it is imported
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
    home()  # as above
    _keep_quiet()
    from flows import server

    return server.check(needed)


def _keep_quiet() -> None:
    for name, value in {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}.items():
        os.environ.setdefault(name, value)


def show_tasks() -> None:
    """Show the tasks' own lines on this terminal, on which Prefect is quiet."""
    handler = _Lines(sys.stdout)
    handler.addFilter(lambda record: bool(getattr(record, "resflow", False)))
    for logger in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(logger).addHandler(handler)


class _Lines(logging.StreamHandler[TextIO]):
    """Shows lines as they are; on a terminal, the next one takes the place of one that is passing."""

    _above_passes = False

    def format(self, record: logging.LogRecord) -> str:
        line = record.getMessage()
        if not self.stream.isatty():
            return line
        erase = ERASE_LINE_ABOVE if self._above_passes else ""
        self._above_passes = bool(getattr(record, "passing", False))
        if self._above_passes:  # no wider than the terminal: one row is erased
            line = line[: shutil.get_terminal_size().columns - 1]
        return erase + line

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # that nobody reads along any more is no bug
            super().handleError(record)
