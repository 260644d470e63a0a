"""Results of trials, kept in one file of JSON lines, from which reports are made and stopped studies go on.

    records = Records(path)
    records.add(Record(...))     # the file is replaced as a whole, so that a kill leaves the old or the new one

A trial is done when its key is there: the hash of code, torch, parameters and data. A report takes the newest result of
the same parameters on the data that was studied last, whatever code and torch made it, and says which. Running trials
is `campaign`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

import resflow
from resflow.errors import DataError
from resflow.files import sha256, write
from resflow.processes import cores

__all__ = ["Record", "Records", "checked", "code", "digest", "machine"]

Kind = TypeVar("Kind")


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a value in canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@cache
def code(patterns: tuple[str, ...]) -> str:
    """One name for the modules of this package whose paths match, by their content."""
    root = Path(resflow.__file__).parent
    files = sorted({path for pattern in patterns for path in root.glob(pattern)})
    digested = hashlib.sha256()
    for path in files:
        digested.update(f"{path.relative_to(root).as_posix()} {sha256(path)}\n".encode())
    return digested.hexdigest()[:16]


def machine(*packages: str, device: str = "cpu") -> str:
    """Processor, its instructions that torch uses, cores, the GPU where `device` is `cuda`, and versions, in one line.

    Processors of one name have fewer instructions where a virtual machine hides some, which takes speed and other bits.
    """
    import torch

    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:  # no Linux
        found = None
    name = found[1] if found else platform.processor() or platform.machine()
    versions = [f"Python {platform.python_version()}", *(f"{package} {version(package)}" for package in packages)]
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({kernels}), {cores()} cores{gpu}; {', '.join(versions)}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one trial gave."""

    key: str
    """Hash of all that the result depends on."""
    code: str
    """Hash of the modules that made it."""
    data: str
    """Hash of the prepared arrays, and of what their sheet says."""
    asked: dict[str, Any]
    """`Trial.asked`."""
    result: dict[str, Any]
    seconds: float
    machine: str
    """Processor, cores, the GPU where one was used, and versions."""
    load: float
    """Of the machine in the minute before its end: above the number of cores, times are too long."""


class Records:
    """All records of one file, in the order in which they were made."""

    def __init__(self, path: Path) -> None:
        """Read `path`, if it is there. Raises `DataError`."""
        self._path = path
        self._all = list(_read(path))
        self._newest = {(record.data, digest(record.asked)): record for record in self._all}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._all)

    def done(self, key: str) -> bool:
        """Whether there is a result with this key."""
        return any(record.key == key for record in self._all)

    def newest(self, asked: dict[str, Any]) -> Record | None:
        """The last result of a trial on the data that was studied last, whatever code made it."""
        return self._newest.get((self._all[-1].data, digest(asked))) if self._all else None

    def add(self, record: Record) -> None:
        """Keep a result, and of others of a trial on the same data and machine the newest. Raises `SetupError`."""
        kept: dict[tuple[str, str, str], Record] = {}
        for each in (*self._all, record):
            name = each.data, digest(each.asked), each.machine
            kept.pop(name, None)  # the newest stand last
            kept[name] = each
        self._all = list(kept.values())
        self._newest[record.data, digest(record.asked)] = record
        write(self._path, _lines(self._all))


def _lines(records: Sequence[Record]) -> bytes:
    return "".join(json.dumps(asdict(record), sort_keys=True) + "\n" for record in records).encode()


def _read(path: Path) -> Iterator[Record]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read ({error})", "Restore it with git, or move it away") from error
    kind, mend = TypeAdapter(Record), "Delete that line, whose trial then runs again, or restore the file with git"
    for number, line in enumerate(text.splitlines(), 1):
        yield checked(kind, line, f"{path}:{number}", "is no record of a trial", mend)


def checked(kind: TypeAdapter[Kind], text: str, where: str, problem: str, mend: str) -> Kind:
    """What JSON of such a kind holds. Raises `DataError` with the problem and the first field, or line, that has it."""
    try:
        return kind.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        said = f"{field}: {first['msg']}" if field else first["msg"]
        raise DataError(where, f"{problem} ({said})", mend) from error
