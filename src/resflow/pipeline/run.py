"""Run one stage, send what it made, ask what has changed since."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from resflow.errors import RETRYABLE, StageError
from resflow.pipeline import locks
from resflow.pipeline.command import dvc, last_error

__all__ = ["StageRun", "edited", "push", "run_stage"]


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """How one stage went."""

    name: str
    ran: bool
    """False where DVC found its result up to date or in its cache."""
    seconds: float


def run_stage(root: Path, name: str, on_line: Callable[[str], None], env: Mapping[str, str] | None = None) -> StageRun:
    """`dvc repro` this one stage, handing each line of its output to `on_line`. Raises `StageError`, `SetupError`."""
    started = time.perf_counter()
    locks.mend(root)
    with locks.kept(root):
        code, lines = dvc(root, ["repro", "--single-item", name], on_line, env)
        if code:
            raise _failure(name, code, lines)
    skipped = any("didn't change, skipping" in line or "is cached - skipping run" in line for line in lines)
    return StageRun(name=name, ran=not skipped, seconds=time.perf_counter() - started)


def push(root: Path, on_line: Callable[[str], None], env: Mapping[str, str] | None = None) -> int:
    """Send what the DVC remote lacks of data and models; returns how many files. Raises `StageError`."""
    code, lines = dvc(root, ["push"], on_line, env)
    if code:
        reason = last_error(lines) or "it said nothing"
        error = StageError("dvc push", reason, "See that the store answers (`resflow doctor`), then run it again")
        error.retryable = True
        raise error
    pushed = re.search(r"(\d+) files? pushed", "\n".join(lines))
    return int(pushed[1]) if pushed else 0


def edited(root: Path) -> list[str]:
    """Code, parameters and data that are no longer what the stages ran with, by dvc.lock. Raises `StageError`."""
    code, lines = dvc(root, ["status", "--json"], lambda line: None, None)
    found = next((line for line in reversed(lines) if line.startswith("{")), "")  # DVC may warn of something else
    if code or not found:
        raise StageError("dvc status", last_error(lines) or "it said nothing", "Mend that and run again")
    stages = [part for parts in json.loads(found).values() for part in parts if isinstance(part, dict)]
    changed: set[str] = set()
    for path, how in (item for part in stages for item in part.get("changed deps", {}).items()):
        changed |= {f"{path}: {key}" for key in how} if isinstance(how, dict) else {path}
    return sorted(changed)


def _failure(name: str, code: int, lines: list[str]) -> StageError:
    said = next((line.removeprefix(f"{name}: ") for line in reversed(lines) if line.startswith(f"{name}: ")), None)
    complaint = last_error(lines) or f"exit code {code}"
    retryable = f"exited with {RETRYABLE}" in complaint
    where, _, rest = (said or "").partition(": ")
    problem, _, mend = rest.rpartition(". ")
    if said and problem:
        error = StageError(f"{name}: {where}", problem, mend)
    elif "locked" in complaint or "is busy" in complaint or "blocked" in complaint:
        mend = "Wait for it to end; where none runs, delete .dvc/tmp/rwlock"
        error = StageError(name, f"another DVC command is running ({complaint})", mend)
    elif "No space left" in complaint:
        error = StageError(name, complaint, "Free disk space and run again")
    elif any("dvc.lock' validation failed" in line or "dvc.lock' is invalid" in line for line in lines):
        error = StageError(name, "dvc.lock is damaged", "Run `git checkout dvc.lock`, or delete it, and run again")
    else:
        error = StageError(name, complaint, "Its output is above")
    error.retryable = retryable
    return error
