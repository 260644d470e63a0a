"""What workers on other hosts share without a shared file system: checkpoints and prepared arrays in an S3 bucket.

    folder = storage.folder(name)             # a `checkpoint.Folder`
    storage.send(arrays)                      # the driver, before training
    path = storage.fetch(arrays, cache)       # each node, once

Arrow's file system is used, which Ray Train brings along; publishing releases is `resflow.storage`.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from resflow.data.shards import ANEW, Shard
from resflow.errors import DataError, StoreError, StoreUnavailable
from resflow.files import explained, partial, sha256

if TYPE_CHECKING:
    from resflow.training.checkpoint import Folder

__all__ = ["DONE", "KEPT_DAYS", "LOCK", "RUN", "Arrays", "Bucket", "BucketFolder", "mark"]

CHUNK = 1 << 22
KEPT_DAYS = 7.0
"""What nobody has touched for so long is given up: checkpoints of a run, and arrays beyond the project."""
RUN = re.compile(r"[0-9a-f]{16}")
"""Names of runs and arrays; whatever else lies beside them is not ours to remove."""
PASSING = re.compile("NETWORK_CONNECTION|REQUEST_TIMEOUT|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|HTTP status 5")
"""What Arrow's errors hold where the store does not answer, or says that it cannot now."""
REFUSED = re.compile("ACCESS_DENIED|ACCESS_KEY_ID|SIGNATURE|_TOKEN|(Expired|Invalid)Token|_CLIENT|HTTP status 403")
"""What they hold where the store refuses the keys, or what these may do."""
SILENT_SECONDS = 10.0
"""Without a byte for so long a request is given up, of which Arrow makes three: who waits for them hears no signal."""
LOCK = "lock"
"""A file of each run's folder, or an object there, which whoever trains the run holds: `stages.runs`."""
DONE = "done"
"""A file of a finished run's folder, which says what it has made: `stages.runs`."""
MARK = "run-"
"""How a file of a run's folder begins which says what arrays it needs. The rest is drawn for each start: a worker that
does not see it does not share the folder, though an earlier run may have left one on that worker's own disk."""


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Prepared arrays, known by their content."""

    folder: Path
    """Where the driver has them; a worker that finds the same there takes them from there."""
    digests: Mapping[str, str]
    """SHA-256 of each file, by its name within the folder."""
    streamed: Mapping[str, Shard] = field(default_factory=dict)
    """Each file that is read from where it lies, piece by piece; one of the others lists them."""

    @property
    def key(self) -> str:
        """One name for all of them."""
        return hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()[:16]

    def whole(self, folder: Path) -> bool:
        """Whether `folder` holds exactly these."""
        with suppress(OSError):
            sizes = all((folder / name).stat().st_size == shard.size for name, shard in self.streamed.items())
            return sizes and all(sha256(folder / name) == digest for name, digest in self.digests.items())
        return False


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A prefix in an S3-compatible bucket. None leaves a setting to the environment of each node."""

    url: str
    """`s3://BUCKET/PREFIX`."""
    endpoint: str | None
    access_key: str | None
    secret_key: str | None
    session_token: str | None
    region: str | None

    def __repr__(self) -> str:  # the secret must not reach logs or Ray's dashboard
        return f"Bucket({self.url!r}, endpoint={self.endpoint!r})"

    def filesystem(self) -> Any:
        """As Ray Train and Arrow take it."""
        from pyarrow.fs import S3FileSystem

        options: dict[str, Any] = {"access_key": self.access_key, "secret_key": self.secret_key}
        options |= {"session_token": self.session_token, "region": self.region}
        if self.endpoint:
            scheme, _, host = self.endpoint.partition("://")
            options |= {"scheme": scheme, "endpoint_override": host.rstrip("/")}
        given = {key: value for key, value in options.items() if value is not None}
        return S3FileSystem(**given, connect_timeout=5, request_timeout=SILENT_SECONDS)

    @property
    def path(self) -> str:
        """`BUCKET/PREFIX`."""
        parts = urlsplit(self.url)
        return f"{parts.netloc}{parts.path}".rstrip("/")

    def folder(self, name: str) -> BucketFolder:
        """The folder of one run."""
        return BucketFolder(self, name)

    def arrays(self, arrays: Arrays) -> BucketFolder:
        """Where they lie here."""
        return self.folder(f"arrays/{arrays.key}")

    def check(self, name: str) -> None:
        """Write and remove a small object. Raises `StoreError`."""
        probe = self.folder(name)
        probe.write("probe", b"resflow")
        probe.delete("probe")

    def send(self, arrays: Arrays) -> None:
        """Upload what is not there yet. Raises `StoreError`, or `DataError` for a file that was not prepared so."""
        folder = self.arrays(arrays)
        folder.write("used", b"")  # first: whoever removes what is old sees that it is needed
        there = folder.sizes()
        digests = {**arrays.digests, **{name: shard.sha256 for name, shard in arrays.streamed.items()}}
        for name, digest in sorted(digests.items()):
            path = arrays.folder / name
            # by its size too: Arrow ends an upload that was interrupted as if it were whole
            if path.exists() and there.get(name) == path.stat().st_size:
                continue
            if sha256(path) != digest:  # nobody could mend in the store what was sent damaged
                raise DataError(str(path), "is missing, or not what was prepared", ANEW)
            with self.translated(self.url):
                folder.copy_in(path, name)

    def fetch(self, arrays: Arrays, cache: Path) -> Path:
        """A folder on this node that holds `arrays` but for what is streamed: downloaded once, verified, kept.

        Raises `DataError`, `StoreError`, or `SetupError` where this node cannot write it.
        """
        folder, remote = cache / arrays.key, self.arrays(arrays)
        with explained(folder):
            for name in ("lock", *arrays.digests):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):  # workers of one node come at once
                for name, digest in arrays.digests.items():
                    if sha256(folder / name) == digest:
                        continue
                    beside = partial(folder / name)
                    try:
                        remote.copy_out(name, beside)
                        if sha256(beside) != digest:
                            mend = "Delete it in the store and run again: it is sent anew"
                            raise DataError(f"{self.url}/arrays/{arrays.key}/{name}", "is damaged", mend)
                        beside.replace(folder / name)
                    finally:
                        beside.unlink(missing_ok=True)
                os.utime(folder / "lock")
        _clean(cache)
        return folder

    def clean(self, name: str, keep: str, days: float = KEPT_DAYS) -> None:
        """Remove finished runs, of `name` all but the file `keep`, and what nobody has touched for `days`.

        Where `name` has a file `DONE`, it stays, and it is others that have one which go, unless somebody holds them.

        Arrays stay as long as a run that is left needs them. Raises `StoreError`.
        """
        oldest = time.time() - days * 86400
        if DONE not in self.folder(name).names():
            self.folder(name).remove(keep)
        needed = set()
        for run in set(self._below("")) - {name}:
            folder = self.folder(run)
            names = folder.names()
            if (DONE in names and LOCK not in names) or folder.touched() < oldest:
                folder.remove()
                continue
            for file in names:
                if file.startswith(MARK):
                    with suppress(FileNotFoundError):  # that run has been started anew, and names them by another
                        needed.add(folder.read(file).decode())
        for key in set(self._below("arrays")) - needed:
            folder = self.folder(f"arrays/{key}")
            if folder.touched() < oldest:
                folder.remove()

    @contextmanager
    def translated(self, where: str, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
        """Arrow's errors are `OSError`, which for an object store means the store. Errors name it and `where`."""
        try:
            yield
        except but:
            raise
        except OSError as error:
            reason = " ".join(str(error).split())[:300]
            mend = "See that AWS_ENDPOINT_URL_S3 is right and the bucket exists (`resflow doctor`), then run again"
            if REFUSED.search(reason):
                mend = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may list, read and write there"
            kind = StoreUnavailable if PASSING.search(reason) else StoreError
            store = f" at {self.endpoint}" if self.endpoint else ""
            problem = f"cannot be used for checkpoints and data of workers{store} ({reason})"
            raise kind(where, problem, mend) from error

    def _below(self, prefix: str) -> list[str]:
        """The runs, or the arrays, that have something there."""
        return [name for name in self.folder(prefix).folders() if RUN.fullmatch(name)]


def mark(folder: Folder, arrays: Arrays) -> str:
    """Say in a run's folder what it needs; returns by what name. Raises `ResflowError`."""
    for name in folder.names():
        if name.startswith(MARK):
            folder.delete(name)
    name = MARK + secrets.token_hex(8)
    folder.write(name, arrays.key.encode())
    return name


class BucketFolder:
    """The checkpoints of one run, or any few files, as objects: each appears whole, as S3 promises."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket, self._path, self._fs = bucket, f"{bucket.path}/{name}".rstrip("/"), bucket.filesystem()

    def __str__(self) -> str:
        return f"s3://{self._path}"

    def names(self) -> list[str]:
        """The objects there."""
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Bytes of each object there, by its name below the folder."""
        return {info.path.removeprefix(f"{self._path}/"): info.size for info in self._listed() if info.is_file}

    def folders(self) -> list[str]:
        """Those that have something in them."""
        return [info.base_name for info in self._listed(recursive=False) if not info.is_file]

    def read(self, name: str) -> bytes:
        """The content of one. Raises `FileNotFoundError`, or `StoreError`: a store out of reach has lost nothing."""
        where = f"{self._path}/{name}"
        with self._bucket.translated(str(self), but=FileNotFoundError), self._fs.open_input_file(where) as file:
            return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """Write one, whole or not at all. Raises `StoreError`."""
        with self._bucket.translated(str(self)), self._fs.open_output_stream(f"{self._path}/{name}") as file:
            file.write(content)

    def delete(self, name: str) -> None:
        """Remove one, whether or not it is there."""
        with self._bucket.translated(str(self)), suppress(FileNotFoundError):
            self._fs.delete_file(f"{self._path}/{name}")

    def touched(self) -> float:
        """When the newest object at any depth was written, in seconds since 1970; 0 where there is none."""
        return max((info.mtime.timestamp() for info in self._listed() if info.mtime), default=0.0)

    def remove(self, keep: str = "") -> None:
        """Remove all that lies there and below, but for the object `keep`."""
        with self._bucket.translated(str(self)), suppress(FileNotFoundError):
            if not keep:
                self._fs.delete_dir(self._path)
                return
            for info in self._listed(recursive=False):
                if not info.is_file:
                    self._fs.delete_dir(info.path)
                elif info.base_name != keep:
                    self._fs.delete_file(info.path)

    def _listed(self, *, recursive: bool = True) -> list[Any]:
        from pyarrow.fs import FileSelector

        with self._bucket.translated(str(self)):
            selector = FileSelector(self._path, allow_not_found=True, recursive=recursive)
            return list(self._fs.get_file_info(selector))

    def copy_in(self, path: Path, name: str) -> None:
        """Upload a file."""
        with path.open("rb") as source, self._fs.open_output_stream(f"{self._path}/{name}") as file:
            while chunk := source.read(CHUNK):
                file.write(chunk)

    def copy_out(self, name: str, path: Path) -> None:
        """Download a file. Raises `StoreError`, or `SetupError` where this node cannot write it."""
        with explained(path), path.open("wb") as file:
            file.writelines(self._chunks(name))

    def _chunks(self, name: str) -> Iterator[bytes]:
        with self._bucket.translated(str(self)), self._fs.open_input_stream(f"{self._path}/{name}") as source:
            while chunk := source.read(CHUNK):
                yield chunk


def _clean(cache: Path) -> None:
    """Remove arrays that no run has asked this node for in a week; who reads one still keeps it open."""
    for lock in cache.glob("*/lock"):
        with suppress(OSError, Timeout):  # another process was faster, or fetches it now
            if RUN.fullmatch(lock.parent.name) and time.time() - lock.stat().st_mtime > KEPT_DAYS * 86400:
                with FileLock(lock, timeout=0):
                    shutil.rmtree(lock.parent)
