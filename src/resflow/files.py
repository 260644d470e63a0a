"""Write files so that they appear whole or not at all, and the same content as the same bytes.

`write_together` writes each file beside its place, then renames them all; a full disk leaves the old files as they
were. `json_bytes` and `csv_bytes` are the formats of what git or DVC hashes. What is written is the caller's affair.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from resflow.errors import SetupError

__all__ = ["csv_bytes", "explained", "home", "json_bytes", "partial", "sha256", "write", "write_together"]

DIGITS = 6
"""Decimal places of floats in JSON and CSV, or significant digits of those below 1, such as a learning rate: more would
be noise, and fewer would hide differences."""

LOCKS = "Put that folder on a file system with locks (flock): one over a network may have to be mounted with them"
MENDS = {
    errno.ENOSPC: "Free disk space there and run again",
    errno.EDQUOT: "Free disk space there and run again",
    errno.EFBIG: "Raise the file size limit (`ulimit -f unlimited`) and run again",
    errno.EROFS: "Make the folder writable, or run in a folder that is",
    errno.EACCES: "Make the folder writable, or run in a folder that is",
    errno.EPERM: "Make the folder writable, or run in a folder that is",
    errno.ENOTDIR: "Move away the file that stands in the place of the folder",
    errno.EEXIST: "Move away the file that stands in the place of the folder",
    errno.ENOLCK: LOCKS,
    errno.EOPNOTSUPP: LOCKS,
    errno.EISDIR: "Move away the folder that stands in the place of the file",
}


def write_together(files: Mapping[Path, bytes | Callable[[BinaryIO], object]]) -> None:
    """Write all of `files`, each its bytes or by its function, or none. Raises `SetupError`."""
    with ExitStack() as stack:
        for path, content in files.items():
            with explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove, partial(path))
                with partial(path).open("wb") as file:
                    file.write(content) if isinstance(content, bytes) else content(file)
        for path in files:  # renaming takes no space: whoever came this far gets through
            with explained(path):
                os.replace(partial(path), path)  # noqa: PTH105


def write(path: Path, content: bytes) -> None:
    """Write one file. Raises `SetupError`."""
    write_together({path: content})


def json_bytes(value: object) -> bytes:
    """Indented JSON with rounded floats and a newline at its end. Raises `ValueError` for NaN and infinity."""
    return (json.dumps(_rounded(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def csv_bytes(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> bytes:
    """Comma-separated values with rounded floats and Unix line ends."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_rounded(value) for value in row] for row in rows)
    return text.getvalue().encode()


def sha256(path: Path) -> str | None:
    """The SHA-256 of a file in hexadecimal, read in pieces; None where there is no file that can be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if abs(value) < 1 else round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value


def home() -> Path:
    """The user's home. Raises `SetupError` where HOME is not set and the user, as in a container, has no entry."""
    try:
        return Path.home()
    except RuntimeError as error:
        mend = "Set HOME to a folder that can be written to"
        raise SetupError("HOME", f"is not set, and user {os.getuid()} has no home by itself", mend) from error


def partial(path: Path) -> Path:
    """Where `path` is written before it is renamed; a fixed name, so that what a killed run left is overwritten."""
    return path.with_name(path.name + ".partial")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an `OSError` of writing `path` into a `SetupError` that says how to mend it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        mend = MENDS.get(error.errno or 0, "Check the disk and the permissions there")
        raise SetupError(str(path), f"cannot be written: {reason}", mend) from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder is gone or read-only: then there is nothing half-written either
        return
