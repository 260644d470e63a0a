"""Processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["die_with_parent"]

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None)  # loaded before any fork, since a new child should do as little as it can


def die_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """Have this process sent the signal `number` when its parent ends. Only Linux can; elsewhere it lives on.

    `parent` is the id of the process that started this one; without it, whoever is the parent now counts.
    """
    parent = os.getppid() if parent is None else parent
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), number)
