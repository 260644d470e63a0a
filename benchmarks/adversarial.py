"""What hardening leaves to an attack: adversarial training, other initial weights, and downsampling.

    python -m benchmarks.adversarial
    python -m benchmarks.adversarial --images 200 --only adversarial

Each network is trained by the stage `train`, in a folder and a process of its own, and attacked through all that stands
before it. It needs data/prepared (`dvc repro prepare`). docs/robustness.md says how to read the result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.report import record, table
from resflow import compute, params
from resflow.data import arrays
from resflow.evaluation.metrics import wilson
from resflow.evaluation.robustness import Subject
from resflow.nets import file
from resflow.params import Params
from resflow.stages.paths import MODEL, PREPARED, TIMINGS

EPSILON = 0.3
"""As in the challenge of Madry et al. 2018, of a full intensity of 1."""
RECIPES: dict[str, Callable[[], dict[str, Any]]] = {
    "params.yaml": dict,
    "orthogonal": lambda: {"net.init": "orthogonal"},
    "adversarial": lambda: yaml.safe_load(Path("experiments/adversarial.yaml").read_text()),
}
"""By what differs from params.yaml."""
NAMES = {
    "params.yaml": "params.yaml",
    "orthogonal": "the same, `net.init: orthogonal`",
    "adversarial": "experiments/adversarial.yaml",
}
HEADER = ["network", "training (s)", "clean", "FGSM", "PGD-20", "PGD-100"]


def main() -> None:
    """Train each network, attack it, and record the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="test images that are attacked")
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only:
        for row in measured(name, arguments.images):
            print(*row, sep=" | ", flush=True)
            rows.append(row)
    shown = ["python -m benchmarks.adversarial", *sys.argv[1:]]
    low, high = (f"{bound:.1%}" for bound in wilson(arguments.images // 2, arguments.images))
    record(
        "Robustness: what hardening leaves to an attack",
        " ".join(shown),
        f"Accuracy on the first {arguments.images} test images; a pixel changes by {EPSILON} of full intensity. "
        f"PGD steps by a tenth of that from one random start. At 50 % the 95 % interval (Wilson) is {low} to {high}; "
        "elsewhere it is narrower.\n\n" + table(HEADER, rows),
    )


def measured(name: str, count: int) -> list[list[str]]:
    """The rows of one network: as it is and, of params.yaml, behind downsampling, attacked through it and past it."""
    tree = params.override(yaml.safe_load(Path("params.yaml").read_text()), RECIPES[name](), name)
    settings = params.parse(tree, name)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "data").symlink_to(Path("data").resolve())
        (root / "params.yaml").write_text(json.dumps(tree))  # JSON is YAML
        subprocess.run([sys.executable, "-m", "resflow", "stage", "train"], cwd=root, check=True, stdout=sys.stderr)
        seconds = sum(json.loads((root / TIMINGS / "train.json").read_text())["epoch_seconds"])
        rows = [[NAMES[name], f"{seconds:.0f}", *attacked(root, settings, count)]]
        if name == "params.yaml":
            rows.append([f"{NAMES[name]}, downsampled by 2", "0", *attacked(root, settings, count, downsample=2)])
            past = attacked(root, settings, count, downsample=2, past=True)
            rows.append(["the same, attacked past the downsampling: false security", "0", *past])
    return rows


def attacked(root: Path, settings: Params, count: int, **options: Any) -> list[str]:
    """Accuracies of the network in `root`."""
    net, card = file.load(root / MODEL)
    test = arrays.load(root / PREPARED, "test")
    with compute.deterministic(settings.train.threads):
        device = compute.device(settings.train.device)
        subject = Subject(net, card, test.images[:count], test.labels[:count], device=device, **options)
        answers = [subject.clean(), subject.under_fgsm(EPSILON)]
        for steps in (20, 100):
            found = subject.under_pgd([EPSILON], steps=steps, step_size=0.1, restarts=1, seed=settings.seed)
            answers += [right for _, right in found]
    return [_percent(right) for right in answers]


def _percent(right: NDArray[np.bool_]) -> str:
    return f"{right.mean():.1%}"


if __name__ == "__main__":
    main()
