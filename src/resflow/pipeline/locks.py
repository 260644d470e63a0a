"""Files that DVC writes in place, and cannot read where a full disk or a kill has left them half written.

dvc.lock is put back as it was seen last, .dvc/tmp/rwlock, which tells what DVC commands are at work, is removed.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resflow.files import explained, write
from resflow.pipeline.definition import recorded
from resflow.processes import locked

__all__ = ["kept", "mend", "torn"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def kept(root: Path) -> Iterator[None]:
    """Keep a copy of dvc.lock, and put it back where it is half written, as on a full disk. Raises `SetupError`.

    Not after other failures: another DVC command may have written its own results meanwhile. The copy stays, for who
    comes after a kill.
    """
    lock, copy = root / "dvc.lock", _copy(root)
    content = lock.read_bytes() if lock.exists() else b""
    if not lock.exists() or _is_whole(content):  # else the copy of one before is better than none
        write(copy, content)  # while there is room: renaming needs none
    try:
        yield
    except BaseException as error:
        is_full = any(f"[Errno {number}]" in str(error) for number in FULL)
        if lock.exists() and (is_full or not _is_whole(lock.read_bytes())):
            _put_back(copy, lock)
        raise


def mend(root: Path) -> None:
    """Put back, or remove, what is half written, unless a DVC command is at it. Raises `SetupError`."""
    folder = root / ".dvc" / "tmp"
    with explained(folder), suppress(FileNotFoundError):  # DVC has no lock there, or another run has mended it
        if torn(root):
            with (folder / "lock").open("r+") as whole, (folder / "rwlock.lock").open("r+") as guard:
                for path in torn(root) if locked(whole) and locked(guard) else ():
                    if path.name == "dvc.lock":
                        _put_back(_copy(root), path)
                    else:
                        path.unlink()


def torn(root: Path) -> list[Path]:
    """Those of the two that are there and half written."""
    is_whole = {root / "dvc.lock": _is_whole, root / ".dvc" / "tmp" / "rwlock": _is_json}
    return [path for path, holds in is_whole.items() if path.exists() and not holds(path.read_bytes())]


def _copy(root: Path) -> Path:
    """Of dvc.lock as the last stage found it; empty where there was none."""
    return root / ".resflow" / "dvc.lock"


def _put_back(copy: Path, lock: Path) -> None:
    if copy.exists() and copy.stat().st_size:
        copy.replace(lock)
    elif copy.exists() or not lock.stat().st_size:
        lock.unlink()


def _is_whole(lock: bytes) -> bool:
    """Whether it has its last line, or can be read without. Its owner mends what else is wrong, as after a merge."""
    return lock.endswith(b"\n") or bool(recorded(lock))


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
