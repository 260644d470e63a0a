"""Test accuracy over seeds, and seconds of training, for params.yaml and for an experiment's parameters.

    python -m benchmarks.accuracy --seeds 0 1 2
    python -m benchmarks.accuracy --seeds 0 --params experiments/article.yaml

Each seed prepares and evaluates in a folder and a process of its own. The stage `train` runs there as `dvc repro` runs
it, so that its seconds from process start hold the interpreter, imports, Ray Train, validation and the writing of the
model. It needs data/raw (`dvc repro fetch`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import record, table
from resflow import params
from resflow.stages import evaluate, prepare
from resflow.stages.paths import METRICS, RAW, TIMINGS


def main() -> None:
    """Run the seeds one after the other and record the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--params", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(run(arguments.one, arguments.params)))
        return
    chosen = ["--params", str(arguments.params)] if arguments.params else []
    command = [sys.executable, "-m", "benchmarks.accuracy", *chosen]
    results = []
    for seed in arguments.seeds:
        done = subprocess.run([*command, "--one", str(seed)], check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"seed {seed}: {results[-1]}", flush=True)
    name = arguments.params.stem if arguments.params else "params.yaml"
    shown = ["python -m benchmarks.accuracy --seeds", *map(str, arguments.seeds), *chosen]
    record(f"Accuracy: {name}", " ".join(shown), _body(results))


def run(seed: int, changes: Path | None) -> dict[str, Any]:
    """Prepare, train and evaluate with one seed; the figures of interest."""
    tree = yaml.safe_load(Path("params.yaml").read_text())
    if changes:
        params.override(tree, yaml.safe_load(changes.read_text()), str(changes))
    settings = params.parse(params.override(tree, {"seed": seed}, "--seeds"), "params.yaml")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / RAW).parent.mkdir(parents=True)
        (root / RAW).symlink_to(RAW.resolve())
        (root / "params.yaml").write_text(json.dumps(tree))  # JSON is YAML
        prepare.run(root, settings)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "resflow", "stage", "train"], cwd=root, check=True, stdout=sys.stderr)
        whole = time.perf_counter() - started
        evaluate.run(root, settings)
        measured = {name: json.loads((root / METRICS / f"{name}.json").read_text()) for name in ("train", "evaluate")}
        seconds = sum(json.loads((root / TIMINGS / "train.json").read_text())["epoch_seconds"])
    return {
        "seed": seed,
        "accuracy": measured["evaluate"]["accuracy"],
        "validation_accuracy": measured["train"]["validation_accuracy"],
        "parameters": measured["train"]["parameters"],
        "seconds": round(seconds, 1),
        "from_process_start": round(whole, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def _body(results: list[dict[str, Any]]) -> str:
    accuracies = [result["accuracy"] for result in results]
    spread = f", standard deviation {statistics.stdev(accuracies):.3%}" if len(accuracies) > 1 else ""
    percent, times = ("accuracy", "validation_accuracy"), ("seconds", "from_process_start", "load")
    rows = [
        [str(one["seed"]), *(f"{one[key]:.2%}" for key in percent), *(str(one[key]) for key in times)]
        for one in results
    ]
    header = [
        "seed",
        "test accuracy",
        "validation accuracy",
        "training (s)",
        "from process start to model (s)",
        "load of the machine",
    ]
    mean = statistics.mean(accuracies)
    median, whole = (statistics.median(one[key] for one in results) for key in times[:2])
    facts = f"{results[0]['parameters']:,} parameters; mean test accuracy {mean:.3%} (n = {len(results)}{spread}); "
    return f"{facts}median training time {median:.1f} s, {whole:.1f} s from process start to model.\n\n" + table(
        header, rows
    )


if __name__ == "__main__":
    main()
