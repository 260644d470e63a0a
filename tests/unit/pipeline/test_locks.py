"""What DVC leaves half written, on a full disk or in a kill, is put back or removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from resflow import pipeline
from resflow.errors import StageError
from resflow.pipeline import locks, run
from resflow.processes import locked
from tests.unit.pipeline.projects import repository

BEFORE = "schema: '2.0'\nstages: {}\n"


@pytest.mark.parametrize("before", [None, BEFORE])
@pytest.mark.parametrize("left", ["", "schema:"])
def test_a_dvc_lock_that_was_left_half_written_is_put_back(before: str | None, left: str, tmp_path: Path) -> None:
    """As on a full disk, where DVC leaves it empty or cut short and then refuses to run at all."""
    lock = repository(tmp_path, f"printf '{left}' > dvc.lock; false", before)
    with pytest.raises(StageError, match="failed to reproduce 'a'"):
        pipeline.run_stage(tmp_path, "a", lambda line: None)
    assert (lock.read_text() if lock.exists() else None) == before


def test_a_dvc_lock_that_could_not_be_written_to_its_end_is_put_back_though_it_can_be_read(tmp_path: Path) -> None:
    lock = repository(tmp_path, "true", BEFORE)
    error = run._failure("a", 255, ["ERROR: failed to reproduce 'a': [Errno 28] No space left on device"])

    def fail() -> None:
        with locks.kept(tmp_path):
            lock.write_text("stages:\n  a:\n    deps:\n    - path: code.py\n")
            raise error

    with pytest.raises(StageError, match="Free disk space"):
        fail()
    assert lock.read_text() == BEFORE


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A project whose stage ran twice, as a kill leaves it while DVC writes of the second."""
    lock = repository(tmp_path, {"a": {"cmd": "echo made > out", "outs": ["out"]}})
    for _ in range(2):
        pipeline.run_stage(tmp_path, "a", lambda line: None)
    lock.write_text(lock.read_text().partition("outs:")[0] + "outs:\n    - pa")
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text("")
    return tmp_path


def test_what_a_kill_left_half_written_is_mended_by_the_next_run(killed: Path) -> None:
    assert len(locks.torn(killed)) == 2
    assert not pipeline.run_stage(killed, "a", lambda line: None).ran
    assert locks.torn(killed) == []


def test_a_dvc_lock_that_a_kill_left_half_written_where_there_was_none_goes(tmp_path: Path) -> None:
    lock = repository(tmp_path, {"a": {"cmd": "echo made > out", "outs": ["out"]}})
    pipeline.run_stage(tmp_path, "a", lambda line: None)
    lock.write_text("")
    pipeline.run_stage(tmp_path, "a", lambda line: None)
    assert locks.torn(tmp_path) == []


def test_a_dvc_lock_that_is_empty_goes_though_no_copy_of_it_is_kept(killed: Path) -> None:
    (killed / ".resflow" / "dvc.lock").unlink()
    (killed / "dvc.lock").write_text("")
    pipeline.run_stage(killed, "a", lambda line: None)
    assert locks.torn(killed) == []


def test_a_dvc_lock_that_lacks_no_more_than_its_end_of_line_stays(killed: Path) -> None:
    lock, copy = killed / "dvc.lock", killed / ".resflow" / "dvc.lock"
    lock.write_text(copy.read_text().removesuffix("\n"))
    copy.write_text("")
    locks.mend(killed)
    assert "echo made > out" in lock.read_text()


def test_a_dvc_lock_that_is_wrong_but_whole_is_its_owners_to_mend(killed: Path) -> None:
    merged = "<<<<<<< ours\n=======\n>>>>>>> theirs\n"
    (killed / "dvc.lock").write_text(merged)
    with pytest.raises(StageError, match="git checkout dvc"):
        pipeline.run_stage(killed, "a", lambda line: None)
    assert (killed / "dvc.lock").read_text() == merged


@pytest.mark.parametrize("name", ["lock", "rwlock.lock"])
def test_nothing_is_mended_while_a_dvc_command_may_be_writing_it(killed: Path, name: str) -> None:
    with (killed / ".dvc" / "tmp" / name).open("r+") as held:
        assert locked(held)
        locks.mend(killed)
    assert len(locks.torn(killed)) == 2
