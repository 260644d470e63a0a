"""Where unfinished runs lie, that one process at a time trains one, and what is removed when one is finished."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resflow import storage
from resflow.errors import StoreError, TrainingError
from resflow.stages import runs, train
from resflow.training.checkpoint import LocalFolder
from resflow.training.remote import KEPT_DAYS, Bucket

MINE, OTHER, OLD = "0" * 16, "1" * 16, "2" * 16
HOLD = """
import sys, time
from pathlib import Path
from resflow.stages import runs
with runs.held(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(folder: Path, name: str) -> subprocess.Popen[str]:
    """Another process that trains the run `name`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), name], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def make(folder: Path, days: float) -> Path:
    """A run that was given up so many days ago."""
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "000000001-00000.cpu.pt").write_bytes(b"state")
    os.utime(folder, times=(time.time() - days * 86400,) * 2)
    return folder


@pytest.mark.parametrize(
    ("lock", "known"),
    [
        (None, ""),
        ("", ""),
        ("stages: [", ""),
        ("stages:\n  train: 1\n", ""),
        ("stages:\n  train:\n    outs: [models/model.safetensors]\n", ""),
        ("stages:\n  train:\n    outs:\n    - {path: models/model.safetensors, md5: 0a}\n", "0a"),
    ],
)
def test_what_dvc_has_recorded_is_known_if_it_can_be_read(lock: str | None, known: str, tmp_path: Path) -> None:
    if lock is not None:
        (tmp_path / "dvc.lock").write_text(lock)
    assert train._recorded(tmp_path) == known


# --- where ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", ".resflow/worktrees/12-34", ".dvc/tmp/exps/tmpabc"])
def test_a_work_tree_keeps_its_checkpoints_with_its_project(tmp_path: Path, inside: str) -> None:
    assert runs.place(tmp_path / inside, None) == tmp_path.resolve() / ".resflow/runs"


@pytest.mark.parametrize("above", [".resflow", ".dvc"])
def test_a_project_below_a_folder_of_such_a_name_is_no_work_tree(tmp_path: Path, above: str) -> None:
    assert runs.place(tmp_path / above / "mine", None) == tmp_path.resolve() / above / "mine/.resflow/runs"


def test_what_the_user_names_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("shared", str(tmp_path / "shared")):  # a relative one is of the project also in a work tree
        for root in (tmp_path, tmp_path / ".resflow/worktrees/1-2"):
            assert runs.place(root, given) == (tmp_path / "shared").resolve()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store:8333")
    bucket = runs.place(tmp_path, "s3://bucket/runs")
    assert isinstance(bucket, Bucket)
    assert (bucket.path, bucket.endpoint) == ("bucket/runs", "http://store:8333")


@pytest.mark.parametrize(
    "named", ["s3://", "s3:///runs", "s3:/bucket/runs", "S3://bucket/x", "gs://bucket/x", "file:///x"]
)
def test_an_address_that_is_no_bucket_of_s3_is_refused_and_makes_no_folder(tmp_path: Path, named: str) -> None:
    with pytest.raises(StoreError) as refused:
        runs.place(tmp_path, named)
    assert str(refused.value) == (
        f"RESFLOW_STORAGE={named}: is neither a folder nor s3://BUCKET/PREFIX. "
        "Set it to one of them, or unset it; see docs/cluster.md"
    )


@pytest.mark.parametrize("url", ["localhost:8333", "store", "ftp://store", "http://", "http:/store", "http://store:x"])
def test_an_address_of_no_store_is_refused_before_anybody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    told = f"AWS_ENDPOINT_URL_S3={url}: is no address of an S3 store, which is http://HOST:PORT or https://HOST. Set it"
    with pytest.raises(StoreError, match=re.escape(told)):
        runs.place(tmp_path, "s3://bucket/runs")
    with pytest.raises(StoreError, match=re.escape(told)):
        storage.client(storage.Endpoint(url))
    assert runs.place(tmp_path, None) == tmp_path / ".resflow/runs"  # which needs none


# --- who --------------------------------------------------------------------------------------------------------------


def test_a_run_is_held_by_one_process_and_free_once_that_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = holder(tmp_path, MINE)
    try:
        refused = rf"another process trains this run: {process.pid}\. Wait for it or end it"
        with pytest.raises(TrainingError, match=refused), runs.held(tmp_path, MINE, wait=0.2):
            pass
        assert capsys.readouterr().err == f"waiting for process {process.pid}, which trains this run\n"
        with pytest.raises(TrainingError, match=refused), runs.held(tmp_path, MINE, wait=0):
            pass
        assert capsys.readouterr().err == ""
        with runs.held(tmp_path, OTHER, wait=0.2):  # another run is nobody's
            pass
    finally:
        process.kill()
        process.wait()
    with runs.held(tmp_path, MINE):
        assert (tmp_path / MINE / "lock").read_text() == f"{os.getpid()}\n"


def test_who_waited_for_a_run_that_was_finished_holds_it_against_the_next(tmp_path: Path) -> None:
    """The lock is removed with the run: who waited has opened a file that others no longer see."""
    with runs.held(tmp_path, MINE):
        waiting = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), MINE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert waiting.stdout is not None
        assert waiting.stderr is not None
        try:
            assert "waiting for process" in waiting.stderr.readline()
            runs.clean(tmp_path, MINE)
        except BaseException:
            waiting.kill()
            raise
    try:
        assert waiting.stdout.readline() == "held\n"
        with pytest.raises(TrainingError), runs.held(tmp_path, MINE, wait=0.2):
            pass
    finally:
        waiting.kill()
        waiting.communicate()


# --- how long ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_goes_and_with_it_those_given_up_a_week_ago_that_nobody_trains(tmp_path: Path) -> None:
    for name in (MINE, OTHER):
        make(tmp_path / name, 0)
    make(tmp_path / OLD, KEPT_DAYS + 1)
    (make(tmp_path / ("4" * 16), 0) / "lock").unlink()  # written by a worker after its run had ended
    os.utime(tmp_path / ("4" * 16), times=(0, 0))
    trained = make(tmp_path / ("3" * 16), KEPT_DAYS + 1)
    foreign = make(tmp_path / "photographs", KEPT_DAYS + 1)
    process = holder(tmp_path, trained.name)
    os.utime(trained, times=(0, 0))
    try:
        with runs.held(tmp_path, MINE):
            runs.clean(tmp_path, MINE)
    finally:
        process.kill()
        process.wait()
    assert {path.name for path in tmp_path.iterdir()} == {OTHER, trained.name, foreign.name}


def test_a_run_that_was_settled_stays_until_another_one_is_finished(tmp_path: Path) -> None:
    for name in (MINE, OTHER):
        make(tmp_path / name, 0)
    with runs.held(tmp_path, MINE):
        runs.settle(LocalFolder(tmp_path / MINE), "its result")
        runs.clean(tmp_path, MINE)
    assert runs.made(LocalFolder(tmp_path / MINE)) == "its result"
    assert (tmp_path / MINE / "000000001-00000.cpu.pt").read_bytes() == b"state"
    with runs.held(tmp_path, OTHER):
        runs.clean(tmp_path, OTHER)
    assert not tmp_path.exists()


def test_a_run_that_was_settled_can_go_on_or_begin_anew(tmp_path: Path) -> None:
    folder = LocalFolder(make(tmp_path / MINE, 0))
    assert runs.made(folder) == ""
    for anew, left in ((False, {"lock", "000000001-00000.cpu.pt"}), (True, {"lock"})):
        runs.settle(folder, "its result")
        runs.reopen(folder, anew=anew)
        assert runs.made(folder) == ""
        assert set(folder.names()) == left


def test_the_last_finished_run_leaves_no_folder(tmp_path: Path) -> None:
    with runs.held(tmp_path / "runs", MINE):
        runs.clean(tmp_path / "runs", MINE)
    assert not (tmp_path / "runs").exists()
