"""Checkpoints of one run: files that appear whole or not at all, read only if their own digests agree.

    keeper = Keeper(LocalFolder(path), device="cpu", steps=0, seconds=10)
    state = latest(LocalFolder(path), "cpu") or State()

The last two are kept, so that a damaged one costs an interval and not the run. Each is of a type of device, and is
passed over on another: a run begun on a GPU and gone on with on a CPU would have the bits of neither. Where they lie is
a `Folder`: on a disk here, in an object store in `remote`. What belongs into one is `loop.State`.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Protocol, Self

import torch

from resflow.errors import ResflowError, StoreError, StoreUnavailable
from resflow.files import explained, write_together
from resflow.training.loop import Epoch, State
from resflow.training.stop import LEAVE_SECONDS

__all__ = ["SUFFIX", "Folder", "Keeper", "LocalFolder", "decode", "latest", "latest_bytes", "tell"]

FORMAT = b"resflow-state-2\n"  # raise when the layout changes; others are passed over
SUFFIX = ".pt"
KEPT = 2
PATIENCE, PAUSE = 15.0, 1.0
"""Seconds within which a store that does not answer is tried again, and between two tries: it may be started anew
meanwhile. Less than after which the lease of a run is given up where it could not be renewed (`stages.runs`)."""


def tell(line: str) -> None:
    """Print it on standard error, for whoever reads along."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class Folder(Protocol):
    """Where the checkpoints of one run lie."""

    def names(self) -> list[str]:
        """The files there; none where the folder is missing."""

    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError`, another `OSError` for a damaged file, or `ResflowError`."""

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all. Raises `ResflowError`, of which `StoreUnavailable` may pass."""

    def delete(self, name: str) -> None:
        """Whether or not it is there. Raises `ResflowError`."""


class LocalFolder:
    """A folder on this machine, or on a file system that all share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        """The files there."""
        return [path.name for path in self._path.glob("*")]

    def read(self, name: str) -> bytes:
        """The content of one."""
        return (self._path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """See it on the disk before it has its name."""

        def written(file: BinaryIO) -> None:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

        write_together({self._path / name: written})

    def delete(self, name: str) -> None:
        """Remove one."""
        with explained(self._path / name):
            (self._path / name).unlink(missing_ok=True)


class Stop(Protocol):
    """Whether the run is to end early, of which the first worker's `Keeper` asks."""

    def asked(self) -> bool:
        """Whether a last checkpoint is waited for."""

    def kept(self) -> None:
        """It is kept, or cannot be: the run may end here, by what this raises."""


class NeverStops:
    """For a run that ends early by being cut short."""

    def asked(self) -> bool:
        """Never."""
        return False

    def kept(self) -> None:
        """Go on."""


class Keeper:
    """Keeps a checkpoint every `steps` steps and every `seconds` seconds, 0 meaning never, and whenever told to.

    Training goes on while one is written, in another thread, and `seconds` count from when it is: one that is due by
    them never waits for a slow store. Any other waits for the one before it; an error of writing is raised by the next
    call. As a context it closes at the end; what ends it early is raised, and not what became of a checkpoint
    then, which is waited for only a moment. `say` is told of a store that does not answer. Once `stop` is asked for, a
    last one is due.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        device: str,
        steps: int,
        seconds: float,
        say: Callable[[str], None] = tell,
        stop: Stop = NeverStops(),  # noqa: B008  # it has no state
    ) -> None:
        self._folder, self._device, self._steps, self._seconds = folder, device, steps, seconds
        self._say, self._stop = say, stop
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._leaving = threading.Event()
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.close()
            return
        self._leaving.set()
        if self._writing:
            with suppress(ResflowError, TimeoutError):
                self._writing.result(LEAVE_SECONDS)
        self._pool.shutdown(wait=False)

    def due_by_steps(self, step: int) -> bool:
        """Whether `steps` divide `step`."""
        return self._steps > 0 and step % self._steps == 0

    def due_by_time(self) -> bool:
        """Whether `seconds` have passed since the last one was written."""
        free = self._writing is None or self._writing.done()
        return self._seconds > 0 and free and time.monotonic() - self._last >= self._seconds

    def stops(self) -> bool:
        """Whether the run is to end early."""
        return self._stop.asked()

    def keep(self, state: State) -> None:
        """Write `state` in the background; where the run is to end early, be done with it."""
        if self._stop.asked():
            self._leaving.set()
            try:
                self._begin(state)
                self.wait()
                self._say(f"step {state.step} is kept, to go on from")
            except ResflowError as error:  # no reason to end otherwise than by the stop
                self._say(f"step {state.step} is not kept: {error}")
            finally:
                self._writing = None  # it has been waited for
            self._stop.kept()
            return
        self._begin(state)

    def _begin(self, state: State) -> None:
        self.wait()
        self._writing = self._pool.submit(self._write, state)

    def wait(self) -> None:
        """Return once all is written. Raises what writing raised."""
        if self._writing:
            self._writing.result()

    def close(self) -> None:
        """Wait, and end the thread. Raises what writing raised."""
        try:
            self.wait()
        finally:
            self._leaving.set()
            # a signal may have come, for which a store that hangs is not waited for
            self._pool.shutdown(wait=not self._writing or self._writing.done())

    def _write(self, state: State) -> None:
        name, content = _name(state, self._device), _encode(state)
        last, tried = time.monotonic() + PATIENCE, False
        while True:
            try:
                self._place(name, content)
                self._last = time.monotonic()
                return
            except StoreError as error:
                # one that starts refuses keys for a moment, until it knows them
                may_pass = tried or isinstance(error, StoreUnavailable)
                if not may_pass or time.monotonic() > last or self._leaving.wait(PAUSE):
                    raise
                if not tried:
                    self._say(f"a checkpoint is tried again for {PATIENCE:g} s: {error}")
                tried = True

    def _place(self, name: str, content: bytes) -> None:
        self._folder.write(name, content)
        # One ahead is damaged, or of a process that has taken this run over. The former counts once it is passed, until
        # the next is written.
        older = [other for other in _newest_first(self._folder.names(), self._device) if other <= name]
        for other in older[KEPT:]:
            self._folder.delete(other)


def latest(folder: Folder, device: str) -> State | None:
    """The state of the newest whole checkpoint; None where there is none. A damaged one is passed over and told of."""
    content = latest_bytes(folder, device)
    return decode(content) if content else None


def latest_bytes(folder: Folder, device: str, say: Callable[[str], None] = tell) -> bytes | None:
    """The newest checkpoint that is whole, as it lies there. `say` is told of those that are passed over."""
    names = folder.names()
    for name in _newest_first(names, device):
        try:
            content = folder.read(name)
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError:
            content = b""
        if _is_whole(content):
            return content
        say(f"{folder}/{name} is damaged or of another version: the checkpoint before it is used")
    if others := [name for name in names if name.endswith(SUFFIX) and not name.endswith(f".{device}{SUFFIX}")]:
        problem = f"{folder}/{max(others)} is not gone on from, which was trained on another type of device"
        say(f"{problem}: on {device} this run begins anew")
    return None


def decode(content: bytes) -> State:
    """The state in a whole checkpoint."""
    body = io.BytesIO(content[len(FORMAT) + 32 :])
    fields = torch.load(body, weights_only=True, map_location="cpu")
    return State(**{**fields, "history": [Epoch(**epoch) for epoch in fields["history"]]})


def _encode(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save({**vars(state), "history": [asdict(epoch) for epoch in state.history]}, buffer)
    content = buffer.getvalue()
    return FORMAT + hashlib.sha256(content).digest() + content


def _is_whole(content: bytes) -> bool:
    head, digest, body = content[: len(FORMAT)], content[len(FORMAT) : len(FORMAT) + 32], content[len(FORMAT) + 32 :]
    return head == FORMAT and hashlib.sha256(body).digest() == digest


def _name(state: State, device: str) -> str:
    # after validation an epoch's last step is another state
    return f"{state.step:09d}-{len(state.history):05d}.{device}{SUFFIX}"


def _newest_first(names: list[str], device: str) -> list[str]:
    return sorted((name for name in names if name.endswith(f".{device}{SUFFIX}")), reverse=True)
