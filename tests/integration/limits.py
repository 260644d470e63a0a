"""A limit on the memory of a process and all that it starts: a control group, made and removed here.

    with memory_limit(1 << 30) as enter:
        subprocess.run(["sh", "-c", f'{enter} && exec "$@"', "sh", *command])

Both versions of control groups will do, where this process may make one below its own.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
LIMITS = ("memory.limit_in_bytes", "memory.max")
"""The file of the limit in version 1 and in version 2."""
SWAP = ("memory.memsw.limit_in_bytes", "memory.swap.max")


def why_not() -> str | None:
    """Why memory cannot be limited here; None where it can."""
    try:
        with memory_limit(1 << 30):
            return None
    except OSError as error:
        return f"a limit on memory is not permitted here: {error}"


@contextmanager
def memory_limit(limit: int) -> Iterator[str]:
    """A shell line by which a process enters a new group of `limit` bytes, page cache and shared memory included.

    What is left in the group at the end is killed. Raises `OSError` where groups cannot be made.
    """
    group = _parent() / f"resflow-{secrets.token_hex(3)}"
    group.mkdir()
    try:
        name = next((name for name in LIMITS if (group / name).exists()), None)
        if name is None:
            raise OSError(f"{group} has no limit on memory")
        (group / name).write_text(str(limit))
        with suppress(OSError):  # no swap to be limited
            (group / SWAP[LIMITS.index(name)]).write_text(str(limit) if name == LIMITS[0] else "0")
        yield f"echo $$ > {group / 'cgroup.procs'}"
    finally:
        _remove(group)


def _parent() -> Path:
    """This process's own group of those that limit memory."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return ROOT / "memory" / path.lstrip("/")
    return ROOT / path.lstrip("/")


def _remove(group: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
