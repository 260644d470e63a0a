"""Files that DVC writes in place, and cannot read where a full disk or a kill has left them half written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml

from resflow.files import explained, write
from resflow.processes import locked

__all__ = ["kept", "mend"]


@contextmanager
def kept(lock: Path) -> Iterator[None]:
    """DVC writes dvc.lock in place: where that failed, on a full disk or in a kill, put back what was there.

    Not after other failures: another DVC command may have written its own results meanwhile.
    """
    copy = lock.parent / ".resflow" / f"{lock.name}.{os.getpid()}"  # made while there is room: renaming needs none
    if lock.exists():
        write(copy, lock.read_bytes())
    try:
        yield
    except BaseException as error:
        if lock.exists() and ("[Errno" in str(error) or not _is_lock(lock)):
            if copy.exists():
                copy.replace(lock)
            else:
                lock.unlink()
        raise
    finally:
        copy.unlink(missing_ok=True)


def mend(root: Path) -> None:
    """Put dvc.lock back as a killed process has kept it, and remove .dvc/tmp/rwlock, where they are half written.

    The latter tells who is at work, and DVC makes it anew. Raises `SetupError` where they cannot be written.
    """
    lock, tmp = root / "dvc.lock", root / ".dvc" / "tmp"
    copies = [path for path in lock.parent.glob(f".resflow/{lock.name}.*") if _is_left(path)]
    with explained(tmp):
        if _torn(lock, tmp / "rwlock"):
            tmp.mkdir(exist_ok=True)
            with (tmp / "lock").open("a") as whole, (tmp / "rwlock.lock").open("a") as guard:
                if not (locked(whole) and locked(guard)):
                    return  # a DVC command is writing them
                for path in _torn(lock, tmp / "rwlock"):
                    if path != lock:
                        path.unlink()
                    elif copies:
                        max(copies, key=lambda copy: copy.stat().st_mtime).replace(lock)
        for copy in copies:
            copy.unlink(missing_ok=True)


def _torn(lock: Path, rwlock: Path) -> list[Path]:
    """Those that are there and that DVC cannot read."""
    readable = {lock: _is_lock, rwlock: _is_json}
    return [path for path, reads in readable.items() if path.exists() and not reads(path)]


def _is_left(copy: Path) -> bool:
    """Whether the process is no more that made it."""
    pid = copy.suffix.removeprefix(".")
    return pid.isdigit() and not psutil.pid_exists(int(pid))


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _is_lock(path: Path) -> bool:
    try:
        return "stages" in yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, TypeError):
        return False
