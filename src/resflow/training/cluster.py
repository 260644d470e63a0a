"""Ray Train around the loop: one process, several on this machine, or the nodes of a cluster.

`fit` is called by the stage `train`. One worker without `RAY_ADDRESS` runs in this process (Ray Train's local mode);
otherwise Ray places `train.num_workers` workers, here or where `RAY_ADDRESS` says. What one worker does is in `loop`;
checkpoints are ours (`checkpoint`), not Ray's, so that a run is the same wherever it goes on. Training images that are
streamed are read by Ray Data (`reader`); what workers and driver tell each other is `post`. No other module of training
imports Ray.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from resflow import compute
from resflow.data import arrays, shards
from resflow.data.arrays import Split
from resflow.data.stream import Stream
from resflow.errors import ClusterError, DataError, ResflowError, SetupError, TrainingError
from resflow.files import home
from resflow.nets.file import ModelCard
from resflow.params import Checkpoint, Train
from resflow.processes import cores
from resflow.training import checkpoint, loop
from resflow.training.address import check_address, token_path
from resflow.training.checkpoint import Folder, LocalFolder
from resflow.training.display import Display, Meter, Timing
from resflow.training.gradients import parts
from resflow.training.post import joined
from resflow.training.reader import cause, read_with_ray, store_bytes
from resflow.training.remote import Arrays, Bucket, BucketFolder, mark
from resflow.training.stop import StopHere

__all__ = ["Job", "connected", "fit", "local_arrays"]

RESIZE_SECONDS = 10.0
"""How often an elastic run looks for nodes that have joined; a minute by default."""
FREE_SECONDS = 3.0
"""How long CPUs and GPUs that others use are looked at before it is said that a run waits for them."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to know; sent to it as it is."""

    train: Train
    checkpoint: Checkpoint
    seed: int
    card: ModelCard
    initial: Mapping[str, Tensor]
    """Weights that a new run starts from, by name; the others are drawn."""
    arrays: Arrays
    loader: Literal["memory", "stream"]
    shuffle_mib: int
    runs: Path | Bucket
    """Holds the checkpoints of unfinished runs, one folder a run."""
    name: str
    """The hash of all that the result depends on."""

    def folder(self) -> Folder:
        """Where this run's checkpoints lie."""
        return self.runs.folder(self.name) if isinstance(self.runs, Bucket) else LocalFolder(self.runs / self.name)


def fit(job: Job, address: str | None, live: Path) -> tuple[loop.State, list[Timing]]:
    """Train, going on from the run's last checkpoint; returns its state and how long each epoch finished now took.

    `address` is that of a Ray cluster (`RAY_ADDRESS`), or None; `live` is where to show each epoch.
    Raises `TrainingError`, or `StoreError` for a bucket that cannot be used, before training starts; also what a worker
    raised last, such as `SetupError` on a full disk.
    """
    address = _elsewhere(address)
    home()  # which Ray asks for when it is imported
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # 2 s by default, which also paces report()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # an actor more; our checkpoints need no notice
    if job.train.workers[0] < job.train.workers[1]:  # else a lost node is waited for, a minute by default
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    display = Display(job.train, live)
    try:
        if job.train.workers == (1, 1) and not address:
            outcome = _fit_here(job, display)
        else:
            outcome = _fit_on_cluster(job, address, display)
    finally:
        display.close()
    if isinstance(outcome, ResflowError):
        raise outcome
    state, timings = outcome
    return state, timings


def _fit_here(job: Job, display: Display) -> Any:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.WARNING)  # else each report is printed a second time
    streamed = job.loader == "stream"
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # Ray's type leaves no room for the value, which it hands back
        train_loop_config={"job": job, "show": display.show, "stop": StopHere(), "mark": None},
        scaling_config=ScalingConfig(num_workers=0, use_gpu=compute.device(job.train.device) == "cuda"),
        run_config=RunConfig(name=job.name),
    )
    with _started(job, None) if streamed else nullcontext():
        return trainer.fit().return_value  # type: ignore[attr-defined]  # Ray exports V1's type


def _fit_on_cluster(job: Job, address: str | None, display: Display) -> Any:
    _prepare(job, address)
    seen = mark(job.folder(), job.arrays)
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, TrainingFailedError

    try:
        with _started(job, address) as dashboard, joined(display) as post:
            on_gpu = _on_cluster_gpu(job.train, address)
            trainer = _trainer(dashboard)(
                _work,
                train_loop_config={"job": job, "show": post.show, "stop": nullcontext(post), "mark": seen},
                torch_config=_torch_config(),
                scaling_config=_scaling(job.train, on_gpu=on_gpu),
                run_config=RunConfig(  # type: ignore[call-arg]  # V1's type, too
                    name=job.name,
                    storage_path=job.runs.path if isinstance(job.runs, Bucket) else str(job.runs),
                    storage_filesystem=job.runs.filesystem() if isinstance(job.runs, Bucket) else None,
                    failure_config=FailureConfig(max_failures=job.train.max_failures),
                    worker_runtime_env={"env_vars": {} if address or on_gpu else _waiting(job.train)},
                ),
            )
            _tell_if_waiting(job.train, address, on_gpu=on_gpu)
            return _beside(lambda: trainer.fit().return_value)
    except (TrainingFailedError, RayError) as error:  # the latter where Ray itself is lost, with this node or its head
        failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
        raise cause("Ray Train", error, *failures.values()) from error


@contextmanager
def connected(job: Job, address: str | None) -> Iterator[None]:
    """Ray for trainings of a study, which are functions of their own: here, or the cluster at `address`.

    The nodes of a cluster find the arrays where `job.runs` says. Raises `TrainingError`, `SetupError` or `StoreError`.
    """
    address = _elsewhere(address)
    home()  # as above
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _prepare(job, address)
    with _started(job, address):
        yield


def _elsewhere(address: str | None) -> str | None:
    """`local` is what there is without an address: Ray on this machine, for the run."""
    return None if address == "local" else address


def _prepare(job: Job, address: str | None) -> None:
    """What workers elsewhere need before they are: a cluster that answers, and the arrays in the bucket."""
    if address:
        check_address(address)
        _prepare_to_join()
        if isinstance(job.runs, Bucket):
            job.runs.send(job.arrays)


@contextmanager
def _started(job: Job, address: str | None) -> Iterator[str]:
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


def _beside(work: Callable[[], Any]) -> Any:
    """Do it in another thread: in the main one Ray Train answers Ctrl-C by itself, with code 1 and no word."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()


def _trainer(dashboard: str) -> Any:
    """Ray's trainer without two actors: that for data sets, of which it is given none, and maybe a cleaner.

    This removes the placement group of a controller that was lost, which goes with its driver anyway. It asks the
    dashboard; without one it would keep each training for 12 s at its end, and outlive a driver that was killed.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    useless = (DatasetsCallback,) if dashboard else (DatasetsCallback, PlacementGroupCleanerCallback)

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            return [one for one in super()._create_default_callbacks() if not isinstance(one, useless)]  # type: ignore[misc]  # V2's

    return Trainer


def _scaling(train: Train, *, on_gpu: bool) -> Any:
    from ray.train import ScalingConfig

    least, most = train.workers
    options: dict[str, Any] = {"num_workers": most}
    if least < most:
        options = {"num_workers": (least, most), "elastic_resize_monitor_interval_s": RESIZE_SECONDS}
    return ScalingConfig(
        **options,
        use_gpu=on_gpu,
        resources_per_worker={"CPU": 1},
        placement_strategy="PACK" if on_gpu else "SPREAD",  # GPUs of a host are linked, its cores are shared
    )


def _waiting(train: Train) -> dict[str, str]:
    """The environment of workers on this machine: threads that share cores are not to spin while they wait for others.

    Libgomp knows of those of its own process alone. Of a cluster only its nodes know how many cores they have.
    """
    is_chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & {*os.environ}
    return {} if is_chosen or train.workers[1] * train.threads <= cores() else {"OMP_WAIT_POLICY": "PASSIVE"}


def _tell_of_cores(train: Train, say: Callable[[str], None]) -> None:
    """Where the node that this worker is on has fewer cores than threads that train there."""
    import ray.train

    workers, there = ray.train.get_context().get_local_world_size(), cores()
    if train.threads > (fitting := max(1, there // workers)):
        crew = (
            f"{workers} workers of {train.threads} threads each share"
            if workers > 1
            else f"{train.threads} threads share"
        )
        say(f"{crew} {there} core{'s'[: there != 1]}: train.threads {fitting} is faster, with other bits")


def _torch_config() -> Any:
    """Ray's set-up of a process group of several, before which each tells gloo and NCCL its network interface."""
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            if len(worker_group) > 1:  # else gloo's thread would look for messages a hundred times a second
                worker_group.execute(_name_interface)
                super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config()


def _name_interface() -> None:
    """The interface of the node's address in Ray: gloo by itself takes that of the host's name, often loopback."""
    import psutil

    address = _node()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # without the sign, all that begin so


def _node() -> str:
    """The address in Ray of the node that this runs on."""
    import ray

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _tell_if_waiting(train: Train, address: str | None, *, on_gpu: bool) -> None:
    """Ray waits for CPUs and GPUs without end, as a cluster may grow; say so, once. This machine does not grow."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    least = train.workers[0]
    for kind in ("CPU", "GPU") if on_gpu else ("CPU",):
        there = int(resources.get(kind, 0))
        if there >= least:
            if address and (free := _free(kind, least)) < least:
                problem = f"{least} workers need a {kind} each and {free} of Ray's {there} are free"
                print(f"{problem}: waiting until others are done. Ctrl-C ends it.", file=sys.stderr)
            continue
        if not address:
            problem = f"asks for {least} workers with a {kind} each, and this machine has {there}"
            raise TrainingError("train.num_workers", problem, "Lower it, or name a cluster in RAY_ADDRESS")
        problem = f"{least} workers need a {kind} each and Ray has {there}"
        print(f"{problem}: waiting until nodes join. Ctrl-C ends it.", file=sys.stderr)


def _free(kind: str, wanted: int) -> int:
    """How many nobody uses. What a driver had that has just ended, Ray counts as used for a moment."""
    import ray

    deadline = time.monotonic() + FREE_SECONDS
    while True:
        resources: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        free = int(resources.get(kind, 0))
        if free >= wanted or time.monotonic() > deadline:
            return free
        time.sleep(0.2)


def _work(config: dict[str, Any]) -> tuple[loop.State, list[Timing]] | ResflowError | None:
    """What each worker runs. An error that all meet alike is handed back: Ray would try again what it is raised."""
    import ray.train

    job: Job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    place = _place(job, config["mark"])
    for other in _of_all(place, world):
        if isinstance(other, ResflowError):
            return other
    assert isinstance(place, Path)
    loop.prepare_torch(job.seed, job.train.threads)
    net = job.card.network()
    net.load_state_dict(job.initial, strict=False)  # the stage has seen what is missing
    device = ray.train.torch.get_device() if job.train.device != "cpu" else torch.device("cpu")
    say = config["show"] if config["mark"] else checkpoint.tell  # nobody sees what a worker elsewhere prints
    if rank == 0 and device.type == "cpu":
        _tell_of_cores(job.train, say)
    folder = job.folder()
    state = _common_state(folder, device.type, rank, world, say)
    timings: list[Timing] = []
    with (
        config["stop"] as stop,
        checkpoint.Keeper(
            folder,
            device=device.type,
            steps=job.checkpoint.steps,
            seconds=job.checkpoint.seconds,
            say=say,
            stop=stop,
        ) as keeper,
        _training(job, place, rank, world) as (training, count),
    ):
        steps = max(1, count // job.train.batch_size)
        meter = Meter(steps, job.train.batch_size, state.step, config["show"]) if rank == 0 else None
        if meter and state.step:
            crew = "" if (world, world) == job.train.workers else f" with {world} worker{'s'[: world != 1]}"
            config["show"](f"going on from step {state.step} of {steps * job.train.epochs}{crew}")

        def on_epoch(state: loop.State) -> None:
            if meter:
                timings.append(meter.epoch(state.history))

        try:
            state = loop.train(
                net,
                training,
                arrays.load(place, "validation"),
                job.card,
                job.train,
                seed=job.seed,
                device=device,
                state=state,
                keeper=keeper,
                rank=rank,
                world=world,
                on_step=meter.step if meter else lambda step, sums: None,
                on_epoch=on_epoch,
            )
        except ClusterError:
            raise  # it may be this worker's alone, for which the others would wait in vain
        except TrainingError as error:
            return error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            problem = f"a part of the batch is one image, of which a batch norm sees one value a channel ({error})"
            return TrainingError("train.batch_size", problem, "Raise it, or lower num_workers, shards or accumulate")
        except (RuntimeError, MemoryError) as error:
            if not compute.is_out_of_memory(error):
                raise
            mend = "Lower train.batch_size, or raise train.accumulate"
            raise TrainingError("train", f"memory is full ({error})", mend) from error
    # Ray hands on the first one's alone, but collects them all: no more than the stage needs
    return (loop.State(step=state.step, history=state.history, best=state.best), timings) if rank == 0 else None


@contextmanager
def _training(job: Job, place: Path, rank: int, world: int) -> Iterator[tuple[Split | Stream, int]]:
    """The training images, as `data.loader` says, and how many there are."""
    if job.loader == "memory":
        split = arrays.load(place, "train")
        yield split, len(split.labels)
        return
    index = shards.load(place / "train")
    files: Path | BucketFolder = place / "train"
    if isinstance(job.runs, Bucket) and place != job.arrays.folder:
        files = job.runs.folder(f"arrays/{job.arrays.key}/train")
    stream = Stream(
        index,
        read_with_ray(files, index),
        batch_size=job.train.batch_size,
        epochs=job.train.epochs,
        shuffle_mib=job.shuffle_mib,
        seed=job.seed,
        parts=parts(job.train, rank, world),
        whole=job.train.shards or world,
    )
    with closing(stream):
        yield stream, stream.count


def local_arrays(job: Job) -> Path:
    """The prepared arrays on this node: the driver's own, or a copy from the bucket."""
    if job.arrays.whole(job.arrays.folder):
        return job.arrays.folder
    if isinstance(job.runs, Bucket):
        return job.runs.fetch(job.arrays, home() / ".cache" / "resflow" / "arrays")
    problem = f"are not, or not the same, on node {_node()} of the cluster"
    mend = "Share that folder, or name an s3:// prefix in RESFLOW_STORAGE, from where nodes fetch them"
    raise TrainingError(str(job.arrays.folder), problem, mend)


def _place(job: Job, mark: str | None) -> Path | ResflowError:
    """Where the arrays are on this node, or what it lacks, however often it is tried."""
    if mark and not _sees(job.folder(), mark):
        problem = f"is not seen by the worker on node {_node()}"
        mend = "Name a shared folder or an s3:// prefix in RESFLOW_STORAGE; see docs/cluster.md"
        return TrainingError(str(job.folder()), problem, mend)
    try:
        return local_arrays(job)
    except (DataError, TrainingError) as error:
        return error


def _sees(folder: Folder, name: str) -> bool:
    """Whether there is such a file; a listing of a network file system may be half a minute old."""
    try:
        folder.read(name)
    except FileNotFoundError:
        return False
    return True


def _of_all(answer: Any, world: int) -> list[Any]:
    """The answers of all workers: one that left alone would let the others wait for it in their first message."""
    answers = [answer] * world
    if world > 1:
        dist.all_gather_object(answers, answer)
    return answers


def _common_state(folder: Folder, device: str, rank: int, world: int, say: Callable[[str], None]) -> loop.State:
    """Where the run stopped, or a new beginning: what the first worker finds, for all."""
    content = [checkpoint.latest_bytes(folder, device, say) if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(content, 0)
    return checkpoint.decode(content[0]) if content[0] else loop.State()


def _on_cluster_gpu(train: Train, address: str | None) -> bool:
    import ray

    if address and train.device == "cuda":
        return True  # an autoscaling cluster may have none yet: the demand is what brings them
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    enough, there = 1 if train.device == "cuda" else train.workers[0], int(resources.get("GPU", 0))
    if train.device == "auto" and 0 < there < enough:
        problem = f"{enough} workers need a GPU each and Ray has {there}: training on CPUs, as train.device auto has it"
        print(f"{problem}.{' With cuda it waits for GPUs.' if address else ''}", file=sys.stderr)
    return compute.on_gpu(train.device, there >= enough)


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
