"""What is read from dvc.yaml, how a failed command is told, and the root of a project."""

from __future__ import annotations

import fcntl
import itertools
import subprocess
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
import yaml

from resflow import params, pipeline
from resflow.errors import RETRYABLE, SetupError, StageError
from resflow.pipeline import locks, run
from resflow.stages import NAMES

REPOSITORY = Path(__file__).parents[2]
STAGES = {
    "raw": {"cmd": "x", "outs": ["data/raw"]},
    "arrays": {"cmd": "x", "deps": ["data/raw"], "outs": ["data/arrays", {"sheet.json": {"cache": False}}]},
    "model": {"cmd": "x", "deps": ["code.py", "data/arrays/train.npy"], "metrics": [{"m.json": {"cache": False}}]},
    "report": {"cmd": "x", "deps": ["m.json", "sheet.json"], "plots": ["p.csv"]},
}


def write(root: Path, stages: object) -> Path:
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return root


def test_the_stages_of_this_project_are_those_that_have_a_body() -> None:
    assert tuple(pipeline.stage_names(REPOSITORY)) == NAMES


@pytest.mark.parametrize("order", [*itertools.permutations(STAGES)])
def test_a_stage_comes_after_those_whose_outputs_it_reads_also_in_part(order: tuple[str, ...], tmp_path: Path) -> None:
    assert pipeline.stage_names(write(tmp_path, {name: STAGES[name] for name in order})) == [*STAGES]


def test_what_a_commit_must_hold_is_all_that_the_stages_name(tmp_path: Path) -> None:
    named = {"dvc.yaml", "dvc.lock", "params.yaml", "code.py", "data/raw", "m.json", "p.csv", "sheet.json"}
    assert set(pipeline.recorded_files(write(tmp_path, STAGES))) == named | {"data/arrays", "data/arrays/train.npy"}


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
    write(tmp_path, {})
    (tmp_path / "params.yaml").touch()
    assert pipeline.find_root(below) == pipeline.find_root(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("lines", "said", "retryable"),
    [
        (
            ["fetch: all sources: refused. Try later", "ERROR: exited with 75"],
            "fetch: all sources: refused. Try later",
            True,
        ),
        (["train: train: lr is 9. Lower it", "ERROR: exited with 1"], "train: train: lr is 9. Lower it", False),
        (["ERROR: cannot stat model"], "train: cannot stat model. Its output is above", False),
        (["Traceback"], "train: exit code 1. Its output is above", False),
        (["ERROR: [Errno 28] No space left on device"], "Free disk space and run again", False),
        (["'./dvc.lock' validation failed.", "required key not provided"], "train: dvc.lock is damaged. Run", False),
        (["ERROR: 'a' is busy, it is being blocked by PID 7"], "another DVC command is running", False),
    ],
)
def test_a_failed_stage_is_told_in_its_own_words(lines: list[str], said: str, retryable: bool) -> None:
    assert RETRYABLE == 75
    error = run._failure(said.partition(":")[0] if ": " in said else "train", 1, lines)
    assert isinstance(error, StageError)
    assert said in str(error)
    assert error.retryable is retryable


@pytest.mark.parametrize("before", [None, "schema: '2.0'\nstages: {}\n"])
@pytest.mark.parametrize("left", ["", "schema:"])
def test_a_dvc_lock_that_was_left_half_written_is_put_back(before: str | None, left: str, tmp_path: Path) -> None:
    """As on a full disk, where DVC leaves it empty or cut short and then refuses to run at all."""
    lock = small_repository(tmp_path, f"printf '{left}' > dvc.lock; false", before)
    with pytest.raises(StageError, match="failed to reproduce 'a'"):
        pipeline.run_stage(tmp_path, "a", lambda line: None)
    assert (lock.read_text() if lock.exists() else None) == before


def test_a_dvc_lock_that_could_not_be_written_to_its_end_is_put_back_though_it_can_be_read(tmp_path: Path) -> None:
    before = "schema: '2.0'\nstages: {}\n"
    lock = small_repository(tmp_path, "true", before)
    error = run._failure("a", 255, ["ERROR: failed to reproduce 'a': [Errno 28] No space left on device"])

    def fail() -> None:
        with locks.kept(lock):
            lock.write_text("stages:\n  a:\n    deps:\n    - path: code.py\n")
            raise error

    with pytest.raises(StageError, match="Free disk space"):
        fail()
    assert lock.read_text() == before
    assert list((tmp_path / ".resflow").iterdir()) == []


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A project whose stage has run, as a kill leaves it while DVC writes what it keeps."""
    small_repository(tmp_path, {"a": {"cmd": "echo made > out", "outs": ["out"]}}, None)
    for _ in range(2):  # a lock that is there is kept
        pipeline.run_stage(tmp_path, "a", lambda line: None)
    with subprocess.Popen("true") as gone:
        pass
    lock = tmp_path / "dvc.lock"
    lock.rename(tmp_path / ".resflow" / f"dvc.lock.{gone.pid}")
    lock.write_text("schema:")
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text("")
    return tmp_path


def test_what_a_kill_left_half_written_of_dvcs_own_is_mended_by_the_next_run(killed: Path) -> None:
    assert not pipeline.run_stage(killed, "a", lambda line: None).ran
    assert list((killed / ".resflow").iterdir()) == []


@pytest.mark.parametrize("name", ["lock", "rwlock.lock"])
def test_nothing_is_mended_while_a_dvc_command_may_be_writing_it(killed: Path, name: str) -> None:
    with (killed / ".dvc" / "tmp" / name).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        locks.mend(killed)
    assert (killed / "dvc.lock").read_text() == "schema:"
    assert (killed / ".dvc" / "tmp" / "rwlock").read_text() == ""


@pytest.mark.parametrize(("level", "below"), [("--local", ""), ("--global", "a folder/below")])
def test_a_work_tree_shares_the_cache_that_the_user_has_set_also_below_the_folder_of_its_repository(
    level: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    top, large = tmp_path / "project", tmp_path / "large"
    root = top / below
    root.mkdir(parents=True)
    write(root, {"a": {"cmd": "echo made > out", "outs": ["out"]}})
    command(top, "git", "init", "-q")
    command(root, "dvc", "init", "-q", *(["--subdir"] if below else []))
    command(root, "dvc", "cache", "dir", level, "../large" if level == "--local" else str(large))
    pipeline.run_stage(root, "a", lambda line: None)
    command(top, "git", "add", "-A")
    command(top, "git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "commit", "-qm", "Start")

    with pipeline.worktree(root, "HEAD", "# mine") as folder:
        assert (folder / "out").read_text() == "made\n"
        assert (folder / "params.yaml").read_text() == "# mine"
        assert params.project_of(folder) == root
    assert list((root / params.RUN_TREES).iterdir()) == [root / params.RUN_TREES / "lock"]
    assert pipeline.in_git(root) == (top, Path(below))

    assert large.is_dir()
    assert not (root / ".dvc" / "cache").exists()


def test_contents_are_held_against_the_hashes_that_dvc_recorded(tmp_path: Path) -> None:
    make = "mkdir -p plots/b && echo 1 > plots/b/ü.csv && echo 2 > plots/b.csv && echo 3 > plots/a && echo 4 > model"
    stages = {
        "train": {"cmd": make, "outs": ["model", {"plots": {"cache": False}}]},
        "test": {"cmd": "true", "deps": ["model"]},
    }
    small_repository(tmp_path, stages, None)
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


def command(root: Path, *words: str) -> None:
    subprocess.run(words, cwd=root, env=pipeline.environment(), check=True, capture_output=True)


def small_repository(root: Path, stages: str | dict[str, Any], lock: str | None) -> Path:
    """Some stages, or one, of a command; returns the path of its dvc.lock."""
    write(root, {"a": {"cmd": stages}} if isinstance(stages, str) else stages)
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    if lock is not None:
        (root / "dvc.lock").write_text(lock)
    return root / "dvc.lock"
