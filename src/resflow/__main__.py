"""The `resflow` command: `resflow stage NAME` goes straight to the stage, all else to `resflow.cli`.

A stage loads no code of the command line, so that a change there leaves every result of `dvc repro` up to date.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TextIO

__all__ = ["main"]


def main() -> None:
    """Entry point of the console script."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # until the stage or command has its own: imports may swallow exceptions, or end in a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:2] == ["stage"] and len(sys.argv) == 3 and not sys.argv[2].startswith("-"):
        sys.stdout = _output()
        from resflow.stages import main as run_stage

        sys.exit(run_stage(sys.argv[2]))
    from resflow.cli import main as run_command

    run_command()


class _Output(io.TextIOWrapper):
    """Standard output that may end before the stage does: no result depends on who reads along."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:
            return self._unheard(len(text))

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._unheard(0)

    def _unheard(self, count: int) -> int:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        return count


def _output() -> TextIO:
    given = sys.stdout
    if given is None:  # closed: else the next file that is opened would have its number
        return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if not isinstance(given, io.TextIOWrapper):
        return given
    settings = {name: getattr(given, name) for name in ("encoding", "errors", "line_buffering", "write_through")}
    return _Output(given.detach(), **settings)


if __name__ == "__main__":
    main()
