"""Processes below another, and what they are."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

__all__ = ["command_line", "descendants", "end", "train_workers"]


def descendants(pid: int) -> list[int]:
    """Processes that `pid` started, and those that they did."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end(process: subprocess.Popen[Any]) -> None:
    """End a node of Ray with all of its children, of which nobody needs anything more: in peace it would take 10 s."""
    for pid in (process.pid, *descendants(process.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def command_line(pid: int) -> bytes:
    """Empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def train_workers(pid: int) -> list[int]:
    """Processes below `pid` in which Ray trains."""
    return [below for below in descendants(pid) if command_line(below).startswith(b"ray::RayTrainWorker")]
