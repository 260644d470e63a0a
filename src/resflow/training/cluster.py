"""Ray Train around the loop: one process, several on this machine, or the nodes of a cluster.

`fit` is called by the stage `train`. One worker without `RAY_ADDRESS` runs in this process (Ray Train's local mode);
otherwise Ray places `train.num_workers` workers, here or where `RAY_ADDRESS` says. What one worker does is in `loop`.
This is the only module that imports Ray.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resflow.data import arrays
from resflow.errors import TrainingError
from resflow.nets.file import ModelCard
from resflow.params import Train
from resflow.training import checkpoint, loop

__all__ = ["Job", "fit"]

LINE = "epoch.txt"
LINES = f"checkpoint_*/{LINE}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to know; sent to it as it is."""

    train: Train
    seed: int
    card: ModelCard
    arrays: Path
    """Folder of the prepared arrays, on every node."""
    runs: Path
    """Folder that holds the checkpoints of unfinished runs, one folder a run."""
    name: str
    """The hash of all that the result depends on."""


def fit(job: Job, address: str | None) -> tuple[loop.Progress, list[float]]:
    """Train, going on from the run's last checkpoint; returns its progress and the seconds of each epoch run now.

    `address` is that of a Ray cluster (`RAY_ADDRESS`), or None. Raises `TrainingError`.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # 2 s by default, which also paces report()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if job.train.num_workers == 1 and not address:
        return _fit_here(job)
    return _fit_on_cluster(job, address)


def _fit_here(job: Job) -> tuple[loop.Progress, list[float]]:
    import logging

    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.WARNING)  # else each report is printed a second time
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # Ray's type leaves no room for the value, which local mode hands back
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=0, use_gpu=_on_gpu(job.train, torch.cuda.is_available())),
        run_config=RunConfig(name=job.name),
    )
    try:
        return trainer.fit().return_value  # type: ignore[attr-defined, no-any-return]  # Ray exports V1's type
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError("train", f"the GPU's memory is full ({error})", "Lower train.batch_size") from error


def _fit_on_cluster(job: Job, address: str | None) -> tuple[loop.Progress, list[float]]:
    if address:
        _check_reachable(address)
        _prepare_to_join()
    import logging

    import ray
    from ray.exceptions import AuthenticationError, RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local", log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING
        )
    except (AuthenticationError, ConnectionError, RayError, RuntimeError) as error:
        raise _no_entry(address, error) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's, now in its place, aborts the process on the spot
    try:
        trainer = TorchTrainer(
            _work,  # type: ignore[arg-type]  # as above; here the value stays with the workers
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=job.train.num_workers,
                use_gpu=_on_cluster_gpu(job.train, address),
                resources_per_worker={"CPU": 1},
            ),
            run_config=RunConfig(
                name=job.name,
                storage_path=str(job.runs),
                failure_config=FailureConfig(max_failures=job.train.max_failures),
            ),
        )
        _tell_if_waiting(job.train)
        with _lines_printed(job.runs / job.name):
            result = trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    finally:
        ray.shutdown()
    progress = _kept(result.checkpoint)
    if progress is None:
        raise TrainingError(str(job.runs), "the last checkpoint cannot be read", "Run the same command again")
    return progress, (result.metrics or {}).get("seconds", [])


def _tell_if_waiting(train: Train) -> None:
    """Ray waits for CPUs without end, as a cluster may grow; say so, once."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = int(resources.get("CPU", 0))
    if cpus < train.num_workers:
        problem = f"{train.num_workers} workers need a CPU each and Ray has {cpus}"
        print(f"{problem}: waiting until nodes join. Ctrl-C ends it.", file=sys.stderr)


@contextmanager
def _lines_printed(run: Path) -> Iterator[None]:
    """Meanwhile, print the line of each new checkpoint below `run`, once.

    Ray's own way, bringing all that workers print to the driver, brings its log too, and twice from shared hosts.
    """
    seen, done = set(run.glob(LINES)), threading.Event()

    def print_new() -> None:
        for path in sorted(set(run.glob(LINES)) - seen):
            line = path.read_text()
            if line.endswith("\n"):  # else it is still being copied
                seen.add(path)
                print(line, end="", flush=True)

    def watch() -> None:
        while not done.wait(0.2):
            with suppress(OSError):  # removed meanwhile
                print_new()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        with suppress(OSError):
            print_new()


def _work(config: dict[str, Job]) -> tuple[loop.Progress, list[float]]:
    """What each worker runs."""
    import ray.train

    job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    loop.prepare_torch(job.seed, job.train.threads)
    device = ray.train.torch.get_device() if job.train.device != "cpu" else torch.device("cpu")
    alone = world == 1
    seconds: list[float] = []
    progress = _last(job)
    started = time.perf_counter()
    bar = _bar(job.train, len(progress.history)) if rank == 0 else None

    def on_epoch(progress: loop.Progress) -> None:
        nonlocal started
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        line = _line(progress.history[-1], job.train, seconds[-1])
        _keep(job, progress, rank, seconds, line)
        if bar:
            bar.write(line)

    loop.train(
        job.card.network(),
        arrays.load(job.arrays, "train"),
        arrays.load(job.arrays, "validation"),
        job.card,
        job.train,
        seed=job.seed,
        device=device,
        progress=progress,
        rank=rank,
        world=world,
        wrap=(lambda net: net) if alone else _distribute(device),
        add_up=(lambda sums: sums) if alone else _add_up,
        on_step=bar.step if bar else lambda step: None,
        on_epoch=on_epoch,
    )
    if bar:
        bar.close()
    return progress, seconds


def _distribute(device: torch.device) -> Callable[[nn.Module], nn.Module]:
    from torch.nn.parallel import DistributedDataParallel

    return lambda net: DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)


def _add_up(sums: Tensor) -> Tensor:
    torch.distributed.all_reduce(sums)
    return sums


def _is_local() -> bool:
    import ray

    return not ray.is_initialized()


def _last(job: Job) -> loop.Progress:
    """Where the run stopped, or a new beginning."""
    import ray.train

    if _is_local():
        return checkpoint.load(job.runs / job.name) or loop.Progress()
    return _kept(ray.train.get_checkpoint()) or loop.Progress()


def _kept(last: Any) -> loop.Progress | None:
    """What a `ray.train.Checkpoint` holds; None where there is none, or it is damaged."""
    if last is None:
        return None
    with last.as_directory() as folder:
        return checkpoint.load(Path(folder))


def _keep(job: Job, progress: loop.Progress, rank: int, seconds: list[float], line: str) -> None:
    import ray.train

    if _is_local():
        return checkpoint.save(progress, job.runs / job.name)
    metrics = {**asdict(progress.history[-1]), "seconds": list(seconds)}
    if rank:
        return ray.train.report(metrics)  # type: ignore[no-any-return]  # untyped
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(progress, Path(folder))
        Path(folder, LINE).write_text(f"{line}\n")  # for the driver to print
        return ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))  # type: ignore[no-any-return]


class _bar:
    """A bar over the steps of each epoch on a terminal; elsewhere only the line that ends the epoch."""

    def __init__(self, train: Train, epoch: int) -> None:
        from tqdm import tqdm

        self._bar, self._train = tqdm(unit="step", leave=False, disable=None), train
        self._bar.set_description(f"epoch {epoch + 1}/{train.epochs}")

    def step(self, step: int) -> None:
        self._bar.update()

    def write(self, line: str) -> None:
        self._bar.reset(self._bar.n)
        self._bar.write(line)

    def close(self) -> None:
        self._bar.close()


def _line(epoch: loop.Epoch, train: Train, seconds: float) -> str:
    return (
        f"epoch {epoch.epoch}/{train.epochs}  loss {epoch.train_loss:.4f}  validation accuracy "
        f"{epoch.validation_accuracy:.2%}  lr {epoch.learning_rate:.3g}  {seconds:.1f} s"
    )


def _on_gpu(train: Train, available: bool) -> bool:
    if train.device == "cuda" and not available:
        raise TrainingError("train.device", "is cuda, but no GPU is found", "Set it to auto or cpu")
    return available and train.device != "cpu"


def _on_cluster_gpu(train: Train, address: str | None) -> bool:
    import ray

    if address and train.device == "cuda":
        return True  # an autoscaling cluster may have none yet: the demand is what brings them
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return _on_gpu(train, resources.get("GPU", 0) >= train.num_workers)


def _check_reachable(address: str) -> None:
    """Fail within seconds where Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=3):
        return
    raise TrainingError(f"RAY_ADDRESS={address}", "nothing answers there", "Start the cluster, or unset RAY_ADDRESS")


def _prepare_to_join() -> None:
    """Settings for joining a cluster that Ray reads once, when it is imported."""
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get("RAY_AUTH_TOKEN") or token_file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # else a driver that joins a cluster keeps its token to itself
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")  # seconds until a wrong token is told; 20 by default


def _no_entry(address: str | None, error: BaseException) -> TrainingError:
    """Why Ray did not start, or its cluster did not let this machine in."""
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
        "Start the cluster, or unset RAY_ADDRESS"
        if address
        else "Set it to 1, or look into /tmp/ray/session_latest/logs"
    )
    return TrainingError(where, f"Ray does not start here ({first})", mend)


def _cause(error: Any) -> TrainingError:
    """The error of resflow that a worker raised, else a summary of Ray's."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        for candidate in (failure, failure.__cause__, getattr(failure, "cause", None)):
            if isinstance(candidate, TrainingError):
                return candidate
    last = str(error).strip().splitlines()[-1]
    mend = "Look into Ray's logs, /tmp/ray/session_latest/logs; run it again to go on"
    return TrainingError("train", f"Ray Train gave up ({last})", mend)
