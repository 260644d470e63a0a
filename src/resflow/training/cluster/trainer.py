"""Train a job by Ray Train: one process, several on this machine, or the nodes of a cluster.

    state, timings = fit(job, os.environ.get("RAY_ADDRESS"), live)

One worker without `RAY_ADDRESS` runs in this process (Ray Train's local mode); otherwise Ray places
`train.num_workers` workers, here or where `RAY_ADDRESS` says. Checkpoints are ours (`checkpoint`), not Ray's, so that
a run is the same wherever it goes on.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from resflow import compute
from resflow.errors import ResflowError, TrainingError
from resflow.params import Train
from resflow.processes import cores
from resflow.training import loop
from resflow.training.cluster.post import joined
from resflow.training.cluster.reader import cause
from resflow.training.cluster.session import prepare, started
from resflow.training.cluster.worker import name_interface, work
from resflow.training.display import Display, Timing
from resflow.training.job import Job
from resflow.training.remote import Bucket, mark
from resflow.training.stop import StopHere

__all__ = ["fit"]

RESIZE_SECONDS = 10.0
"""How often an elastic run looks for nodes that have joined; a minute by default."""
FREE_SECONDS = 3.0
"""How long CPUs and GPUs that others use are looked at before it is said that a run waits for them."""


def fit(job: Job, address: str | None, live: Path) -> tuple[loop.State, list[Timing]]:
    """Train, going on from the run's last checkpoint; returns its state and how long each epoch finished now took.

    `address` is that of a Ray cluster (`RAY_ADDRESS`), or None; `live` is where to show each epoch.
    Raises `TrainingError`, or `StoreError` for a bucket that cannot be used, before training starts; also what a worker
    raised last, such as `SetupError` on a full disk.
    """
    address = prepare(job, address)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # 2 s by default, which also paces report()
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
        work,  # type: ignore[arg-type]  # Ray's type leaves no room for the value, which it hands back
        train_loop_config={"job": job, "show": display.show, "stop": StopHere(), "mark": None},
        scaling_config=ScalingConfig(num_workers=0, use_gpu=compute.device(job.train.device) == "cuda"),
        run_config=RunConfig(name=job.name),
    )
    with started(job, None) if streamed else nullcontext():
        return trainer.fit().return_value  # type: ignore[attr-defined]  # Ray exports V1's type


def _fit_on_cluster(job: Job, address: str | None, display: Display) -> Any:
    seen = mark(job.folder(), job.arrays)
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, TrainingFailedError

    try:
        with started(job, address) as dashboard, joined(display) as post:
            on_gpu = _on_cluster_gpu(job.train, address)
            trainer = _trainer(dashboard)(
                work,
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


def _beside(act: Callable[[], Any]) -> Any:
    """Do it in another thread: in the main one Ray Train answers Ctrl-C by itself, with code 1 and no word."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(act())
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


def _torch_config() -> Any:
    """Ray's set-up of a process group of several, before which each tells gloo and NCCL its network interface."""
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            if len(worker_group) > 1:  # else gloo's thread would look for messages a hundred times a second
                worker_group.execute(name_interface)
                super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config()
