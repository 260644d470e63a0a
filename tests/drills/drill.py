"""Kill a training run at a random moment, once or twice, run the same command again, and compare with a run left alone.

    seconds = undisturbed(project, KINDS["dvc"])
    wanted = outputs(project)
    outcome = drill(project, KINDS["dvc"], seed=3, seconds=seconds)
    assert outcome.outputs == wanted

The pytest module beside this one runs a few, `python -m tests.drills` as many as one likes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.processes import command_line, descendants, train_workers
from resflow.pipeline import locks
from tests.conftest import Project
from tests.integration.ray_nodes import gone

RECIPE: dict[str, Any] = {"train__epochs": 8, "train__batch_size": 10, "checkpoint__steps": 7}
"""Long enough to be killed in the middle; a checkpoint every few hundredths of a second."""
OUTPUTS = ("models/model.safetensors", "metrics/train.json", "plots/train/curves.csv")
START_SECONDS, END_SECONDS = 300, 20
FOLLOWERS = (b"resflow\0stage", b"flows.temporary")
"""Processes that are to end with the command that started them, by words of their command lines."""


@dataclass(frozen=True)
class Kind:
    """What is killed."""

    what: str
    command: tuple[str, ...]
    workers: int = 1
    victims: Callable[[subprocess.Popen[str]], list[int]] = lambda process: [process.pid]
    survives: bool = False
    """The command itself goes on and ends well."""


KINDS = {
    "stage": Kind("the stage, training in its own process", ("resflow", "stage", "train")),
    "worker": Kind(
        "a training worker of Ray", ("resflow", "stage", "train"), 2, lambda driver: train_workers(driver.pid), True
    ),
    "driver": Kind("the driver of a Ray cluster", ("resflow", "stage", "train"), 2),
    "dvc": Kind("`dvc repro`", ("dvc", "repro", "--force", "--single-item", "train")),
    "flow": Kind("the Prefect flow, `resflow run`", ("resflow", "run", "--no-release")),
}


@dataclass(frozen=True)
class Outcome:
    """How one drill ended."""

    kills: int
    steps: tuple[int, ...]
    """Of the newest checkpoint at each kill."""
    by_hand: int
    """Files of DVC's own that a kill left half written, so that `dvc repro` needed them deleted."""
    outputs: Mapping[str, str]


def undisturbed(project: Project, kind: Kind) -> float:
    """Let the command train without a kill; how many seconds it takes."""
    _renew(project, kind, random.Random(f"{kind.what} undisturbed"))
    began = time.monotonic()
    project.run(*kind.command, timeout=START_SECONDS, OMP_WAIT_POLICY="PASSIVE")
    return time.monotonic() - began


def _renew(project: Project, kind: Kind, draw: random.Random) -> None:
    """A change of what changes no bit makes DVC run the stage again."""
    project.edit(train__num_workers=kind.workers, train__max_failures=100 + draw.randrange(10**6))


def drill(project: Project, kind: Kind, seed: int, seconds: float | None = None) -> Outcome:
    """Kill once or twice at moments that `seed` decides, then finish.

    They are at a step of training, from the first to the last; where `seconds` are given, which the command takes, at
    any time from its start to its end.
    """
    draw = random.Random(f"{kind.what} {seed}")
    _renew(project, kind, draw)
    steps: list[int] = []
    left, by_hand, attempts = 0, 0, draw.choice((1, 2))
    for _ in range(attempts):
        followers = list[int]()
        with (project.root.parent / "drill.log").open("a") as log:
            begun = log.tell()
            process = subprocess.Popen(
                kind.command,
                cwd=project.root,
                env=project.env(OMP_WAIT_POLICY="PASSIVE"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        try:
            if seconds is not None:
                is_there = wait(process, draw.random() * seconds)
            else:
                least = min(steps[-1], last_step() - 1) if steps else 0
                is_there = wait_until_step(project, process, draw.randrange(least, last_step()))
            if not is_there:  # it was faster than this look at it
                assert process.returncode == 0
                break
            children = {pid: command_line(pid) for pid in descendants(process.pid)}
            followers = [pid for pid, line in children.items() if any(word in line for word in FOLLOWERS)]
            step, victims = newest(project), kind.victims(process)
            if not victims:  # likewise: the command is about to end by itself
                assert process.wait(END_SECONDS) == 0
                break
            os.kill(victims[0], signal.SIGKILL)
            steps.append(step)
            if kind.survives:
                assert process.wait(END_SECONDS + START_SECONDS) == 0
                assert "going on from step" in Path(log.name).read_bytes()[begun:].decode(), "it began anew"
        finally:
            _end(process, gently=kind.survives)
        alive = [pid for pid in followers if not gone(pid, END_SECONDS)]
        assert not alive, f"these outlive what started them: {alive}"
        left = newest(project)
        by_hand += _delete_torn(project) if kind.command[0] == "dvc" else 0
    if not kind.survives:
        done = project.run(*kind.command, timeout=2 * START_SECONDS, OMP_WAIT_POLICY="PASSIVE")
        # after a run that was not hit, or hit before its first checkpoint, there is nothing to go on from
        assert len(steps) < attempts or not left or "going on from step" in done.out, "it began anew"
    return Outcome(len(steps), tuple(steps), by_hand, outputs(project))


def _delete_torn(project: Project) -> int:
    """What DVC writes in place and cannot read now; the number of such files."""
    torn = locks.torn(project.root)
    for path in torn:
        path.unlink()
    return len(torn)


def outputs(project: Project) -> dict[str, str]:
    """SHA-256 of each output of the stage."""
    return {name: sha256((project.root / name).read_bytes()).hexdigest() for name in OUTPUTS}


def last_step() -> int:
    """Of the recipe: 320 images are trained on."""
    return int(RECIPE["train__epochs"]) * (320 // int(RECIPE["train__batch_size"]))


def newest(project: Project) -> int:
    """The step of the newest checkpoint of a run that is not finished; 0 where there is none."""
    paths = (project.root / ".resflow" / "runs").glob("*/*.pt")
    names = (path.name for path in paths if not (path.parent / "done").exists())
    return max((int(name.split("-")[0]) for name in names), default=0)


def wait_until_step(project: Project, process: subprocess.Popen[str], step: int) -> bool:
    """Whether `step` was reached before the end."""
    deadline = time.monotonic() + START_SECONDS
    while newest(project) < max(step, 1):
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "training does not go on"
        time.sleep(0.005)
    return process.poll() is None


def wait(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether it is still there then."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.poll() is None


def _end(process: subprocess.Popen[str], gently: bool) -> None:
    """Nothing outlives a drill, not even a failed one; what is alive after the kill is the test's own business."""
    if process.poll() is None and gently:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    children = descendants(process.pid)
    process.kill()
    process.wait()
    for pid in children if gently else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
