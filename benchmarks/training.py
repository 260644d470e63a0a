"""Images per second of the training loop: by hand, by resflow, by others, on one worker and on two.

    python -m benchmarks.training            # 30 epochs and 5 rounds, about 25 minutes
    python -m benchmarks.training --epochs 6 --rounds 1

Contenders that train in their own process (`benchmarks.contenders`) take turns epoch by epoch, of which the first two
count for nothing; those on a cluster of Ray, whose helpers never rest, and several workers take turns as whole
processes. Figures are medians, and a ratio is the median of the ratios within a turn. Needs data/prepared (`dvc repro
prepare`); peers come with `make peers`, and one that is missing is told.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch

from benchmarks.contenders import EPOCHS
from benchmarks.report import record, table
from resflow import params
from resflow.data import arrays
from resflow.processes import MALLOC
from resflow.study.peak import matmul

T = TypeVar("T")
IMAGES, VALIDATION = 12_800, 1_000
"""Of MNIST, an epoch."""
WARM_UP = 2
"""Epochs until memory and threads are where they stay."""
PYTHON = [sys.executable, "-m"]
LIMIT = {"bare loop, memory kept (the limit)": ["bare", "--keep-memory"]}
ALONE = {
    **LIMIT,
    "resflow's loop": ["loop"],
    "bare loop, memory given back as glibc does": ["bare"],
    "resflow, Ray Train in local mode": ["ray"],
    "PyTorch Lightning": ["lightning"],
    "Hugging Face Accelerate": ["accelerate"],
    "resflow's loop, 2 shards": ["loop", "--shards", "2"],
    "resflow's loop, 4 shards": ["loop", "--shards", "4"],
}
ON_CLUSTER = {
    **LIMIT,
    "bare loop in Ray Train on a cluster of one, memory kept": ["bare_on_ray"],
    "resflow, Ray Train on a cluster of one": ["ray_on_cluster"],
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
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.epochs <= WARM_UP:
        parser.error(f"--epochs: {given.epochs} leave none to count, of which the first {WARM_UP} never do")
    command = f"python -m benchmarks.training --epochs {given.epochs} --rounds {given.rounds}"
    with tempfile.TemporaryDirectory() as folder:
        place = _some_images(Path(folder))
        alone, narrow, kept = (_epochs(group, place, given.epochs) for group in (ALONE, NARROW, KEPT))
        on_cluster = _rounds(ON_CLUSTER, place, given.rounds, [])
        together = _rounds(TOGETHER, place, given.rounds, ["--workers", "2", "--threads", "1"])
    images = f"of {IMAGES:,} images of MNIST, validated on {VALIDATION:,}"
    in_turns = f"Epochs {images}, in turns; the first {WARM_UP} count for nothing.\n\n"
    whole = f"{EPOCHS} epochs {images}, of each process, in turns; a turn is the median of those after the first.\n\n"
    end = f"Load of the machine at the end: {os.getloadavg()[0]:.1f}"
    load = f"{end}; n = {given.epochs - WARM_UP} epochs.\n"
    rounds = f"{end}; n = {given.rounds} rounds.\n"
    record("Training speed: one worker", command, in_turns + _shown(alone) + load)
    record("Training speed: a cluster of one worker", command, whole + _shown(on_cluster) + HELPERS + HELD + rounds)
    record("Training speed: bfloat16", command, in_turns + _shown(narrow) + load)
    record("Share of the machine's peak", command, _peak({"float32": alone, "bfloat16": narrow}) + load)
    record("What checkpoints cost", command, in_turns + _shown(kept) + _stall(kept) + load)
    record("Training speed: two workers of one thread", command, whole + _shown(together) + HELD + rounds)


def _some_images(folder: Path) -> Path:
    place = folder / "data" / "prepared"
    for split, count in (("train", IMAGES), ("validation", VALIDATION)):
        (place / split).mkdir(parents=True)
        images, labels = arrays.load(Path("data/prepared"), split)
        np.save(arrays.images_path(place, split), images[:count])
        np.save(arrays.labels_path(place, split), labels[:count])
    return place


def _epochs(contenders: dict[str, list[str]], place: Path, epochs: int) -> dict[str, list[Any]]:
    """Of each epoch but the first ones, of processes that take turns; [None] where packages are missing."""
    results: dict[str, list[Any]] = {name: [None] for name in contenders}
    with ExitStack() as stack:
        waiting: dict[str, Contender] = {}
        for name, arguments in contenders.items():
            print(f"starting {name}", file=sys.stderr, flush=True)
            said = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = stack.enter_context(Contender([*arguments, "--epochs", str(epochs)], place, said))
            if process.told():
                waiting[name] = process
        seconds: dict[str, list[float]] = {name: [] for name in waiting}
        for number in range(epochs):
            for name, process in _in_turn(waiting, number):
                seconds[name] += process.go()["seconds"]
                print(f"epoch {number + 1}, {name}: {seconds[name][-1]:.3f} s", file=sys.stderr, flush=True)
        for name, process in waiting.items():
            end = process.go()
            rates = [end["images"] / each for each in seconds[name][WARM_UP:]]
            results[name] = [{"images_per_second": rate, "peak_mib": end["peak_mib"]} for rate in rates]
    return results


class Contender:
    """A contender that begins each epoch when it is told to; killed in the end. Its errors go to the file `said`."""

    def __init__(self, arguments: list[str], place: Path, said: IO[str]) -> None:
        command, env = _command(arguments, place, ["--turns"])
        self._command, self._said = command, said
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        )

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def go(self) -> dict[str, Any]:
        """Let it go on; what it tells next."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has ended, and is heard why
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        told = self.told()
        assert told, "packages do not go missing on the way"
        return told

    def told(self) -> dict[str, Any] | None:
        """What it tells when it waits or ends; None where its packages are missing."""
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)  # type: ignore[no-any-return]
        self._said.seek(0)
        _raise_unless_missing(self._command, self._said.read())
        return None


def _rounds(contenders: dict[str, list[str]], place: Path, rounds: int, options: list[str]) -> dict[str, list[Any]]:
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, arguments in _in_turn(contenders, number):
            results[name].append(_run(arguments, place, options))
            print(f"round {number + 1}, {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    return results


def _in_turn(contenders: dict[str, T], number: int) -> list[tuple[str, T]]:
    """What ran before leaves the machine fresh or throttled: each comes first, and who comes before whom changes."""
    reverse, first = divmod(number, len(contenders))
    order = [*contenders.items()]
    return (order[first:] + order[:first])[:: -1 if reverse % 2 else 1]


def _run(arguments: list[str], place: Path, options: list[str]) -> dict[str, float] | None:
    """What one process printed; None where its packages are missing."""
    command, env = _command(arguments, place, options)
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        _raise_unless_missing(command, done.stdout + done.stderr)
        return None
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))  # type: ignore[no-any-return]


def _command(arguments: list[str], place: Path, options: list[str]) -> tuple[list[str], dict[str, str]]:
    """How a contender is started: a command and its environment."""
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
    return [*launcher, "benchmarks.contenders", name, str(place), *own, *options], env


def _raise_unless_missing(command: list[str], said: str) -> None:
    """Of a contender that failed: raises `SystemExit`, unless packages are missing."""
    if "ModuleNotFoundError" not in said:
        raise SystemExit(f"{shlex.join(command)}\n{said}")


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
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        spread = f"{low:.2f} to {high:.2f}"
        rows.append([name, f"{statistics.median(rates):,.0f}", f"{ratio:.3f}", spread, f"{memory:,.0f}"])
        if name in AIMS:
            more = f"{MORE_MEMORY:.0f} MiB more memory at most: {_outcome(memory - least <= MORE_MEMORY)}"
            aims.append(f"- {name}: {AIMS[name]} of the first or more: {_outcome(ratio >= AIMS[name])}; {more}.\n")
    header = ["", "images/s", "of the first", "middle half", "peak memory of the process that trains (MiB)"]
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
    cost = f"A checkpoint costs training {1000 * each:.1f} ms (median): {share} as in params.yaml."
    return f"{cost} Less than {MOST_STALL:.0%} was aimed at: {_outcome(each / interval < MOST_STALL)}.\n\n"


def _macs() -> int:
    """Multiply-accumulates of convolutions and linear layers, one image forward."""
    from resflow.nets import altered
    from resflow.nets.cost import cost

    net = params.load(Path("params.yaml")).net
    return cost(altered(net.name, net.changes), image_shape=(28, 28, 1), num_classes=10).macs


if __name__ == "__main__":
    main()
