"""What each worker of Ray Train runs: it finds arrays and checkpoints, trains by `loop`, and hands back the outcome.

What Ray would only try again, all workers meet alike and hand back as an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from resflow import compute
from resflow.data import arrays, shards
from resflow.data.arrays import Split
from resflow.data.stream import Stream
from resflow.errors import ClusterError, DataError, ResflowError, TrainingError
from resflow.files import home
from resflow.params import Train
from resflow.processes import cores, cores_each
from resflow.training import checkpoint, loop
from resflow.training.checkpoint import Folder
from resflow.training.cluster.reader import read_with_ray
from resflow.training.display import Meter, Timing
from resflow.training.gradients import parts
from resflow.training.job import Job
from resflow.training.remote import Bucket, BucketFolder

__all__ = ["local_arrays", "name_interface", "work"]


def work(config: dict[str, Any]) -> tuple[loop.State, list[Timing]] | ResflowError | None:
    """What each worker runs. An error that all meet alike is handed back: Ray would try again what it is raised."""
    import ray.train.torch

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


def name_interface() -> None:
    """The interface of the node's address in Ray: gloo by itself takes that of the host's name, often loopback."""
    import psutil

    address = _node()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # without the sign, all that begin so


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


def local_arrays(job: Job) -> Path:
    """The prepared arrays on this node: the driver's own, or a copy from the bucket."""
    if job.arrays.whole(job.arrays.folder):
        return job.arrays.folder
    if isinstance(job.runs, Bucket):
        return job.runs.fetch(job.arrays, home() / ".cache" / "resflow" / "arrays")
    problem = f"are not, or not the same, on node {_node()} of the cluster"
    mend = "Share that folder, or name an s3:// prefix in RESFLOW_STORAGE, from where nodes fetch them"
    raise TrainingError(str(job.arrays.folder), problem, mend)


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


def _tell_of_cores(train: Train, say: Callable[[str], None]) -> None:
    """Where the node that this worker is on has fewer cores than threads that train there."""
    import ray.train

    workers, there = ray.train.get_context().get_local_world_size(), cores()
    if train.threads > (fitting := cores_each(workers)):
        crew = f"{workers} workers of {train.threads} threads each" if workers > 1 else f"{train.threads} threads"
        say(f"{crew} share {there} core{'s'[: there != 1]}: train.threads {fitting} is faster, with other bits")


def _node() -> str:
    """The address in Ray of the node that this runs on."""
    import ray

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
