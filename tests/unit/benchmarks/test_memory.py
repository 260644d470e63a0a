"""The peak memory of Ray Train's workers, as seen from the process that drives them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from benchmarks import memory

MIB = 64
WAITS = "import sys; print('done', flush=True); sys.stdin.read()"
HOLDS = "x = b'x' * ({} << 20); del x; " + WAITS


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(memory, "SECONDS", 0.01)


def started(name: str, code: str) -> subprocess.Popen[str]:
    """A Python that is called so, as Ray names its workers, and that waits for its input to end."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([name, "-c", code], executable=sys.executable, text=True, **pipes)
    assert process.stdout.readline() == "done\n"
    return process


def seen(tell: Callable[[], float]) -> float:
    try:
        return tell()
    except RuntimeError:  # not both are found yet
        return 0.0


def test_the_peak_of_the_largest_worker_is_told_after_it_freed_what_it_held():
    tell = memory.watch_workers(2)
    processes = [started("ray::RayTrainWorker.run", HOLDS.format(MIB)), started("ray::RayTrainWorker", WAITS)]
    processes.append(started("ray::Queue", HOLDS.format(4 * MIB)))
    deadline = time.monotonic() + 30
    try:
        while not seen(tell) > MIB:
            assert time.monotonic() < deadline, "the larger worker is not found"
            time.sleep(0.01)
    finally:
        for process in processes:
            process.communicate()
    assert MIB < tell() < 2 * MIB


def test_a_driver_whose_workers_are_not_found_tells_no_peak():
    with pytest.raises(RuntimeError, match="0 of 1 workers were found"):
        memory.watch_workers(1)()
