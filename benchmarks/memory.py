"""The most memory that training ever held: this process's own, or that of Ray Train's workers below it.

    tell = watch_workers(2)     # before they start
    ...
    mib = tell()                # of the one that held the most

A worker is gone when `fit` returns, so a thread looks at it twice a second; Linux keeps the peak for it.
"""

from __future__ import annotations

import os
import re
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import train_workers

__all__ = ["own", "watch_workers"]

SECONDS = 0.5


def own() -> float:
    """Of this process until now, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def watch_workers(count: int) -> Callable[[], float]:
    """Look from now on for so many workers; what is returned tells the peak of the largest, in MiB, once they end.

    That raises `RuntimeError` where they were not found: the driver's own peak is no answer.
    """
    peaks: dict[int, float] = {}

    def look() -> None:
        while True:
            if len(peaks) < count:  # no longer: all of Ray's threads are looked through, on cores that train
                peaks.update(dict.fromkeys(train_workers(os.getpid()), 0.0))
            for pid in list(peaks):
                peaks[pid] = max(peaks[pid], _peak(pid))
            time.sleep(SECONDS)

    def tell() -> float:
        if len(peaks) < count:
            raise RuntimeError(f"{len(peaks)} of {count} workers were found among the processes below {os.getpid()}")
        return max(peaks.values())

    threading.Thread(target=look, daemon=True).start()
    return tell


def _peak(pid: int) -> float:
    """MiB; 0 for a process that is gone."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0
