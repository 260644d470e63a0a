"""Processes that end with the one that started them or keep what memory they free, and work that one does at a time."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from resflow.errors import TrainingError
from resflow.files import explained

__all__ = ["MALLOC", "WAIT_SECONDS", "alone", "cores", "cores_each", "die_with_parent", "keep_memory", "locked"]

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MALLOC = {"TRIM_THRESHOLD": (-1, (1 << 31) - 1), "MMAP_THRESHOLD": (-3, 32 << 20)}
"""Number (malloc.h) and bytes of the parameters of glibc that decide what it gives back: each as high as it goes."""
TRIES = 100
"""To make a lock in a folder that others remove; more in a row are no chance."""
LIBC = ctypes.CDLL(None)  # loaded before any fork, since a new child should do as little as it can
WAIT_SECONDS = 30.0
"""A stage whose `dvc repro` was killed ends a moment after it; whoever starts it again at once waits for that."""


def die_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """Have this process sent the signal `number` when its parent ends. Only Linux can; elsewhere it lives on.

    `parent` is the id of the process that started this one; without it, whoever is the parent now counts.
    """
    parent = os.getppid() if parent is None else parent
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), number)


def cores() -> int:
    """How many this process may use: those it is bound to, and no more than its container's share of time."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no Linux with cgroups of version 2, or no limit, which is the word max
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        there = min(there, max(1, quota // period))
    return there


def cores_each(workers: int) -> int:
    """Cores that each of so many workers on this machine has for itself, at least one."""
    return max(1, cores() // workers)


def keep_memory() -> None:
    """Have the C library keep memory that is freed: given back, it comes anew page by page. glibc alone is told so."""
    if mallopt := getattr(LIBC, "mallopt", None):
        for number, value in MALLOC.values():
            mallopt(number, value)


@contextmanager
def alone(path: Path, does: str, wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock `path`, which the kernel frees when its holder dies. Raises `TrainingError`, `SetupError`.

    `does` is what its holder does, such as "trains here"; whoever waits for it, so many seconds, is told so.
    """
    deadline, told = time.monotonic() + wait, False
    while True:
        with explained(path):
            file = _opened(path)
        with file:
            with explained(path):
                is_mine = locked(file) and _is_there(path, file)
            if is_mine:
                with suppress(OSError):  # as on a full disk: it is for others to read, no more
                    os.truncate(file.fileno(), 0)
                    os.write(file.fileno(), f"{os.getpid()}\n".encode())
                yield
                return
            file.seek(0)
            holder = file.read().strip() or "unknown"
        if time.monotonic() >= deadline:
            problem = f"another process {does}: {holder}"
            raise TrainingError(str(path), problem, "Wait for it or end it, then run again")
        if not told:
            print(f"waiting for process {holder}, which {does}", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.1)


def locked(file: IO[str]) -> bool:
    """Whether this process has the lock of an open file from now on, until it is closed.

    Raises `OSError` where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _opened(path: Path) -> IO[str]:
    """The lock, and its folder where that is missing: who is finished may remove it at any moment."""
    left = TRIES
    while True:
        left -= 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("a+")
        except (FileNotFoundError, FileExistsError):  # the latter where it was there, and was gone when looked at
            if not left:
                raise


def _is_there(path: Path, file: IO[str]) -> bool:
    """Whether the lock is the one that others see: who held it may have removed the finished run with it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
