"""The bodies of the stages of dvc.yaml: parameters in, files out. `resflow stage NAME` calls `main`.

Each stage is a module with `run(root, params)`, so that dvc.yaml can name the code it depends on.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from resflow import params
from resflow.errors import RETRYABLE, ResflowError, StageError
from resflow.files import sha256
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
    # a shell has it ignored in what it does not wait for
    interruptible = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    try:
        # While modules are loaded, which may swallow what is raised, there is nothing to be let go.
        signal.signal(signal.SIGTERM, lambda number, frame: _stopped(name, signal.SIGTERM))
        if interruptible:
            signal.signal(signal.SIGINT, lambda number, frame: _stopped(name, signal.SIGINT))
        by_dvc = "DVC_STAGE" in os.environ
        if by_dvc:
            # a stage whose `dvc repro` was killed would train on beside the next one
            die_with_parent(signal.SIGTERM)
        loaded = params.load(Path("params.yaml"))
        before = _inputs(name) if by_dvc else {}
        stage = importlib.import_module(f"resflow.stages.{name}")
        signal.signal(signal.SIGTERM, lambda number, frame: _end(told, number))
        if interruptible:
            signal.signal(signal.SIGINT, lambda number, frame: _end(told, number))
        stage.run(Path.cwd(), loaded)
        if by_dvc:
            _check_unchanged(before, _inputs(name))
    except ResflowError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return RETRYABLE if error.retryable else 1
    except SystemExit:  # Ray makes one of its own of ours
        if not told:
            raise
        _stopped(name, signal.Signals(told[0]))
    return 0


def _inputs(name: str) -> dict[str, Any]:
    """What dvc.yaml names as the stage's code and parameters: each file's SHA-256, each parameter's value."""
    stage, given = params.read(Path("dvc.yaml"))["stages"][name], params.read(Path("params.yaml"))
    found: dict[str, Any] = {path: sha256(Path(path)) for path in stage["deps"] if path.startswith("src/")}
    for key in stage.get("params", []):
        value = given
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        found[f"params.yaml: {key}"] = value
    return found


def _check_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    """DVC looks at them when the stage has ended: it would record what was edited meanwhile, which did not run."""
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if changed:
        problem = "was edited while the stage ran, which used what was there before; nothing is recorded"
        raise StageError(", ".join(changed), problem, "Undo that or keep it, and run it again")


def _end(told: list[int], number: int) -> NoReturn:
    """Unwind, so that locks and clusters are let go."""
    told.append(number)
    for other in STOPPED:
        signal.signal(other, signal.SIG_IGN)  # once is enough: a second one would cut the unwinding short
    sys.exit(number)


def _stopped(name: str, number: signal.Signals) -> NoReturn:
    with suppress(RuntimeError, OSError):  # the former where the signal came while one of them was written to
        sys.stdout.flush()
        sys.stderr.flush()
    with suppress(OSError):
        os.write(2, f"{name}: stopped by {number.name}; run it again to go on\n".encode())
    os._exit(STOPPED[number])  # all is let go; what Ray does at exit takes seconds
