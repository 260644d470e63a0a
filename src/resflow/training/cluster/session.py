"""Ray for as long as a run needs it: started on this machine, or a cluster that is joined.

Signals stay those of the run meanwhile, and at the end nothing of Ray is left here.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from resflow.data import shards
from resflow.errors import SetupError, TrainingError
from resflow.files import home
from resflow.training.cluster.address import check_address, token_path
from resflow.training.cluster.reader import store_bytes
from resflow.training.job import Job
from resflow.training.remote import Bucket

__all__ = ["connected", "prepare", "started"]


@contextmanager
def connected(job: Job, address: str | None) -> Iterator[None]:
    """Ray for trainings of a study, which are functions of their own: here, or the cluster at `address`.

    The nodes of a cluster find the arrays where `job.runs` says. Raises `TrainingError`, `SetupError` or `StoreError`.
    """
    address = prepare(job, address)
    with started(job, address):
        yield


def prepare(job: Job, address: str | None) -> str | None:
    """What is to be there before Ray is: for workers elsewhere a cluster that answers, and the arrays in the bucket.

    Returns the cluster's address; None stands for Ray on this machine, for the run, which `local` asks for, too.
    Raises `TrainingError`, `SetupError` or `StoreError`.
    """
    if address == "local":
        address = None
    home()  # which Ray asks for when it is imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address:
        check_address(address)
        _prepare_to_join()
        if isinstance(job.runs, Bucket):
            job.runs.send(job.arrays)
    return address


@contextmanager
def started(job: Job, address: str | None) -> Iterator[str]:
    """Ray on this machine, or the cluster at `address`, for as long as it is needed; where its dashboard is, or "".

    Raises `TrainingError`, or `SetupError` where Ray cannot write its files.
    """
    import ray
    from ray.exceptions import AuthenticationError, RayError

    import resflow

    options: dict[str, Any] = {}
    if address:
        options["runtime_env"] = {"py_modules": [str(Path(resflow.__file__).parent)]}
    elif job.loader == "stream":  # else a third of the machine's memory; a cluster's is for those who start it
        index = shards.load(job.arrays.folder / "train")
        options["object_store_memory"] = store_bytes(index.file_bytes, job.train.workers[1])
    logging.getLogger("ray._private.authentication.authentication_token_setup").addFilter(_is_news)
    try:
        with nullcontext() if address else _unheard(signal.SIGTERM), _handler_kept(signal.SIGTERM):
            try:
                context = ray.init(
                    address=address or "local",
                    log_to_driver=False,
                    include_dashboard=False,
                    logging_level=logging.WARNING,
                    **options,
                )
            except (AuthenticationError, OSError, RayError, RuntimeError, ValueError) as error:  # the last: port < 1024
                raise _no_entry(address, error) from error
        yield context.dashboard_url or ""
    finally:
        _kill_helpers(Path(ray.__file__).parent)
        ray.shutdown()


@contextmanager
def _handler_kept(number: signal.Signals) -> Iterator[None]:
    """Put the handler of a signal back at the end: Ray's, by then in its place, aborts the process on the spot.

    While Ray starts, it answers SIGTERM by `SystemExit` with codes of its own.
    """
    handler = signal.getsignal(number)
    try:
        yield
    except SystemExit:
        signal.signal(number, handler)
        signal.raise_signal(number)
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)


@contextmanager
def _unheard(number: signal.Signals) -> Iterator[None]:
    """This thread, and processes that it starts, do not hear the signal; the thread does at the end.

    Where all processes of a run are sent SIGTERM at once, Ray's would end before the workers have kept a checkpoint.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _kill_helpers(folder: Path) -> None:
    """End what this process has of Ray in Python: `ray.shutdown` would wait a second for each to hear SIGTERM.

    So it does for the two others, which it needs to leave them.
    """
    import psutil

    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended
            if any(Path(word).suffix == ".py" and Path(word).is_relative_to(folder) for word in child.cmdline()):
                child.kill()


def _is_news(record: logging.LogRecord) -> bool:
    """Not that a cluster of this machine's own asks for the token that Ray has made for it."""
    return not record.getMessage().startswith("Token authentication is enabled")


def _prepare_to_join() -> None:
    """Settings for joining a cluster that Ray reads once, when it is imported."""
    if os.environ.get("RAY_AUTH_TOKEN") or token_path().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # else a driver that joins a cluster keeps its token to itself
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")  # seconds until a wrong token is told; 20 by default


def _no_entry(address: str | None, error: BaseException) -> TrainingError | SetupError:
    """Why Ray did not start, or its cluster did not let this machine in."""
    if isinstance(error, OSError) and error.filename:
        at_home = Path(error.filename).is_relative_to(home())
        mend = "Set HOME to a folder that can be written to" if at_home else "Check the disk and the permissions there"
        return SetupError(str(error.filename), f"Ray cannot write it ({error.strerror})", mend)
    where = f"RAY_ADDRESS={address}" if address else "train.num_workers"
    reasons: list[str] = []
    link: BaseException | None = error
    while link:
        reasons.append(str(link))
        link = link.__cause__ or link.__context__
    if any("AuthToken" in reason or "authentication token" in reason for reason in reasons):
        problem = "the cluster refused this machine's token, which is missing or not the cluster's"
        mend = "Put the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token; see docs/cluster.md"
        return TrainingError(where, problem, mend)
    first = reasons[0].strip().partition("\n")[0]
    mend = (
        "Write it like 10.0.0.5:6379 and start the cluster, or unset it"
        if address
        else "Set it to 1, or look into /tmp/ray/session_latest/logs"
    )
    return TrainingError(where, f"Ray does not start here ({first})", mend)
