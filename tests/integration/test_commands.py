"""The commands that use what a run has released: models, predict, store."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Project

pytestmark = pytest.mark.integration

NAME = "mnist-resnet"
FIRST = f"{NAME}@v0.1.0"


@pytest.fixture
def digits(tmp_path: Path) -> list[Path]:
    """The class 3 as the networks of these tests know it: light on dark as PNG, dark on light as JPEG."""
    image = np.zeros((28, 28), np.uint8)
    image[8:10, 4:24] = 255
    paths = [tmp_path / "light on dark.png", tmp_path / "dark.jpg"]
    Image.fromarray(image).save(paths[0])
    Image.fromarray(255 - image).save(paths[1], quality=95)
    return paths


def test_models_list_has_a_line_for_each_version_that_grep_finds(released: Project) -> None:
    header, line = released.run("resflow", "models", "list", COLUMNS="40").out.splitlines()
    assert header.split() == ["version", "stages", "made", "commit", "message"]
    assert line.split()[:2] == [FIRST, "prod"]
    assert "test accuracy" in line
    [listed] = json.loads(released.run("resflow", "models", "list", "--json").out)
    assert (listed["name"], listed["version"], listed["stages"]) == (NAME, "v0.1.0", ["prod"])


def test_models_show_tells_where_a_version_came_from(released: Project) -> None:
    shown = json.loads(released.run("resflow", "models", "show", f"{NAME}@prod", "--json").out)
    lineage = shown["lineage"]
    assert shown["commit"] == lineage["commit"] == released.git("rev-parse", f"{FIRST}^{{commit}}")
    assert "data/raw" in lineage["data"]
    assert "src/resflow/stages/train.py" in lineage["code"]
    out = released.run("resflow", "models", "show", FIRST).out
    *lines, told, recipe = out.splitlines()
    assert told == "Its files, in a work tree beside yours:"
    rows = dict(line.split("  ", 1) for line in lines if line)
    assert rows["made on"].split() == [released.git("rev-parse", "main")[:12], "main"]
    assert "epochs 2" in rows["params train"]
    assert rows["params net"].split() == ["name", "resnet8_avg"]
    assert shown["get_it"] == recipe
    shell = f"stty cols 80; exec resflow models show {FIRST}"
    seen = released.run("script", "-qec", shell, "/dev/null", TERM="xterm", COLUMNS="80").out.splitlines()
    assert recipe in seen, "on a terminal it is not folded, and can be copied"
    assert max(len(line) for line in seen if line != recipe) <= 80
    _check_that_it_gets_the_files(released, recipe)
    assert f"accuracy {lineage['metrics']['metrics/evaluate.json']['accuracy']:g}" in out
    assert "classes.0" not in out, "fifty figures in one line are for --json"


def _check_that_it_gets_the_files(project: Project, recipe: str) -> None:
    """In the clone that made the version, where its files lie about untracked, and with the store stopped."""
    before = project.git("status", "--porcelain")
    assert "dvc.lock" in before
    project.run("resflow", "store", "stop")
    project.run("bash", "-ec", recipe)
    made = Project(project.root.parent / f"{NAME}-v0.1.0", project.home)
    assert made.digest() == project.digest()
    assert (made.git("status", "--porcelain"), project.git("status", "--porcelain")) == ("", before)
    project.git("worktree", "remove", str(made.root))


def test_models_promote_is_idempotent_and_says_what_it_did(copied: Project) -> None:
    assert copied.run("resflow", "models", "promote", NAME, "--stage", "canary").out == f"{FIRST} is in canary now\n"
    again = copied.run("resflow", "models", "promote", FIRST, "--stage", "canary").out
    assert again == f"{FIRST} is in canary already; nothing changed\n"
    assert copied.run("resflow", "models", "list").out.splitlines()[1].split("  ")[1] == "canary, prod"


def test_a_stopped_store_is_started_by_pull_and_predict_takes_what_is_there(
    released: Project, digits: list[Path], tmp_path: Path
) -> None:
    """And a version's model answers as the file of the bundle does, inverting what is dark on light."""
    released.run("resflow", "store", "stop")
    released.run("resflow", "store", "status", code=3)
    to = tmp_path / "new" / "release"
    done = released.run("resflow", "models", "pull", f"{NAME}@prod", "--to", str(to))
    assert f"of {FIRST} are in {to}, each verified by its SHA-256" in done.out
    for name, entry in json.loads((to / "manifest.json").read_text())["files"].items():
        assert sha256((to / name).read_bytes()).hexdigest() == entry["sha256"]
    assert "The store answers at http://127.0.0.1:" in released.run("resflow", "store", "status").out

    images = [str(path) for path in digits]
    [light, dark] = json.loads(released.run("resflow", "predict", *images, "--model", f"{NAME}@prod", "--json").out)
    assert [light["inverted"], dark["inverted"]] == [False, True]
    assert light["class"] == dark["class"]
    assert len(light["top"]) == 3
    assert light["top"][0] == {"class": light["class"], "probability": light["probability"]}
    other = json.loads(
        released.run("resflow", "predict", *images, "--model", str(to / "model.safetensors"), "--json").out
    )
    assert other == [light, dark]


def test_predict_takes_the_trained_model_from_any_folder_of_the_project(released: Project, digits: list[Path]) -> None:
    below = Project(released.root / "docs", released.home, {"PYTHONPATH": released.env()["PYTHONPATH"]})
    header, light, dark = below.run("resflow", "predict", *map(str, digits), COLUMNS="20").out.splitlines()
    assert header.split("  ")[0] == "image"
    assert light.startswith(f"{digits[0]}  ")
    assert dark.startswith(f"{digits[1]} ")
    assert dark.endswith("inverted")


def test_the_store_starts_stops_and_says_so(copied: Project) -> None:
    assert copied.run("resflow", "store", "stop").out == "The store was not running\n"
    first = copied.run("resflow", "store", "start").out
    assert copied.run("resflow", "store", "start").out == first
    assert first.split("; ")[0] in copied.run("resflow", "store", "status").out
    assert copied.run("resflow", "store", "stop").out == "The store has stopped\n"


def test_the_summary_of_a_run_is_plain_lines_on_a_pipe(released: Project) -> None:
    said = (released.root.parent / "first-run.txt").read_text()
    assert "\x1b" not in said
    assert any(
        line.split() == ["published", f"s3://resflow/models/{NAME}/v0.1.0/", *line.split()[2:]]
        for line in said.splitlines()
    )
    assert "Next:  resflow models list" in said


def test_models_are_shown_without_the_store_and_without_data(released: Project, tmp_path: Path) -> None:
    """Versions are git: a clone has them, and the files are in the store of the clone that made them."""
    released.git("clone", "-q", str(released.root), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", released.home)
    assert FIRST in clone.run("resflow", "models", "list").out
    told, recipe = clone.run("resflow", "models", "show", FIRST).out.splitlines()[-2:]
    assert told == "Its files, in a work tree beside yours; FIRST is the clone that made it:"
    clone.run("bash", "-ec", recipe.replace("cd FIRST", f"cd {released.root}"))
    assert Project(tmp_path / f"{NAME}-v0.1.0", released.home).digest() == released.digest()
    assert not (clone.root / ".resflow").exists(), "a store that can hold nothing was started"
    shutil.rmtree(clone.root)
