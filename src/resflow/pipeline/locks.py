"""Files that DVC writes in place, and cannot read where a full disk or a kill has left them half written.

dvc.lock is put back as it was seen last, .dvc/tmp/rwlock, which tells what DVC commands are at work, is removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resflow.files import explained, write
from resflow.processes import locked

__all__ = ["kept", "mend", "torn"]


@contextmanager
def kept(root: Path) -> Iterator[None]:
    """Keep a copy of dvc.lock, and put it back where a full disk has left it half written. Raises `SetupError`.

    Not after other failures: another DVC command may have written its own results meanwhile. The copy stays, for who
    comes after a kill.
    """
    lock, copy = root / "dvc.lock", _copy(root)
    content = lock.read_bytes() if lock.exists() else b""
    if not lock.exists() or _is_ended(content):  # else the copy of one before is better than none
        write(copy, content)  # while there is room: renaming needs none
    try:
        yield
    except BaseException as error:
        if lock.exists() and ("[Errno" in str(error) or not _is_ended(lock.read_bytes())):
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
    is_whole = {root / "dvc.lock": _is_ended, root / ".dvc" / "tmp" / "rwlock": _is_json}
    return [path for path, holds in is_whole.items() if path.exists() and not holds(path.read_bytes())]


def _copy(root: Path) -> Path:
    """Of dvc.lock as the last stage found it; empty where there was none."""
    return root / ".resflow" / "dvc.lock"


def _put_back(copy: Path, lock: Path) -> None:
    if copy.exists() and copy.stat().st_size:
        copy.replace(lock)
    elif copy.exists():
        lock.unlink()


def _is_ended(lock: bytes) -> bool:
    """Whether it has its last line. What else may be wrong with it, as after a merge, is for its owner to mend."""
    return lock.endswith(b"\n")


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
