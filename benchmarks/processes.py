"""Processes below another, and what they are, as Linux tells in /proc."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["command_line", "descendants", "train_workers"]


def descendants(pid: int) -> list[int]:
    """Processes that `pid` started, and those that they did."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):  # each thread has those that it started
        with suppress(OSError):
            found += map(int, children.read_text().split())
    return [*found, *(below for child in found for below in descendants(child))]


def command_line(pid: int) -> bytes:
    """Empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def train_workers(pid: int) -> list[int]:
    """Processes below `pid` in which Ray trains."""
    return [below for below in descendants(pid) if command_line(below).startswith(b"ray::RayTrainWorker")]
