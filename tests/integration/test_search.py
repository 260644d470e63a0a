"""A search as a user runs it: killed in the middle, run again, its front taken over into params.yaml."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from resflow import params

if TYPE_CHECKING:
    from tests.conftest import Project

pytestmark = pytest.mark.integration

SPACE = {
    "net.blocks": [[1, 1], [1, 1, 1]],
    "net.widths": [[4, 8], [4, 8, 8]],
    "train.lr": {"low": 0.05, "high": 0.2, "log": True},
}
TRIALS = """
import sys
from pathlib import Path
from flows.study import plan_of
from resflow import params
from resflow.training.cluster.session import connected

root = Path.cwd()
plan = plan_of(root, params.load(root / "params.yaml"))
with connected(plan.base, None):
    from resflow.study import search

    search.run_trials(plan, lambda line: print(line, flush=True))
"""


def records(root: Path, kind: str = "trials") -> dict[str, Any]:
    found = (root / ".resflow/study" / kind).glob("*.json")
    return {path.name: json.loads(path.read_text()) for path in found}


def test_a_trial_that_ray_kills_for_the_memory_of_the_machine_is_an_outcome(copied: Project) -> None:
    copied.edit(search__space=SPACE, search__trials=1, train__max_failures=0)
    full = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "50"}  # full from the start
    done = copied.run("python", "-c", TRIALS, **full)
    assert "epochs, out of memory  (" in done.out
    assert done.err == ""
    assert [(one["status"], one["accuracies"]) for one in records(copied.root).values()] == [("memory", [])]


def test_a_killed_search_goes_on_and_its_front_is_taken_over(copied: Project) -> None:
    copied.edit(search__space=SPACE, search__trials=2, search__final_seeds=1, train__epochs=1)
    command = ["python", "-c", TRIALS]
    killed = subprocess.Popen(
        command, cwd=copied.root, env=copied.env(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert killed.stdout is not None
    first = killed.stdout.readline()
    assert first.startswith("trial "), first
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = {name: one for name, one in records(copied.root).items() if one["status"] != "running"}
    begun = set(records(copied.root))
    assert before

    done = copied.run("resflow", "search")
    after = records(copied.root)
    assert {name: after[name] for name in before} == before
    assert begun <= after.keys()
    assert sorted(one["number"] for one in after.values()) == [1, 2]
    assert {one["status"] for one in after.values()} <= {"done", "stopped"}
    assert f"trials: {2 - len(before)} of 2 to train, {len(before)} found" in done.out
    assert done.out.count(", seed 0: validation accuracy") == 2 - len(before)
    report = json.loads((copied.root / "study/search.json").read_text())
    assert len(records(copied.root, "finals")) == len(report["front"]) > 0
    assert all(point["test"]["n"] == 1 for point in report["front"])
    assert copied.run("resflow", "search", "show").out in done.out
    assert not list((copied.root / ".resflow").rglob("*.pt"))

    applied = copied.run("resflow", "search", "apply").out
    assert "net.blocks" in applied
    best = report["front"][0]
    lines = [line[1:].strip() for line in copied.git("diff", "-U0", "params.yaml").splitlines() if line[0] == "+"]
    assert params.read(copied.root / "params.yaml")["net"]["blocks"] == best["point"]["net.blocks"]
    assert f"lr: {best['point']['train.lr']}" in lines
    assert copied.git("status", "--short", "study") == ""
