"""Bring raw files from the first source that has them, each verified against its SHA-256.

A file that is there and right is left alone. A source that fails is reported in one line and the next one is tried;
when all have failed, one `SourceError` names them. Two runs may fetch at once: the second waits and finds
the files there.
The kinds of sources are in `data.sources`, what is in the files in `data.idx`.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from resflow.data.sources import Download, Failed, Source, create
from resflow.errors import SourceError
from resflow.files import explained, partial, sha256
from resflow.params import RawFile

__all__ = ["fetch"]

CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
TIMEOUT = 5.0
"""Seconds without a byte after which a source counts as stalled."""


def fetch(
    files: Iterable[RawFile],
    sources: Sequence[str],
    into: Path,
    downloads: Path,
    *,
    root: Path,
    s3: Download | None = None,
    say: Callable[[str], None] = print,
    timeout: float = TIMEOUT,
) -> None:
    """Make `into` hold all of `files`, raw. Raises `SourceError`, or `SetupError` when writing fails.

    Half-finished downloads and the lock lie in `downloads`; relative local sources lie under `root`; `s3` copies an
    s3:// object to a path; `say` gets one line for each thing that a reader should know.
    """
    for folder in (into, downloads):
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_alone(downloads / "fetch.lock", say))
        known = [create(text, root, downloads, stack, s3=s3, timeout=timeout) for text in sources]
        gone: dict[Source, str] = {}
        for file in files:
            if sha256(into / file.name) == file.sha256:  # one that cannot be read is replaced
                say(f"{file.name}: already there")
            else:
                _fetch_one(file, known, gone, into, say)
        for part in downloads.glob("*.part"):  # begun at sources that another one stood in for
            part.unlink(missing_ok=True)


def _fetch_one(
    file: RawFile, sources: Sequence[Source], gone: dict[Source, str], into: Path, say: Callable[[str], None]
) -> None:
    reasons = []
    for source in sources:
        if source in gone:
            reasons.append(f"{source.name} {gone[source]}")
            continue
        try:
            _take(file, source, into / file.name)
        except Failed as failure:
            say(f"{file.name}: {source.name} {failure.reason}")
            reasons.append(f"{source.name} {failure.reason}")
            if failure.gone:
                gone[source] = failure.reason
        else:
            say(f"{file.name}: fetched from {source.name}")
            return
    mend = "Check the network, or put the files in a folder and name it in data.sources of params.yaml"
    raise SourceError(file.name, f"no source gave it: {'; '.join(reasons)}", mend)


def _take(file: RawFile, source: Source, target: Path) -> None:
    """Write the first right offer of `source` to `target`. Raises `Failed` with what was wrong with the last one."""
    failure = Failed("offers nothing")
    with closing(source.offers(file.name)) as offers:
        for offer in offers:
            try:
                _install(offer, file, target)
                return
            except Failed as error:
                failure = error
    raise failure


def _install(offer: Path, file: RawFile, target: Path) -> None:
    """Unpack `offer` to `target` if what comes out is right."""
    found = hashlib.sha256()
    with explained(target):
        try:
            with partial(target).open("wb") as out:
                for chunk in _unpacked(offer):
                    found.update(chunk)
                    out.write(chunk)
            if found.hexdigest() != file.sha256:
                problem = f"gives a wrong {file.name}: SHA-256 {found.hexdigest()[:12]}..., not {file.sha256[:12]}..."
                raise Failed(problem)
            os.replace(partial(target), target)  # noqa: PTH105
        finally:
            partial(target).unlink(missing_ok=True)


def _unpacked(offer: Path) -> Iterator[bytes]:
    """The raw bytes of `offer`, which tells by its first bytes whether it is gzipped: servers unpack on their own."""
    try:
        with offer.open("rb") as file:
            zipped = file.read(len(GZIP)) == GZIP
        with gzip.open(offer) if zipped else offer.open("rb") as content:
            while chunk := content.read(CHUNK):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Failed(f"gives a damaged gzip file ({error})") from error
    except OSError as error:
        raise Failed(f"gives a file that cannot be read ({error.strerror})") from error


@contextmanager
def _alone(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of `path`, which ends with the process however it ends."""
    lock = FileLock(path)
    with explained(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("another run is fetching; waiting for it")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
