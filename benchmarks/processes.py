"""Processes below another, what they are, as Linux tells in /proc, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

__all__ = ["START_SECONDS", "command_line", "descendants", "end", "train_workers", "wait_until_started"]

START_SECONDS = 90


def descendants(pid: int) -> list[int]:
    """Processes that `pid` started, and those that they did."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_until_started(process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a node of Ray that writes to `log` is there. Raises `AssertionError` with the log where it ends instead."""
    deadline = time.monotonic() + START_SECONDS
    while "Ray runtime started" not in (text := log.read_text()):
        assert process.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.1)


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
