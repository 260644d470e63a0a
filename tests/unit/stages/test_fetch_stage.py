"""Stage `fetch` brings what params.yaml names to where the next stage looks for it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import resflow
from resflow import params
from resflow.errors import SourceError
from resflow.params import Params, RawFile, RawFiles
from resflow.stages import fetch
from resflow.stages.paths import RAW, STATE

NAMES = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture
def chosen() -> Params:
    """The project's parameters with four small files in a folder of the project."""
    files = {name: RawFile(name=name, sha256=hashlib.sha256(name.encode()).hexdigest()) for name in NAMES}
    given = params.load(Path(__file__).parents[3] / "params.yaml")
    data = given.data.model_copy(update={"sources": ("mirror",), "files": RawFiles(**files)})
    return given.model_copy(update={"data": data})


def test_the_four_files_come_to_the_raw_folder_and_nothing_else_does(tmp_path: Path, chosen: Params) -> None:
    (tmp_path / "mirror").mkdir()
    for name in NAMES:
        (tmp_path / "mirror" / name).write_text(name)
    fetch.run(tmp_path, chosen)
    assert {path.name: path.read_text() for path in (tmp_path / RAW).iterdir()} == {name: name for name in NAMES}
    assert {path.name for path in tmp_path.iterdir()} == {"mirror", RAW.parts[0], STATE.name}


def test_a_folder_that_git_does_not_know_is_found_from_a_work_tree(tmp_path: Path, chosen: Params) -> None:
    (tree := tmp_path / ".resflow/worktrees/12-34").mkdir(parents=True)
    with pytest.raises(SourceError, match="gave it: mirror no such folder"):
        fetch.run(tree, chosen)
    (tmp_path / "mirror").mkdir()
    for name in NAMES:
        (tmp_path / "mirror" / name).write_text(name)
    fetch.run(tree, chosen)
    assert {path.name for path in (tree / RAW).iterdir()} == {*NAMES}


def test_without_any_source_it_is_one_error(tmp_path: Path, chosen: Params) -> None:
    with pytest.raises(SourceError, match="mirror no such folder"):
        fetch.run(tmp_path, chosen)


def test_it_loads_no_engine() -> None:
    code = "import sys, resflow.stages.fetch; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(resflow.__file__).parents[1])}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "prefect", "dvc", "boto3", "numpy"} & set(out.stdout.split())
