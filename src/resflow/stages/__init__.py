"""The bodies of the stages of dvc.yaml: parameters in, files out. `resflow stage NAME` calls `main`.

Each stage is a module with `run(root, params)`, so that dvc.yaml can name the code it depends on.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from resflow import params
from resflow.errors import RETRYABLE, ResflowError
from resflow.processes import die_with_parent

__all__ = ["NAMES", "main"]

NAMES = ("fetch", "prepare", "analyze", "train", "evaluate", "robustness")
STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit codes as a shell gives them: 128 and the number of the signal."""


def main(name: str) -> int:
    """Run one stage in the current folder; returns the exit code."""
    if name not in NAMES:
        print(f"resflow stage {name}: there is no such stage. Choose among {', '.join(NAMES)}.", file=sys.stderr)
        return 2
    told: list[int] = []
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: _end(told, number))
        if "DVC_STAGE" in os.environ:
            # a stage whose `dvc repro` was killed would train on beside the next one
            die_with_parent(signal.SIGTERM)
        loaded = params.load(Path("params.yaml"))
        importlib.import_module(f"resflow.stages.{name}").run(Path.cwd(), loaded)
    except ResflowError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return RETRYABLE if error.retryable else 1
    except KeyboardInterrupt:
        _stopped(name, signal.SIGINT)
    except SystemExit:  # Ray makes one of its own of ours
        if not told:
            raise
        _stopped(name, signal.SIGTERM)
    return 0


def _end(told: list[int], number: int) -> NoReturn:
    """Unwind, so that locks and clusters are let go."""
    told.append(number)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: a second one would cut the unwinding short
    sys.exit(number)


def _stopped(name: str, number: signal.Signals) -> NoReturn:
    print(f"{name}: stopped by {number.name}; run it again to go on", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STOPPED[number])  # all is let go; what Ray does at exit takes seconds
