"""The stage `robustness` on a small network: files, bits, and what is wrong with what it is given."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resflow import params as parameters
from resflow.evaluation.metrics import wilson
from resflow.nets.file import save
from resflow.params import Params
from resflow.stages import robustness
from tests.unit.training import small

OUTPUTS = ["attacks.csv", "corruptions.csv", "corruptions.png", "severities.csv"]
PARAMS = Path(__file__).parents[3] / "params.yaml"


def settings(**changes: Any) -> Params:
    small = {"images": 40, "corruptions": ["fog", "shear"], "epsilons": [0.2, 0.05], "steps": 3, "restarts": 2}
    tree = parameters.override(parameters.read(PARAMS), {"robustness": {**small, **changes}}, "test")
    return parameters.parse(parameters.override(tree, {"train.threads": 1}, "test"), "test")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Of a network that is right about most images, and not for long."""
    best = small.run(small.settings(epochs=4)).best
    torch.use_deterministic_algorithms(False)
    return best


@pytest.fixture
def root(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    folder = tmp_path / "data/prepared/test"
    folder.mkdir(parents=True)
    save(tmp_path / "models/model.safetensors", weights, small.CARD)
    for name, content in small.split(60, seed=2)._asdict().items():
        np.save(folder / f"{name}.npy", content)
    return tmp_path


def read(root: Path) -> dict[str, bytes]:
    paths = [root / "metrics/robustness.json", *sorted((root / "plots/robustness").iterdir())]
    return {path.name: path.read_bytes() for path in paths}


def rows(root: Path, name: str) -> list[dict[str, str]]:
    with (root / "plots/robustness" / name).open() as file:
        return list(csv.DictReader(file))


def test_tables_and_figures_agree_and_are_the_same_bytes_each_time(root: Path, capsys: pytest.CaptureFixture) -> None:
    robustness.run(root, settings())
    first, report = read(root), json.loads((root / "metrics/robustness.json").read_text())
    assert list(first) == ["robustness.json", *OUTPUTS]
    each = rows(root, "corruptions.csv")
    assert [(row["corruption"], row["severity"]) for row in each] == [(n, s) for n in ("fog", "shear") for s in "12345"]
    assert report["corruptions"]["fog"] == pytest.approx(np.mean([float(row["accuracy"]) for row in each[:5]]))
    for row in each:
        low, high = wilson(round(40 * float(row["accuracy"])), 40)
        assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high), abs=1e-6)
    attacked = rows(root, "attacks.csv")
    assert [float(row["epsilon"]) for row in attacked] == [0, 0.05, 0.2]
    accuracies = [float(row["pgd"]) for row in attacked]
    assert accuracies == sorted(accuracies, reverse=True)
    assert float(attacked[0]["pgd"]) == report["clean"]["accuracy"] > report["pgd"]["0.2"]["accuracy"]
    assert f"pgd at 0.2 {report['pgd']['0.2']['accuracy']:.2%}" in capsys.readouterr().out
    robustness.run(root, settings())
    assert read(root) == first


def test_images_of_any_number_of_channels_are_measured_and_drawn(root: Path) -> None:
    height, width, _ = small.CARD.image_shape
    card = replace(small.CARD, image_shape=(height, width, 5), mean=(0.5,) * 5, std=(0.3,) * 5)
    save(root / "models/model.safetensors", card.network().state_dict(), card)
    images = np.load(root / "data/prepared/test/images.npy")
    np.save(root / "data/prepared/test/images.npy", images.repeat(5, axis=3))
    robustness.run(root, settings(downsample=2))
    assert list(read(root)) == ["robustness.json", *OUTPUTS]


def test_more_restarts_find_no_less(root: Path) -> None:
    def standing(restarts: int) -> float:
        robustness.run(root, settings(corruptions=[], restarts=restarts, epsilons=[0.02]))
        return float(rows(root, "attacks.csv")[1]["pgd"])

    assert standing(6) <= standing(1)


def test_without_anything_asked_for_torch_is_not_loaded(root: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from resflow import params; from resflow.stages import robustness\n"
        "none = {'robustness.corruptions': [], 'robustness.epsilons': []}\n"
        "tree = params.override(params.read(Path(sys.argv[1])), none, '')\n"
        "robustness.run(Path(sys.argv[2]), params.parse(tree, ''))\n"
        "assert 'torch' not in sys.modules"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script, str(PARAMS), str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing was asked for" in done.stdout
    assert list(read(root)) == ["robustness.json", *OUTPUTS]


def test_where_there_are_fewer_images_than_asked_for_all_of_them_are_measured(root: Path) -> None:
    robustness.run(root, settings(images=61))
    assert json.loads((root / "metrics/robustness.json").read_text())["images"] == 60


def test_a_model_that_answers_with_nan_is_right_about_nothing(root: Path, weights: dict[str, Tensor]) -> None:
    spoilt = {name: value * torch.nan if value.is_floating_point() else value for name, value in weights.items()}
    save(root / "models/model.safetensors", spoilt, small.CARD)
    robustness.run(root, settings(corruptions=[]))
    assert json.loads((root / "metrics/robustness.json").read_text())["clean"]["accuracy"] == 0
