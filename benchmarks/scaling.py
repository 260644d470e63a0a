"""What to expect from 1 to 64 GPUs: a model of a step's communication, held against what this machine can measure.

    python -m benchmarks.scaling                    # about four minutes on two cores; writes docs/scaling.md
    python -m benchmarks.scaling --gpu gpu.json     # with what `python -m benchmarks.gpu --json gpu.json` measured

Measured here: the step of one worker, the bytes of gradients and batch-norm statistics, gloo's bandwidth and latency
between two processes, and the steps of two workers, which the model (`benchmarks.step_model`) must predict from those.
Step times of GPUs and the rates of their links are inputs, with their sources (`benchmarks.scaling_page`); options
replace them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks import scaling_page
from benchmarks.scaling_page import DGX, LARGER, NVLINK, WORKERS, Case, Measured
from benchmarks.step_model import Cluster, Link
from benchmarks.steps import stepper
from resflow import params
from resflow.data.arrays import Split
from resflow.files import write
from resflow.params import Train
from resflow.training import loop

PAGE = Path("docs/scaling.md")
CASES = ((None, 128), (None, 16), (LARGER, 4))
"""Structure (None: that of params.yaml) and images of each worker where two workers are measured: one as in training,
and two with so little to compute that communication shows."""
SIZES = tuple(4**power for power in range(1, 13))
"""Bytes of the all-reduces that are timed."""
WARM, STEPS, REPEATS, ROUNDS = 3, 20, 30, 5


def main() -> None:
    """Measure, and write the page."""
    arguments = _arguments()
    gpu = gpu_figures(arguments.gpu) if arguments.gpu else None  # before the minutes of measuring
    settings = params.load(Path("params.yaml"))
    loop.prepare_torch(0, 1)  # as the two workers do, or their steps would be predicted from another regime
    alone = {count: _alone(settings.net.name, settings.train, settings.train.batch_size // count) for count in WORKERS}
    with tempfile.TemporaryDirectory() as folder:
        spawn(_work, (folder,), nprocs=2)  # type: ignore[no-untyped-call]
        together = json.loads((Path(folder) / "together.json").read_text())
    rings = {int(size): seconds for size, seconds in together["rings"].items()}
    cases = [Case(**case) for case in together["cases"]]
    measured = Measured(settings.net.name, settings.train.batch_size, alone, rings, cases, ROUNDS * STEPS)
    hosts = Link(arguments.hosts_gbit * 1e9 / 8, arguments.hosts_us / 1e6)
    page = scaling_page.page(measured, _clusters(arguments), hosts, gpu)
    print(page)
    write(PAGE, page.encode())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", type=Path, help="what `benchmarks.gpu --json` wrote, instead of published figures")
    parser.add_argument("--per-node", type=int, default=8, help="GPUs of a node of the second cluster")
    parser.add_argument("--inside-gb", type=float, default=NVLINK.bandwidth / 1e9, help="GB/s within its nodes")
    parser.add_argument("--inside-us", type=float, default=NVLINK.latency * 1e6, help="latency within, microseconds")
    parser.add_argument("--between-gbit", type=float, default=100.0, help="Gb/s from each of its nodes to the others")
    parser.add_argument("--between-us", type=float, default=30.0, help="latency between them, microseconds")
    parser.add_argument("--hosts-gbit", type=float, default=10.0, help="Gb/s of each host that trains on one CPU core")
    parser.add_argument("--hosts-us", type=float, default=50.0, help="latency between those, microseconds")
    return parser.parse_args()


# --- what is measured -------------------------------------------------------------------------------------------------


def _stepper(structure: str, train: Train, rank: int = 0, world: int = 1) -> Callable[[int], None]:
    """A function that does one training step on noise of MNIST's size."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (max(2048, train.batch_size), 28, 28, 1), dtype=np.uint8)
    labels = draw.integers(0, 10, len(images), dtype=np.uint8)
    given = Split(images, labels)
    return stepper(structure, train, given, torch.device("cpu"), classes=10, rank=rank, world=world)


def _changed(train: Train, **changes: Any) -> Train:
    return Train.model_validate({**train.model_dump(), "device": "cpu", "threads": 1, **changes})


def _timed(step: Callable[[int], None], first: int, count: int) -> list[float]:
    seconds = []
    for number in range(first, first + count):
        started = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - started)
    return seconds


def _alone(structure: str, train: Train, batch: int) -> float:
    """Seconds of a step of one worker of one thread, the median."""
    step = _stepper(structure, _changed(train, batch_size=max(batch, 1), accumulate=1, num_workers=1, shards=0))
    _timed(step, 0, WARM)
    return statistics.median(_timed(step, WARM, STEPS))


def _work(rank: int, folder: str) -> None:
    """One of two workers; the first writes what was measured."""
    settings = params.load(Path("params.yaml"))
    loop.prepare_torch(0, 1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    rings = {size: _ring(size) for size in SIZES}
    cases = []
    for structure, batch in CASES:
        name = structure or settings.net.name
        cases.append(Case(name, batch, *_case(name, settings.train, batch, rank))._asdict())
    dist.destroy_process_group()
    if rank == 0:
        (Path(folder) / "together.json").write_text(json.dumps({"rings": rings, "cases": cases}))


def _ring(size: int) -> float:
    """Seconds of an all-reduce of `size` bytes between two processes, the median."""
    values, seconds = torch.zeros(size // 4), []
    for _ in range(REPEATS):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(values)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _case(structure: str, train: Train, batch: int, rank: int) -> tuple[float, float, float]:
    """Seconds of a step apart, of DistributedDataParallel and in two shards; they take turns, round by round."""
    one = _changed(train, batch_size=batch, accumulate=1, num_workers=1, shards=0)
    two = _changed(train, batch_size=2 * batch, accumulate=1, num_workers=2, shards=0)
    sharded = _changed(train, batch_size=2 * batch, accumulate=1, num_workers=2, shards=2)
    steppers = [_stepper(structure, one), _stepper(structure, two, rank, 2), _stepper(structure, sharded, rank, 2)]
    seconds: list[list[float]] = [[], [], []]
    for number in range(ROUNDS + 1):  # the first to warm up
        for run, each in zip(steppers, seconds, strict=True):
            dist.barrier()
            timed = torch.tensor(_timed(run, number * STEPS, STEPS))
            dist.all_reduce(timed, dist.ReduceOp.MAX)
            each += timed.tolist() if number else []
    apart, ddp, shards = (statistics.median(each) for each in seconds)
    return apart, ddp, shards


def _clusters(arguments: argparse.Namespace) -> list[Cluster]:
    """That of the published figures, and that of the options."""
    between = Link(arguments.between_gbit * 1e9 / 8, arguments.between_us / 1e6)
    inside = Link(arguments.inside_gb * 1e9, arguments.inside_us / 1e6)
    name = f"{arguments.per_node} GPUs a node, {arguments.between_gbit:g} Gb/s between nodes"
    return [DGX, Cluster(name=name, per_node=arguments.per_node, inside=inside, between=between)]


def gpu_figures(path: Path) -> Any:
    """What `benchmarks.gpu` measured. Raises `SystemExit` for another file."""
    try:
        found = json.loads(path.read_text())
        for row in [*found["resnet50"], *found["mnist"]]:
            row["batch"] / row["images_per_second"]
        found["device"], found["resnet50"][0]["resident"], found["mnist"][0]["structure"]
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError) as error:
        mend = "write it with `python -m benchmarks.gpu --json FILE`"
        raise SystemExit(f"{path} does not hold what benchmarks.gpu measured ({error!r}): {mend}") from error
    return found


if __name__ == "__main__":
    main()
