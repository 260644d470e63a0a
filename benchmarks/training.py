"""Images per second of the training loop: by hand, by resflow, by others, on one worker and on two.

    python -m benchmarks.training            # five rounds, about 20 minutes
    python -m benchmarks.training --rounds 1

Contenders take turns, each in a process of its own (`benchmarks.contenders`), every other round in reverse; figures
are medians over the rounds, and a ratio is the median of the ratios within a round. Needs data/prepared (`dvc repro
prepare`); peers come with `make peers`, and one that is missing is told.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import record, table
from resflow import params
from resflow.data import arrays
from resflow.processes import MALLOC
from resflow.study.peak import matmul

IMAGES, VALIDATION = 12_800, 1_000
"""Of MNIST, an epoch."""
PYTHON = [sys.executable, "-m"]
ALONE = {
    "bare loop, memory kept (the limit)": ["bare", "--keep-memory"],
    "resflow's loop": ["loop"],
    "bare loop, memory given back as glibc does": ["bare"],
    "resflow, Ray Train in local mode": ["ray"],
    "bare loop in Ray Train on a cluster of one, memory kept": ["bare_on_ray"],
    "resflow, Ray Train on a cluster of one": ["ray_on_cluster"],
    "PyTorch Lightning": ["lightning"],
    "Hugging Face Accelerate": ["accelerate"],
    "resflow's loop, 2 shards": ["loop", "--shards", "2"],
    "resflow's loop, 4 shards": ["loop", "--shards", "4"],
}
NARROW = {
    "bare loop, memory kept, bfloat16": ["bare", "--keep-memory", "--precision", "bfloat16"],
    "resflow's loop, bfloat16": ["loop", "--precision", "bfloat16"],
}
EVERY = 10
"""Steps from one checkpoint to the next where their cost is measured: far more often than anyone would."""
KEPT = {
    "without checkpoints": ["loop"],
    f"a checkpoint every {EVERY} steps": ["loop", "--checkpoint-steps", str(EVERY)],
}
TOGETHER = {
    "torchrun, DistributedDataParallel, memory kept": ["torchrun", "--keep-memory"],
    "resflow, Ray Train": ["ray"],
    "resflow, Ray Train, 2 shards": ["ray", "--shards", "2"],
    "resflow, Ray Train, 4 shards": ["ray", "--shards", "4"],
}

HELD = "On a cluster of Ray, memory is that of the largest worker.\n\n"
HELPERS = (
    "A cluster of one trains on cores that Ray's helper processes use too ([log.md](log.md)): what is left for a bare "
    "loop that reports nothing has a row of its own.\n\n"
)
AIMS = {
    "resflow's loop": 0.98,
    "resflow's loop, bfloat16": 0.98,
    "resflow, Ray Train in local mode": 0.95,
    "resflow, Ray Train on a cluster of one": 0.95,
    "resflow, Ray Train": 0.95,
}
"""The share of the first one's images per second that is aimed at."""
MORE_MEMORY = 300 * 10**6 / 2**20
"""MiB that is aimed at not to be passed."""
MOST_STALL = 0.01
"""Of the time, for checkpoints."""


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    command = f"python -m benchmarks.training --rounds {rounds}"
    with tempfile.TemporaryDirectory() as folder:
        place = _some_images(Path(folder))
        alone = _rounds(ALONE, place, rounds, [])
        narrow = _rounds(NARROW, place, rounds, [])
        kept = _rounds(KEPT, place, rounds, [])
        together = _rounds(TOGETHER, place, rounds, ["--workers", "2", "--threads", "1"])
    load = f"Load of the machine at the end: {os.getloadavg()[0]:.1f}; n = {rounds} rounds.\n"
    size = f"Epochs of {IMAGES:,} images of MNIST, validated on {VALIDATION:,}; median of those after the first.\n\n"
    record("Training speed: one worker", command, size + _shown(alone) + HELD + HELPERS + load)
    record("Training speed: bfloat16", command, size + _shown(narrow) + load)
    record("Share of the machine's peak", command, _peak({"float32": alone, "bfloat16": narrow}) + load)
    record("What checkpoints cost", command, size + _shown(kept) + _stall(kept) + load)
    record("Training speed: two workers of one thread", command, size + _shown(together) + HELD + load)


def _some_images(folder: Path) -> Path:
    place = folder / "data" / "prepared"
    for split, count in (("train", IMAGES), ("validation", VALIDATION)):
        (place / split).mkdir(parents=True)
        images, labels = arrays.load(Path("data/prepared"), split)
        np.save(arrays.images_path(place, split), images[:count])
        np.save(arrays.labels_path(place, split), labels[:count])
    return place


def _rounds(contenders: dict[str, list[str]], place: Path, rounds: int, options: list[str]) -> dict[str, list[Any]]:
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    for number in range(rounds):
        # What ran before leaves the machine fresh or throttled: none always comes first.
        for name, arguments in list(contenders.items())[:: -1 if number % 2 else 1]:
            results[name].append(_run(arguments, place, options))
            print(f"round {number + 1}, {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    return results


def _run(arguments: list[str], place: Path, options: list[str]) -> dict[str, float] | None:
    """What one process printed; None where its packages are missing."""
    name, *own = arguments
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    env.pop("RAY_ADDRESS", None)
    if "--keep-memory" in own:
        own.remove("--keep-memory")
        env |= {f"MALLOC_{name}_": str(value) for name, (_, value) in MALLOC.items()}
    launcher = PYTHON
    if name == "torchrun":
        launcher = [*PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
        env["OMP_NUM_THREADS"] = "1"
    command = [*launcher, "benchmarks.contenders", name, str(place), *own, *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        if "ModuleNotFoundError" in done.stderr:
            return None
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))  # type: ignore[no-any-return]


def _shown(results: dict[str, list[Any]]) -> str:
    """A table, and whether each aim was reached."""
    base = next(iter(results.values()))
    least = statistics.median(run["peak_mib"] for run in base)
    rows, aims = [], []
    for name, runs in results.items():
        if None in runs:
            rows.append([name, "not installed", "", "", ""])
            continue
        rates = [run["images_per_second"] for run in runs]
        ratios = [rate / reference["images_per_second"] for rate, reference in zip(rates, base, strict=True)]
        ratio, memory = statistics.median(ratios), statistics.median(run["peak_mib"] for run in runs)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([name, f"{statistics.median(rates):,.0f}", f"{ratio:.3f}", spread, f"{memory:,.0f}"])
        if name in AIMS:
            more = f"{MORE_MEMORY:.0f} MiB more memory at most: {_outcome(memory - least <= MORE_MEMORY)}"
            aims.append(f"- {name}: {AIMS[name]} of the first or more: {_outcome(ratio >= AIMS[name])}; {more}.\n")
    header = ["", "images/s", "of the first", "lowest to highest", "peak memory of the process that trains (MiB)"]
    return table(header, rows) + "\n" + ("Aims:\n\n" + "".join(aims) + "\n" if aims else "")


def _outcome(is_reached: bool) -> str:
    return "reached" if is_reached else "missed"


def _peak(measured: dict[str, dict[str, list[Any]]]) -> str:
    """What share of the machine's matrix-multiplication peak the loops reach, each in its own number format."""
    flops = 3 * 2 * _macs()  # forward, and twice that backward; a multiplication and an addition each
    rows = []
    for precision, results in measured.items():
        peak = matmul(getattr(torch, precision), torch.device("cpu"))
        for name in list(results)[:2]:
            reached = statistics.median(run["images_per_second"] for run in results[name]) * flops
            rows.append([name, precision, f"{reached / 1e12:.3f}", f"{peak / 1e12:.3f}", f"{reached / peak:.0%}"])
    header = ["", "number format", "TFLOP/s reached", "TFLOP/s of a 2048x2048 product, the fastest of 12", "share"]
    return table(header, rows) + "\n"


def _stall(kept: dict[str, list[Any]]) -> str:
    """Seconds of training that a checkpoint costs, and what that is at the interval of params.yaml."""
    interval = params.load(Path("params.yaml")).checkpoint.seconds
    without, with_them = ([IMAGES / run["images_per_second"] for run in runs] for runs in kept.values())
    count = IMAGES // params.load(Path("params.yaml")).train.batch_size // EVERY
    each = statistics.median((more - less) / count for more, less in zip(with_them, without, strict=True))
    share = f"{each / interval:.2%} of the time, at one every {interval:g} s"
    cost = f"A checkpoint costs training {1000 * each:.1f} ms (median of the rounds): {share} as in params.yaml."
    return f"{cost} Less than {MOST_STALL:.0%} was aimed at: {_outcome(each / interval < MOST_STALL)}.\n\n"


def _macs() -> int:
    """Multiply-accumulates of convolutions and linear layers, one image forward."""
    from resflow.nets import altered
    from resflow.nets.cost import cost

    net = params.load(Path("params.yaml")).net
    return cost(altered(net.name, net.changes), image_shape=(28, 28, 1), num_classes=10).macs


if __name__ == "__main__":
    main()
