"""Where unfinished runs are kept, who trains one, and when they are removed. What a checkpoint holds is `training`.

    runs = place(root, os.environ.get("RESFLOW_STORAGE"))
    with held(runs, name):      # nobody else trains this run meanwhile
        ...
        clean(runs, name)       # it is finished

In a folder the kernel holds the lock (flock, which file servers share), and frees it when its holder dies. In a bucket
it is a lease: an object that its holder writes anew every few seconds, and which others may take over once that stops,
or at once where the holder was a process of this machine that is gone.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resflow import storage
from resflow.errors import SetupError, StoreError, StoreUnavailable, TrainingError
from resflow.params import project_of
from resflow.processes import WAIT_SECONDS, alone, locked
from resflow.stages.paths import STATE
from resflow.training.checkpoint import SUFFIX, Folder
from resflow.training.remote import DONE, KEPT_DAYS, LOCK, RUN, Bucket

__all__ = ["clean", "held", "made", "place", "reopen", "settle"]

SCHEME = "[A-Za-z][A-Za-z0-9+.-]*:/"
"""How an address begins: a folder of that name is none that anybody wants."""
RENEW_SECONDS, LOST_SECONDS, FREE_SECONDS = 5.0, 20.0, 30.0
"""When a lease is renewed, when its holder gives up if that did not succeed, and when others may take it. The first is
also how long each of two tries waits for an answer about it, which is a few bytes."""
LEAVE_SECONDS = 5.0
"""How long who leaves waits for a renewal under way: a store that hangs would keep it."""


def place(root: Path, storage: str | None) -> Path | Bucket:
    """Where checkpoints lie: `storage`, a folder or an `s3://` prefix, or else the project itself.

    Work trees of `resflow run --set` and of `dvc exp run --temp` lie within their project, and end with their command:
    their checkpoints lie with the project, where the same command finds them after a kill, and so does a relative
    folder. Raises `StoreError`.
    """
    if not re.match(SCHEME, storage or ""):
        return (project_of(root) / (storage or STATE / "runs")).resolve()
    return Bucket(
        url=_checked(str(storage)),
        endpoint=_endpoint(),
        access_key=os.environ.get("AWS_ACCESS_KEY_ID"),
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        session_token=os.environ.get("AWS_SESSION_TOKEN") or None,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    )


def _checked(url: str) -> str:
    if not re.match("s3://[^/]", url):
        problem = "is neither a folder nor s3://BUCKET/PREFIX"
        raise StoreError(f"RESFLOW_STORAGE={url}", problem, "Set it to one of them, or unset it; see docs/cluster.md")
    return url


def _endpoint() -> str | None:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or None
    if url:
        storage.check_address(url)
    return url


def made(folder: Folder) -> str:
    """What the run has made, where it was settled; else empty."""
    return folder.read(DONE).decode() if DONE in folder.names() else ""


def settle(folder: Folder, made: str) -> None:
    """Note what a finished run has made: its checkpoints stay until another run is finished.

    As long as DVC has not recorded the result, a kill would cost all of it, and so would an edit of its parameters.
    """
    try:
        folder.write(DONE, made.encode())
    except (SetupError, StoreError) as error:  # as in `clean`
        print(f"the last checkpoint goes: {error}", file=sys.stderr)


def reopen(folder: Folder, *, anew: bool) -> None:
    """Have a run that was settled, which we hold, go on from its last checkpoint, or `anew`."""
    for name in folder.names() if anew else ():
        if name.endswith(SUFFIX):
            folder.delete(name)
    folder.delete(DONE)  # last: until then it is no run that is under way


def clean(runs: Path | Bucket, name: str) -> None:
    """Remove the checkpoints of finished runs, and of those that nobody has touched for a week.

    The run `name`, which we hold, is finished, but stays where it was settled: then others that were go.
    """
    if isinstance(runs, Bucket):
        try:
            runs.clean(name, keep=LOCK)
        except StoreError as error:  # the model is made: that is worth a line, and no failure
            print(f"old checkpoints stay where they are: {error}", file=sys.stderr)
        return
    if not (runs / name / DONE).exists():
        shutil.rmtree(runs / name, ignore_errors=True)
    for folder in runs.glob("*/"):
        with suppress(OSError):  # another process was faster
            # each new checkpoint touches its folder; one that was written after the end has brought no lock with it
            is_over = (folder / DONE).exists() or time.time() - folder.stat().st_mtime > KEPT_DAYS * 86400
            if RUN.fullmatch(folder.name) and folder.name != name and is_over:
                with (folder / LOCK).open("a") as file:
                    if locked(file):
                        shutil.rmtree(folder)
    with suppress(OSError):  # other runs lie there
        runs.rmdir()


@contextmanager
def held(runs: Path | Bucket, name: str, wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Keep others from training this run until this process is done or dead.

    Raises `TrainingError` where another process trains it for `wait` more seconds, or, in a bucket, seems to live; with
    0 at once, with `math.inf` never. Raises `StoreError`, and `StoreUnavailable` where a lease was lost meanwhile, of
    which SIGTERM tells this process: its handler must raise `SystemExit`.
    """
    if isinstance(runs, Bucket):
        runs.check(name)
        lease = Lease(runs, f"{runs.url.rstrip('/')}/{name}/{LOCK}")
        lease.take(wait=wait)
        try:
            yield
        except SystemExit as error:
            if not lease.is_lost:
                raise
            problem = "could not be renewed, and another process may train this run now"
            raise StoreUnavailable(lease.url, problem, "See that the store answers, and run again to go on") from error
        finally:
            lease.leave()
    else:
        with alone(runs / name / LOCK, "trains this run", wait):
            yield


class Lease:
    """An object in a bucket that says who trains a run, and by being renewed that they are alive."""

    def __init__(
        self,
        bucket: Bucket,
        url: str,
        *,
        renew: float = RENEW_SECONDS,
        lost: float = LOST_SECONDS,
        free: float = FREE_SECONDS,
    ) -> None:
        self.url, self._renewed_every, self._lost_after, self._free_after = url, renew, lost, free
        # keys are those of the environment, which boto3 finds as Arrow does
        self._s3 = storage.client(storage.Endpoint(bucket.endpoint, region=bucket.region), read_seconds=RENEW_SECONDS)
        self._mark, self._count, self._etag = secrets.token_hex(8), 0, ""
        self.is_lost = False
        self._done = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def take(self, *, wait: float = WAIT_SECONDS) -> None:
        """Return once it is ours. Raises `TrainingError` where its holder lives, or may live, `StoreError`.

        With a `wait` of 0, who has renewed it of late is taken to live; else that is looked for, however long it takes.
        With `math.inf`, one that lives is waited for.
        """
        first: str | None = None
        told = False
        while True:
            seen = storage.look(self._s3, self.url)
            if seen is None or seen.age > self._free_after or _is_gone(seen.content):
                if etag := storage.replace(self._s3, self.url, self._content(), seen and seen.etag):
                    self._etag = etag
                    self._renewing.start()
                    return
                continue
            renewed = first not in (None, seen.etag)
            if not wait or (renewed and wait < math.inf):
                problem = f"another process trains this run: {_told(seen.content)}"
                raise TrainingError(self.url, problem, "Wait for it or end it, then run again")
            if first is None:
                print(
                    f"looking whether {_told(seen.content)}, which trained this run, lives", file=sys.stderr, flush=True
                )
            elif renewed and not told:
                print(f"waiting for {_told(seen.content)}, which trains this run", file=sys.stderr, flush=True)
                told = True
            first = seen.etag
            time.sleep(1)

    def leave(self) -> None:
        """Let it go, so that the next one need not wait."""
        self._done.set()
        self._renewing.join(LEAVE_SECONDS)
        if self._renewing.is_alive():  # the lease ends by itself
            return
        with suppress(StoreError):  # as above
            if self._etag_of_ours():
                storage.remove(self._s3, self.url)
                storage.remove(self._s3, self.url.removesuffix(LOCK))  # the object by which Arrow keeps empty folders

    def _content(self) -> bytes:
        self._count += 1  # each is another object, with an ETag of its own
        holder = {"machine": _machine(), "host": os.uname().nodename, "pid": os.getpid(), "start": _start(os.getpid())}
        return json.dumps({**holder, "mark": self._mark, "count": self._count}).encode()

    def _renew(self) -> None:
        last = time.monotonic()
        while not self._done.wait(self._renewed_every):
            lost = threading.Timer(max(0.0, last + self._lost_after - time.monotonic()), self._lost)
            lost.daemon = True
            lost.start()
            began = time.monotonic()
            with suppress(StoreError):  # it is tried again
                etag = storage.replace(self._s3, self.url, self._content(), self._etag) or self._etag_of_ours()
                if etag is None:
                    lost.cancel()
                    self._lost()
                    return
                self._etag, last = etag, began
            lost.cancel()

    def _etag_of_ours(self) -> str | None:
        """Of what we wrote, where the store's answer to that was lost."""
        seen = storage.look(self._s3, self.url)
        return seen.etag if seen and self._mark.encode() in seen.content else None

    def _lost(self) -> None:
        self.is_lost = True
        print(f"{self.url} could not be renewed: another process may train this run now", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)  # the stage unwinds and says how to go on


def _told(content: bytes) -> str:
    """The holder, for people."""
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"


def _is_gone(content: bytes) -> bool:
    """Whether the holder was a process of this machine and is no more."""
    try:
        holder = json.loads(content)
        return bool(holder["machine"] == _machine() and holder["start"] != _start(int(holder["pid"])))
    except (ValueError, KeyError, TypeError):
        return False


def _machine() -> str:
    """This boot of this machine, and the namespace in which process ids count."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return secrets.token_hex(8)  # no Linux: nobody's


def _start(pid: int) -> str | None:
    """When a living process began, in ticks since boot (proc(5), field 22 of stat): its id alone may be another's."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
