from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from resflow import params as parameters
from resflow.errors import DataError, SetupError
from resflow.nets.file import ModelCard, save
from resflow.stages import evaluate

CARD = ModelCard(
    structure="resnet8_max", image_shape=(28, 28, 1), classes=tuple("0123456789"), mean=(0.13,), std=(0.31,)
)
COUNT = 40
PARAMS = parameters.load(Path(__file__).parents[3] / "params.yaml")
OUTPUTS = ["calibration.csv", "classes.csv", "confusion.csv", "mistakes.png"]


@pytest.fixture
def root(tmp_path):
    draw = np.random.default_rng(0)
    prepared = tmp_path / "data/prepared"
    (prepared / "test").mkdir(parents=True)
    np.save(prepared / "test" / "images.npy", draw.integers(0, 256, (COUNT, 28, 28, 1), dtype=np.uint8))
    np.save(prepared / "test" / "labels.npy", np.arange(COUNT, dtype=np.uint8) % 10)
    store(tmp_path)
    return tmp_path


def store(root, card=CARD, spoil=False):
    torch.manual_seed(0)
    weights = card.network().state_dict()
    if spoil:
        weights = {name: value * torch.nan if value.is_floating_point() else value for name, value in weights.items()}
    save(root / "models/model.safetensors", weights, card)


def read(root):
    paths = [root / "metrics/evaluate.json", *sorted((root / "plots/evaluate").iterdir())]
    return {path.name: path.read_bytes() for path in paths}


def test_metrics_and_plots_agree_with_each_other(root, capsys):
    evaluate.run(root, PARAMS)
    report = json.loads((root / "metrics/evaluate.json").read_text())
    rows = list(csv.DictReader((root / "plots/evaluate/confusion.csv").open()))
    wrong = sum(row["actual"] != row["predicted"] for row in rows)
    assert [row["actual"] for row in rows] == [str(n % 10) for n in range(COUNT)]
    assert report["error_count"] == wrong
    assert report["accuracy"] == pytest.approx(1 - wrong / COUNT)
    assert report["count"] == sum(row["support"] for row in report["classes"].values()) == COUNT
    bins = list(csv.DictReader((root / "plots/evaluate/calibration.csv").open()))
    error = sum(int(b["count"]) / COUNT * abs(float(b["accuracy"]) - float(b["confidence"])) for b in bins)
    assert report["ece"] == pytest.approx(error, abs=1e-5)
    assert capsys.readouterr().out == f"test accuracy {1 - wrong / COUNT:.2%}, {wrong} of {COUNT} wrong\n"


def test_the_same_model_gives_the_same_bytes_and_nothing_in_them_depends_on_time(root):
    evaluate.run(root, PARAMS)
    first = read(root)
    evaluate.run(root, PARAMS)
    assert sorted(first) == sorted([*OUTPUTS, "evaluate.json"])
    assert read(root) == first
    assert set(json.loads((root / "timings/evaluate.json").read_text())) == {"seconds", "images_per_second"}


def test_images_of_any_number_of_channels_are_measured_and_drawn(root):
    channels = 5
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28, channels), dtype=np.uint8)
    np.save(root / "data/prepared/test/images.npy", images)
    store(root, replace(CARD, image_shape=(28, 28, channels), mean=(0.5,) * channels, std=(0.3,) * channels))
    evaluate.run(root, PARAMS)
    assert sorted(read(root)) == sorted([*OUTPUTS, "evaluate.json"])


def test_without_a_model_it_says_how_to_get_one(root):
    (root / "models/model.safetensors").unlink()
    with pytest.raises(DataError, match="dvc repro"):
        evaluate.run(root, PARAMS)


@pytest.mark.parametrize("card", [replace(CARD, classes=tuple("01234")), replace(CARD, image_shape=(32, 32, 1))])
def test_a_model_for_other_data_is_refused_with_both_sizes(root, card):
    store(root, card)
    with pytest.raises(DataError, match=r"was trained for (5|10) classes .* the test split has 10 of \(28, 28, 1\)"):
        evaluate.run(root, PARAMS)


def test_a_model_that_answers_with_nan_is_refused_and_writes_nothing(root):
    store(root, spoil=True)
    with pytest.raises(DataError, match="not finite"):
        evaluate.run(root, PARAMS)
    assert not (root / "metrics").exists()


def test_what_cannot_be_written_leaves_the_old_files(root):
    evaluate.run(root, PARAMS)
    first = read(root)
    store(root, replace(CARD, mean=(0.5,)))
    # a folder in the place of the file that would be written last
    (root / "plots/evaluate/mistakes.png.partial").mkdir()
    with pytest.raises(SetupError, match=r"mistakes\.png: cannot be written"):
        evaluate.run(root, PARAMS)
    (root / "plots/evaluate/mistakes.png.partial").rmdir()
    assert read(root) == first
