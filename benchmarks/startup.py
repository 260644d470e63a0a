"""Seconds that engines take to do nothing, and resflow next to nothing, from the start of a process to its end.

    python -m benchmarks.startup             # five rounds
    python -m benchmarks.startup --rounds 1

Contenders take turns, each in a process of its own, with an empty HOME that they share; one round before those that
count makes what is made once (Prefect's database, Ray's token). What the engines add to a whole run is
`benchmarks.overhead`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import record, table
from resflow import params
from resflow.data import arrays

REPOSITORY = Path(__file__).parents[1]
PARAMS, ARRAYS = REPOSITORY / "params.yaml", "data/prepared"
RAY_TRAIN = """
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
{start}
scaling = ScalingConfig(num_workers={workers})
TorchTrainer(lambda: None, scaling_config=scaling, run_config=RunConfig(name="empty")).fit()
"""
START = 'ray.init(address="local", include_dashboard=False, log_to_driver=False)'
RESFLOW = """
from pathlib import Path

from benchmarks.contenders import job
from resflow import params
from resflow.training.cluster.trainer import fit

changes = {{"train.epochs": 1, "train.device": "cpu", "train.threads": 1, "train.num_workers": {workers}}}
settings = params.parse(params.override(params.read(Path("{params}")), changes, "params.yaml"), "params.yaml")
fit(job(Path("{arrays}").resolve(), settings), None, Path("live"))
"""
"""An epoch of two steps."""
PREFECT = """
from prefect import flow

@flow
def nothing():
    pass

nothing()
"""
SCRIPTS = {
    "Python alone": "",
    "import torch": "import torch",
    "Ray Train in local mode, an empty loop": RAY_TRAIN.format(start="", workers=0),
    "a local Ray cluster, started and ended": f"import ray\n{START}",
    "Ray Train on a local cluster of two workers, an empty loop": RAY_TRAIN.format(start=START, workers=2),
    "resflow in local mode, two steps": RESFLOW.format(workers=1, params=PARAMS, arrays=ARRAYS),
    "resflow on a local cluster of two workers, two steps": RESFLOW.format(workers=2, params=PARAMS, arrays=ARRAYS),
    "import prefect": "import prefect",
    "Prefect, an empty flow without a server": PREFECT,
}
STAGE = "stages:\n  nothing:\n    cmd: 'true'\n"


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        root, env = _project(Path(folder))
        commands = {name: [sys.executable, "-c", script] for name, script in SCRIPTS.items()}
        commands["DVC, `dvc repro` with nothing to do"] = ["dvc", "repro"]
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, command in commands.items():
                taken = _timed(command, root, env)
                if number:
                    seconds[name].append(taken)
    rows = [
        [name, f"{statistics.median(taken):.2f}", f"{min(taken):.2f} to {max(taken):.2f}"]
        for name, taken in seconds.items()
    ]
    load = f"Load of the machine at the end: {os.getloadavg()[0]:.1f}; n = {rounds} rounds.\n"
    body = table(["", "seconds (median)", "lowest to highest"], rows) + "\n" + load
    record("Start-up of the engines", f"python -m benchmarks.startup --rounds {rounds}", body)


def _project(folder: Path) -> tuple[Path, dict[str, str]]:
    """A folder with arrays and a DVC pipeline that does nothing, and an environment with a HOME of its own."""
    root, home = folder / "project", folder / "home"
    root.mkdir()
    home.mkdir()
    env = {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # as resflow.training.cluster.trainer sets it
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    for name in ("RAY_ADDRESS", "PREFECT_API_URL"):
        env.pop(name, None)
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    first = ["git", *identity, "commit", "-q", "--allow-empty", "-m", "Start"]  # DVCLive wants one
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], first):
        subprocess.run(command, cwd=root, env=env, check=True)
    (root / "dvc.yaml").write_text(STAGE)
    count = 2 * params.load(PARAMS).train.batch_size
    for split in ("train", "validation"):
        (root / ARRAYS / split).mkdir(parents=True)
        np.save(arrays.images_path(root / ARRAYS, split), np.zeros((count, 28, 28, 1), dtype=np.uint8))
        np.save(arrays.labels_path(root / ARRAYS, split), np.zeros(count, dtype=np.uint8))
    return root, env


def _timed(command: list[str], root: Path, env: dict[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
