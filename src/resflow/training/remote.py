"""What workers on other hosts share without a shared file system: checkpoints and prepared arrays in an S3 bucket.

    folder = storage.folder(name)             # a `checkpoint.Folder`
    storage.send(arrays)                      # the driver, before training
    path = storage.fetch(arrays, cache)       # each node, once

Arrow's file system is used, which Ray Train brings along; publishing releases is `resflow.storage`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from resflow.errors import DataError, StoreError
from resflow.files import explained, partial

__all__ = ["Arrays", "Bucket", "BucketFolder"]

CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Prepared arrays, known by their content."""

    folder: Path
    """Where the driver has them; a worker that finds the same there takes them from there."""
    digests: Mapping[str, str]
    """SHA-256 of each file, by its name."""

    @property
    def key(self) -> str:
        """One name for all of them."""
        return hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()[:16]

    def whole(self, folder: Path) -> bool:
        """Whether `folder` holds exactly these."""
        return all(_digest(folder / name) == digest for name, digest in self.digests.items())


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
        return S3FileSystem(**given, connect_timeout=5, request_timeout=30)

    @property
    def path(self) -> str:
        """`BUCKET/PREFIX`."""
        parts = urlsplit(self.url)
        return f"{parts.netloc}{parts.path}".rstrip("/")

    def folder(self, name: str) -> BucketFolder:
        """The folder of one run."""
        return BucketFolder(self, name)

    def check(self, name: str) -> None:
        """Write and remove a small object. Raises `StoreError`."""
        probe = self.folder(name)
        probe.write("probe", b"resflow")
        probe.delete("probe")

    def send(self, arrays: Arrays) -> None:
        """Upload what is not there yet. Raises `StoreError`."""
        folder = self.folder(f"arrays/{arrays.key}")
        with _translated(self.url):
            there = folder.sizes()
            for name in sorted(arrays.digests):
                path = arrays.folder / name
                # by its size too: Arrow ends an upload that was interrupted as if it were whole
                if there.get(name) != path.stat().st_size:
                    folder.copy_in(path, name)

    def fetch(self, arrays: Arrays, cache: Path) -> Path:
        """A folder on this node that holds `arrays`: downloaded once, verified, kept. Raises `DataError`."""
        folder = cache / arrays.key
        remote = self.folder(f"arrays/{arrays.key}")
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):  # workers of one node come at once
            for name, digest in arrays.digests.items():
                if _digest(folder / name) == digest:
                    continue
                with _translated(self.url):
                    remote.copy_out(name, partial(folder / name))
                if _digest(partial(folder / name)) != digest:
                    partial(folder / name).unlink()
                    mend = "Delete it in the store and run again: it is sent anew"
                    raise DataError(f"{self.url}/arrays/{arrays.key}/{name}", "is damaged", mend)
                partial(folder / name).replace(folder / name)
        return folder


class BucketFolder:
    """The checkpoints of one run, or any few files, as objects: each appears whole, as S3 promises."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket, self._path, self._fs = bucket, f"{bucket.path}/{name}", bucket.filesystem()

    def __str__(self) -> str:
        return f"s3://{self._path}"

    def names(self) -> list[str]:
        """The objects there."""
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Bytes of each object there."""
        from pyarrow.fs import FileSelector

        with _translated(str(self)):
            found = self._fs.get_file_info(FileSelector(self._path, allow_not_found=True))
            return {info.base_name: info.size for info in found}

    def read(self, name: str) -> bytes:
        """The content of one. Raises `FileNotFoundError`, or `StoreError`: a store out of reach has lost nothing."""
        where = f"{self._path}/{name}"
        with _translated(str(self), but=FileNotFoundError), self._fs.open_input_file(where) as file:
            return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """Write one, whole or not at all. Raises `StoreError`."""
        with _translated(str(self)), self._fs.open_output_stream(f"{self._path}/{name}") as file:
            file.write(content)

    def delete(self, name: str) -> None:
        """Remove one, whether or not it is there."""
        with _translated(str(self)), suppress(FileNotFoundError):
            self._fs.delete_file(f"{self._path}/{name}")

    def remove(self) -> None:
        """Remove all."""
        for name in self.names():
            self.delete(name)

    def copy_in(self, path: Path, name: str) -> None:
        """Upload a file."""
        with path.open("rb") as source, self._fs.open_output_stream(f"{self._path}/{name}") as file:
            while chunk := source.read(CHUNK):
                file.write(chunk)

    def copy_out(self, name: str, path: Path) -> None:
        """Download a file."""
        with self._fs.open_input_stream(f"{self._path}/{name}") as source, path.open("wb") as file:
            while chunk := source.read(CHUNK):
                file.write(chunk)


@contextmanager
def _translated(where: str, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Arrow's errors are `OSError`, which for an object store means the store."""
    try:
        yield
    except but:
        raise
    except OSError as error:
        reason = " ".join(str(error).split())[:300]
        mend = "See that the store answers and the bucket exists (`resflow doctor`), then run again"
        raise StoreError(where, f"cannot be used for checkpoints and data of workers ({reason})", mend) from error


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
