"""What is read from dvc.yaml and dvc.lock, and the root of a project."""

from __future__ import annotations

import itertools
from hashlib import md5
from pathlib import Path

import pytest
import yaml

from resflow import pipeline
from resflow.errors import SetupError
from resflow.stages import NAMES
from tests.conftest import REPOSITORY
from tests.unit.pipeline.projects import declare, repository

STAGES = {
    "raw": {"cmd": "x", "outs": ["data/raw"]},
    "arrays": {"cmd": "x", "deps": ["data/raw"], "outs": ["data/arrays", {"sheet.json": {"cache": False}}]},
    "model": {"cmd": "x", "deps": ["code.py", "data/arrays/train.npy"], "metrics": [{"m.json": {"cache": False}}]},
    "report": {"cmd": "x", "deps": ["m.json", "sheet.json"], "plots": ["p.csv"]},
}


def test_the_stages_of_this_project_are_those_that_have_a_body() -> None:
    assert tuple(pipeline.stage_names(REPOSITORY)) == NAMES


@pytest.mark.parametrize("order", [*itertools.permutations(STAGES)])
def test_a_stage_comes_after_those_whose_outputs_it_reads_also_in_part(order: tuple[str, ...], tmp_path: Path) -> None:
    assert pipeline.stage_names(declare(tmp_path, {name: STAGES[name] for name in order})) == [*STAGES]


def test_what_a_commit_must_hold_is_all_that_the_stages_name(tmp_path: Path) -> None:
    named = {"dvc.yaml", "dvc.lock", "params.yaml", "code.py", "data/raw", "m.json", "p.csv", "sheet.json"}
    assert set(pipeline.recorded_files(declare(tmp_path, STAGES))) == named | {"data/arrays", "data/arrays/train.npy"}


@pytest.mark.parametrize("content", ["stages: [", "", "a: 1", "stages:"])
def test_a_dvc_yaml_that_cannot_be_read_is_one_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(content)
    with pytest.raises(SetupError, match=r"dvc\.yaml: cannot be read .*git checkout dvc\.yaml"):
        pipeline.stage_names(tmp_path)


def test_the_root_is_found_from_a_folder_below(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    with pytest.raises(SetupError, match="is not in a resflow project"):
        pipeline.find_root(below)
    declare(tmp_path, {})
    (tmp_path / "params.yaml").touch()
    assert pipeline.find_root(below) == pipeline.find_root(tmp_path) == tmp_path


def test_contents_are_held_against_the_hashes_that_dvc_recorded(tmp_path: Path) -> None:
    make = "mkdir -p plots/b && echo 1 > plots/b/ü.csv && echo 2 > plots/b.csv && echo 3 > plots/a && echo 4 > model"
    stages = {
        "train": {"cmd": make, "outs": ["model", {"plots": {"cache": False}}]},
        "test": {"cmd": "true", "deps": ["model"]},
    }
    repository(tmp_path, stages, None)
    for name in stages:
        pipeline.run_stage(tmp_path, name, lambda line: None)
    definition, lock = ((tmp_path / name).read_bytes() for name in ("dvc.yaml", "dvc.lock"))
    contents = {"model": b"4\n", "plots/a": b"3\n", "plots/b.csv": b"2\n", "plots/b/ü.csv": b"1\n", "mine": b""}

    def differing(contents: dict[str, bytes], lock: bytes = lock) -> list[str]:
        return pipeline.differing(definition, lock, contents, ["model", "plots", "mine"])

    assert differing(contents) == []
    assert differing({**contents, "model": b"5\n"}) == ["model"]
    assert differing({**contents, "plots/a": b"5\n"}) == ["plots"]
    assert differing({name: content for name, content in contents.items() if name != "plots/b/ü.csv"}) == ["plots"]
    assert differing({}) == ["model", "plots"]
    # the model was made anew, and what read it was not run again
    first, second = (md5(text).hexdigest().encode() for text in (b"4\n", b"5\n"))
    assert lock.count(first) == 2
    trained = lock.replace(first, second, 1)
    assert differing(contents, trained) == ["model"]
    assert differing({**contents, "model": b"5\n"}, trained) == ["model"]
    # DVC writes it in place
    assert differing(contents, b"") == ["model", "plots"]
    assert differing(contents, lock[: lock.index(b"    outs:")]) == ["model", "plots"]
    assert differing(contents, lock[: lock.index(b"md5: ") + 2]) == ["model", "plots"]


def test_the_hash_of_what_a_stage_read_is_that_of_dvc_lock() -> None:
    entries = [{"path": "data/test", "md5": "1.dir"}, {"path": "model", "md5": "2"}]
    lock = yaml.safe_dump({"stages": {"test": {"deps": entries}, "make": {"outs": entries}}}).encode()
    assert pipeline.dependency(lock, "test", "data/test") == "1.dir"
    for stage, path in (("test", "data"), ("make", "model"), ("other", "model")):
        assert pipeline.dependency(lock, stage, path) is None
    for damaged in (b"", b"stages:", b"stages: [", b"stages: {test: {deps: [data/test]}}", b"stages: {test: 1}", b"\0"):
        assert pipeline.dependency(damaged, "test", "data/test") is None
