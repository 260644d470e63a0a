"""Processes below another, and what they are."""

from __future__ import annotations

from pathlib import Path

import psutil

__all__ = ["command_line", "descendants", "train_workers"]


def descendants(pid: int) -> list[int]:
    """Processes that `pid` started, and those that they did."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def command_line(pid: int) -> bytes:
    """Empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def train_workers(pid: int) -> list[int]:
    """Processes below `pid` in which Ray trains."""
    return [below for below in descendants(pid) if command_line(below).startswith(b"ray::RayTrainWorker")]
