"""Versions as `resflow run` makes them: found from another clone, made of exactly what ran, made once."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from prefect.logging import disable_run_logger

from flows import training
from resflow import params, pipeline, registry, store
from resflow.errors import RegistryError
from tasks import release
from tests.conftest import stop_store

if TYPE_CHECKING:
    from tests.conftest import Project

pytestmark = pytest.mark.integration

NAME, FIRST, SECOND = "mnist-resnet", "v0.1.0", "v0.1.1"
MODEL = "models/model.safetensors"


def another_clone(project: Project, into: Path) -> Project:
    """A clone as another person makes it, in whose shell the variables of the first one's store are set."""
    subprocess.run(["git", "clone", "-q", str(project.root), str(into)], check=True, capture_output=True)
    shown = project.run("bash", "-c", 'eval "$(resflow store env)" && env -0').out
    given = dict(line.split("=", 1) for line in shown.split("\0") if line.startswith(("AWS_", "NO_PROXY", "no_proxy")))
    return replace(project, root=into, environment={**project.environment, **given})


def sums(root: Path, folder: str) -> dict[str, str]:
    files = [path for path in sorted((root / folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def untouched(project: Project) -> tuple[object, ...]:
    """All that a run must leave as it is: HEAD, branches, index, and the user's own files."""
    index = (project.root / ".git/index").read_bytes()
    listed = project.git("ls-files", "-z", "--cached").split("\0")
    files = {name: (project.root / name).read_bytes() for name in listed if name and (project.root / name).is_file()}
    head = (project.root / ".git/HEAD").read_text()
    return head, project.git("for-each-ref", "refs/heads"), project.git("stash", "list"), index, files


def test_a_version_is_found_and_fetched_from_another_clone(released: Project, tmp_path: Path) -> None:
    other = another_clone(released, tmp_path / "other")
    assert NAME in (shown := other.run("gto", "show").out)
    assert FIRST in shown
    assert "prod" in shown
    history = other.run("gto", "history", NAME).out
    assert "registration" in history
    assert "assignment" in history

    wanted = (released.root / MODEL).read_bytes()
    for name, revision in (("by-version", ["--rev", FIRST]), ("by-stage", ["--stage", "prod"])):
        other.run("dvc", "artifacts", "get", str(released.root), NAME, *revision, "--out", str(tmp_path / name))
        found = tmp_path / name
        assert (found if found.is_file() else next(found.rglob("*.safetensors"))).read_bytes() == wanted

    other.run("git", "checkout", "-q", f"{NAME}@{FIRST}")
    other.run("dvc", "pull")
    assert (other.root / MODEL).read_bytes() == wanted
    for folder in ("data/raw", "data/prepared", "metrics", "plots"):
        assert sums(other.root, folder) == sums(released.root, folder)
    assert "up to date" in other.run("dvc", "status").out
    assert other.git("status", "--porcelain") == ""

    other.run("resflow", "models", "pull", f"{NAME}@prod", "--to", str(tmp_path / "bundle"))
    assert (tmp_path / "bundle" / Path(MODEL).name).read_bytes() == wanted

    other.edit(train__lr=0.05)
    edited = (other.root / "params.yaml").read_bytes()
    refused = other.run("resflow", "models", "pull", f"{NAME}@prod", "--to", ".", code=1).err
    assert refused.startswith("error: .: files that no pull has put there would be overwritten: params.yaml. ")
    assert refused.count("\n") == 1
    assert (other.root / "params.yaml").read_bytes() == edited
    assert other.git("status", "--porcelain") == "M params.yaml"


def test_a_clone_that_does_not_know_the_store_is_told_how_to(released: Project, tmp_path: Path) -> None:
    """Also one that has a store of its own, which holds nothing of the version."""
    other = replace(another_clone(released, tmp_path / "other"), environment=released.environment)
    pull = ("resflow", "models", "pull", f"{NAME}@prod", "--to", "bundle")
    unknown = other.run(*pull, code=1).err
    assert unknown.startswith("error: embedded store: it was never started here. ")
    assert not (other.root / ".resflow").exists(), "a store that can hold nothing was started"
    try:
        other.run("resflow", "store", "start")
        empty = other.run(*pull, code=1).err
    finally:
        stop_store(other)
    assert empty.startswith(f"error: s3://resflow/models/{NAME}/{FIRST}/: no bundle is published there. ")
    assert all("set what `resflow store env` prints there" in said for said in (unknown, empty))
    assert not (other.root / "bundle").exists()


def test_a_run_makes_a_version_of_exactly_what_ran_and_touches_nothing_of_the_users(copied: Project) -> None:
    # a detached HEAD without an identity; edited parameters, a staged and an unstaged edit, new code that git lacks
    for key in ("user.name", "user.email"):
        copied.git("config", "--unset", key)
    copied.git("checkout", "-q", "--detach")
    head = copied.git("rev-parse", "HEAD")
    copied.edit(train__lr=0.12, gate__max_accuracy_drop=1.0)
    new = copied.root / "src/resflow/training/extra.py"
    new.write_text("PRESENT = True\n")
    loop = copied.root / "src/resflow/training/loop.py"
    loop.write_text(loop.read_text() + "\nfrom resflow.training import extra  # noqa\n")
    declared = (copied.root / "dvc.yaml").read_text()
    entry = "      - src/resflow/training/loop.py\n"
    (copied.root / "dvc.yaml").write_text(declared.replace(entry, f"      - src/resflow/training/extra.py\n{entry}"))
    (copied.root / "README.md").write_text("Mine, staged\n")
    copied.git("add", "README.md")
    (copied.root / "notes.txt").write_text("Mine, unknown to git")
    before = untouched(copied)

    said = copied.run("resflow", "run").out

    assert untouched(copied) == before
    assert f"{NAME}@{SECOND}" in said
    assert "made under the name of resflow" in said
    shown = json.loads(copied.run("resflow", "models", "show", f"{NAME}@{SECOND}", "--json").out)
    commit = shown["commit"]
    assert shown["lineage"]["parent"] == head
    assert shown["lineage"]["params"] == {"train.lr": [0.1, 0.12], "gate.max_accuracy_drop": [0.002, 1.0]}
    assert shown["stages"] == ["prod"]
    assert copied.git("log", "-1", "--format=%an", commit) == "resflow"
    held = copied.git("ls-tree", "-r", "--name-only", commit).splitlines()
    assert "notes.txt" not in held
    wanted = ["dvc.lock", "dvc.yaml", "params.yaml", "src/resflow/training/extra.py", "src/resflow/training/loop.py"]
    for name in [*wanted, "metrics/evaluate.json", "plots/train/curves.csv", "data/datasheet.json"]:
        blob = subprocess.run(["git", "show", f"{commit}:{name}"], cwd=copied.root, capture_output=True, check=True)
        assert blob.stdout == (copied.root / name).read_bytes(), name
    assert re.search(r"\(production has (0\.|1\b)", said), "the gate did not compare with production"
    _check_that_a_second_run_does_nothing(copied)


def _check_that_a_second_run_does_nothing(project: Project) -> None:
    """Also after edits that change no stage: a text and a comment."""
    (project.root / "README.md").write_text("Other words\n")
    text = (project.root / "params.yaml").read_text()
    (project.root / "params.yaml").write_text(f"# a comment\n{text}")
    tags, lock = project.git("tag"), (project.root / "dvc.lock").read_bytes()
    written = (project.root / MODEL).stat().st_mtime_ns
    objects = stored(project)

    said = project.run("resflow", "run").out

    assert said.count("up to date, nothing ran") == 6
    assert "epoch " not in said
    assert "registered before, nothing new" in said
    assert "there before, nothing uploaded" in said
    assert "nothing to push" in said
    assert "Data and pipelines" not in said, "DVC says so of each stage, also where a later one is to run"
    assert project.git("tag") == tags
    assert (project.root / "dvc.lock").read_bytes() == lock
    assert (project.root / MODEL).stat().st_mtime_ns == written
    assert stored(project) == objects


def stored(project: Project) -> list[tuple[str, str]]:
    """Every object of the bucket with the time it was written."""
    from resflow import storage

    s3 = storage.client(store.endpoint(project.root))
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="resflow")
    return [(entry["Key"], str(entry["LastModified"])) for page in pages for entry in page.get("Contents", [])]


def test_what_another_command_changes_during_a_run_is_not_released_and_the_next_run_mends_it(copied: Project) -> None:
    tags, model = copied.git("for-each-ref", "refs/tags"), (copied.root / MODEL).read_bytes()
    # as a `dvc repro train` beside it does, in the instant in which the last stage has read the model
    (copied.root / MODEL).write_bytes(b"another")
    with pytest.raises(RegistryError, match=rf"^{MODEL}: not what dvc\.lock .* Run `resflow run` again"):
        release.what_ran(copied.root)
    assert copied.git("for-each-ref", "refs/tags") == tags

    other = _put_other_test_data_into_production(copied)
    said = copied.run("resflow", "run").out
    assert "registered before, nothing new; not promoted" in said
    assert (copied.root / MODEL).read_bytes() == model

    # beside it: accuracies on other images are not compared, and no version takes over from them by itself
    assert "production was measured on other test data and is not compared" in said
    assert f"`resflow models promote {NAME}@{FIRST}` replaces it" in said
    production = registry.production(copied.root, NAME)
    assert production
    assert production.version == other


def _put_other_test_data_into_production(project: Project) -> str:
    """A version of another data set, which is better than any other can be."""
    ran = {name: (project.root / name).read_text() for name in ("dvc.lock", "metrics/evaluate.json")}
    lock, metrics = yaml.safe_load(ran["dvc.lock"]), json.loads(ran["metrics/evaluate.json"])
    (entry,) = [entry for entry in lock["stages"]["evaluate"]["deps"] if entry["path"] == "data/prepared/test"]
    entry["md5"] = f"{'0' * 32}.dir"
    (project.root / "dvc.lock").write_text(yaml.safe_dump(lock))
    (project.root / "metrics/evaluate.json").write_text(json.dumps({**metrics, "accuracy": 1.0}))
    held = registry.snapshot(project.root, pipeline.recorded_files(project.root))
    made = registry.register(project.root, NAME, held).version
    registry.promote(project.root, NAME, made)
    for name, text in ran.items():
        (project.root / name).write_text(text)
    return made


def test_a_version_in_production_that_was_tagged_by_hand_blocks_no_release(copied: Project) -> None:
    """Its commit has no dvc.lock, or a damaged one, so that nobody knows what it was measured on."""
    ran, limits = registry.find(copied.root, NAME), params.load(copied.root / "params.yaml").gate
    assert ran
    (copied.root / "dvc.lock").write_text("stages: [")
    damaged = registry.snapshot(copied.root, ["dvc.lock"]).commit
    for number, commit in (("v1.0.0", "HEAD"), ("v1.0.1", damaged)):
        copied.git("tag", "-m", "By hand", f"{NAME}@{number}", commit)
        registry.promote(copied.root, NAME, number)
        with disable_run_logger():
            assert release.gate.fn(copied.root, ran, limits).incomparable


def test_only_a_release_tells_dvc_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --no-release all files of the user's stay as they are, though workers of a cluster may meet in it."""
    settings = tmp_path / ".dvc" / "config.local"
    settings.parent.mkdir()
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    assert training._store(tmp_path, release=False) is None
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    found = training._store(tmp_path, release=False)
    assert found
    assert not settings.exists()
    assert training._store(tmp_path, release=True) == found
    assert "endpointurl = http://127.0.0.1:1\n" in settings.read_text()


def test_a_parameter_that_is_edited_after_a_stage_has_run_is_in_no_version(copied: Project) -> None:
    tags = copied.git("for-each-ref", "refs/tags")
    copied.edit(train__lr=0.05)  # as a user does who prepares the next experiment while this one runs
    with pytest.raises(RegistryError, match=r"^params\.yaml: train: was edited after a stage had run"):
        release.what_ran(copied.root)
    assert copied.git("for-each-ref", "refs/tags") == tags


def test_a_bundle_is_what_dvc_lock_of_the_versions_commit_names_or_refused(copied: Project) -> None:
    commit = copied.git("rev-parse", f"{NAME}@{FIRST}^{{commit}}")
    made = release.bundle(copied.root, commit)
    assert {"model.safetensors", "params.yaml", "dvc.lock", "datasheet.json", "metrics/evaluate.json"} < made.keys()
    assert made["model.safetensors"] == (copied.root / MODEL).read_bytes()

    # what git holds is taken from the commit, whatever became of it since
    (copied.root / "metrics/evaluate.json").write_text("{}")
    (copied.root / "plots/mine.png").write_bytes(b"mine")
    assert release.bundle(copied.root, commit) == made
    with pytest.raises(RegistryError, match=r"^metrics/evaluate\.json: not what dvc\.lock "):
        release.bundle(copied.root, registry.snapshot(copied.root, pipeline.recorded_files(copied.root)).commit)
    for spoil in (lambda: (copied.root / MODEL).write_bytes(b"another"), (copied.root / MODEL).unlink):
        spoil()
        with pytest.raises(RegistryError, match=rf"^{MODEL}: not what dvc\.lock of commit {commit[:12]} names"):
            release.bundle(copied.root, commit)
