"""What the engines cost: all of a first and a second `resflow run` that is not a stage's own work.

    python -m benchmarks.overhead

Runs the committed code on real MNIST in a fresh clone with an empty HOME. Taken off are the epochs of `train` and the
bodies of the other stages, each timed once more by itself. The rest is an upper bound for Prefect, Ray, DVC, git, the
store, publishing, and interpreters' starts, that of torch among them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import record, table
from resflow.stages import NAMES

HELP_TRIES = 5


def main() -> None:
    """Clone, run twice, time `resflow --help`, and record."""
    with tempfile.TemporaryDirectory() as folder:
        clone, home = Path(folder) / "clone", Path(folder) / "home"
        home.mkdir()
        subprocess.run(["git", "clone", "-q", ".", str(clone)], check=True)
        env = _environment(clone, home)
        try:
            first = _timed(clone, env, "run")
            epochs = json.loads((clone / "timings" / "train.json").read_text())["epoch_seconds"]
            second = _timed(clone, env, "run")
            shutil.rmtree(clone / "data" / "raw")
            own = {name: _body(clone, env, name) for name in NAMES if name != "train"} | {"train": sum(epochs)}
            helps = sorted(_timed(clone, env, "--help") for _ in range(HELP_TRIES))
        finally:
            _timed(clone, env, "store", "stop")
    rows = [
        ["first run", f"{first:.1f}"],
        *([f"of that, {name} itself", f"{seconds:.1f}"] for name, seconds in own.items()),
        ["first run, all else", f"{first - sum(own.values()):.1f}"],
        ["second run, nothing changed", f"{second:.1f}"],
        [f"`resflow --help` (median of {HELP_TRIES})", f"{helps[HELP_TRIES // 2]:.2f}"],
    ]
    load = f"Load of the machine at the end: {os.getloadavg()[0]:.1f}.\n"
    record("Overhead", "python -m benchmarks.overhead", table(["what", "seconds"], rows) + "\n" + load)


def _environment(clone: Path, home: Path) -> dict[str, str]:
    mine = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{clone / 'src'}{os.pathsep}{clone}",
    }
    return {**os.environ, **mine}


def _timed(clone: Path, env: dict[str, str], *arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run(["resflow", *arguments], cwd=clone, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _body(clone: Path, env: dict[str, str], stage: str) -> float:
    """Seconds that the body of a stage takes, without those of the interpreter."""
    code = (
        "import time; from pathlib import Path\n"
        f"from resflow import params; from resflow.stages import {stage} as stage\n"
        "settings = params.load(Path('params.yaml')); started = time.perf_counter()\n"
        "stage.run(Path.cwd(), settings); print(time.perf_counter() - started)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=clone, env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
