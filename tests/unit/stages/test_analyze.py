"""The stage `analyze` and the command of that name: exact figures are hashed, measured ones are not."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from resflow import cli
from resflow import params as parameters
from resflow.errors import DataError, NetError
from resflow.stages import analyze

ROOT = Path(__file__).parents[3]
LOADED = parameters.load(ROOT / "params.yaml")
SHEET = {"image_shape": [16, 16, 1], "classes": ["a", "b"], "mean": [0.1], "std": [0.3]}


def params(seconds: float = 0.0, **net: Any) -> parameters.Params:
    small = {"structures": ("article_cnn",), "batch_sizes": (2,), "seconds": seconds}
    changes = {
        "net": LOADED.net.model_copy(update={"name": "resnet8_max", **net}),
        "train": LOADED.train.model_copy(update={"threads": 1, "batch_size": 4, "device": "cpu"}),
        "analyze": LOADED.analyze.model_copy(update=small),
    }
    return LOADED.model_copy(update=changes)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/datasheet.json").write_text(json.dumps(SHEET))
    return tmp_path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def hashed(root: Path) -> dict[str, bytes]:
    paths = [*(root / "metrics").rglob("*.*"), *(root / "plots").rglob("*.*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_exact_figures_are_the_same_bytes_whether_anything_is_measured_or_not(root: Path) -> None:
    analyze.run(root, params(seconds=0.001))
    first = hashed(root)
    assert sorted(first) == ["metrics/analyze.json", "plots/analyze/layers.csv", "plots/analyze/structures.csv"]
    timing = json.loads((root / "timings/analyze.json").read_text())
    assert list(timing["structures"]) == ["resnet8_max", "article_cnn"]
    assert timing["machine"]["peak_flops"] > 0
    for name in ("parts", "throughput"):  # plots would add up those of several
        assert {row["structure"] for row in rows(root / f"timings/analyze/{name}.csv")} == {"resnet8_max"}

    analyze.run(root, params())
    assert hashed(root) == first
    assert list((root / "timings").iterdir()) == [], "what an earlier run measured is not told of this one"

    metrics = json.loads(first["metrics/analyze.json"])
    layers = rows(root / "plots/analyze/layers.csv")
    for key in ("parameters", "macs", "activation_bytes", "kept_bytes"):
        assert sum(int(row[key]) for row in layers) == metrics[key]
    assert list(metrics["compared"]) == ["article_cnn"]
    assert [row["structure"] for row in rows(root / "plots/analyze/structures.csv")] == ["resnet8_max", "article_cnn"]


def test_a_structure_that_parameters_changed_is_not_called_by_its_name_alone(root: Path) -> None:
    analyze.run(root, params(widths=(8, 16, 32)))
    assert rows(root / "plots/analyze/structures.csv")[0]["structure"] == "resnet8_max (changed)"


def test_what_cannot_be_analysed_is_told_and_nothing_is_written(root: Path) -> None:
    with pytest.raises(NetError, match=r"^net: resnet50 halves images 5 times, which 16x16 ones do not bear"):
        analyze.run(root, params(name="resnet50"))
    (root / "data/datasheet.json").unlink()
    with pytest.raises(DataError, match=r"datasheet\.json: is missing"):
        analyze.run(root, params())
    assert not (root / "metrics").exists()


# --- the command ------------------------------------------------------------------------------------------------------


def told(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli.app, ["analyze", *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(root)
    return root


def test_the_command_tells_what_papers_print_for_the_images_asked_for(here: Path) -> None:
    shown = ("resnet20", "resnet8", "--image", "32x32x3", "--classes", "10", "--no-measure")
    found = json.loads(told(*shown, "--json", "--layers"))
    assert found["machine"] is None
    assert list(found["structures"]) == ["resnet20", "resnet8"]
    assert (found["structures"]["resnet20"]["parameters"], found["structures"]["resnet20"]["macs"]) == (
        269_722,
        40_551_040,
    )
    assert found["structures"]["resnet8"]["layers"][0]["output"] == [16, 32, 32]
    lines = told(*shown).splitlines()
    assert lines[0] == "Exact, for one image in float32:"
    assert lines[2].split()[:4] == ["resnet20", "32x32x3", "269,722", "40,551,040"]


def test_without_names_it_takes_the_projects_structure_and_data_and_saves_what_it_is_told_to(here: Path) -> None:
    text = told("--no-measure", "--to", "found")
    assert f"{LOADED.net.name}" in text
    assert "16x16x1" in text
    names = sorted(path.name for path in (here / "found").iterdir())
    layers = f"layers-{LOADED.net.name}"
    assert names == ["analysis.json", "analysis.png", f"{layers}.csv", f"{layers}.png", "structures.csv"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (here / "found").glob("*.png"))


def test_the_command_refuses_what_it_cannot_analyse(here: Path) -> None:
    with pytest.raises(NetError, match=r"unknown structure 'resnet21'\. Nearest known: .*resnet20"):
        told("resnet21")
    with pytest.raises(NetError, match=r"resnet50 halves images 5 times, which 12x16 ones .* at least 17x17 pixels"):
        told("resnet50", "--image", "12x16x3", "--no-measure")
    assert "such as 28x28x1" in told("--image", "28x28", code=2)
    assert "--batch-sizes is '8,none'" in told("--batch-sizes", "8,none", code=2)
