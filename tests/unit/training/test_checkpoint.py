"""Checkpoints: whole or not at all, the last two, damaged ones passed over with a word, written beside training."""

from __future__ import annotations

import os
import resource
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from resflow.errors import SetupError
from resflow.training import checkpoint
from resflow.training.checkpoint import Keeper, LocalFolder
from resflow.training.loop import Epoch, State
from tests.unit.training.small import STEPS, differences, run, settings


def state(step: int, epochs: int = 0) -> State:
    fields = ("learning_rate", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    history = [Epoch(epoch=number + 1, **dict.fromkeys(fields, 0.1 * number)) for number in range(epochs)]
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    net(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    sums = torch.rand(2, 3, dtype=torch.float64)
    return State(
        step=step,
        history=history,
        sums=sums,
        best=weights if epochs else {},
        net=weights,
        average={"n_averaged": torch.tensor(3), **weights},
        optimizer=optimizer.state_dict(),
    )


def keep(folder: Path, *states: State, device: str = "cpu") -> None:
    keeper = Keeper(LocalFolder(folder), device=device, steps=0, seconds=0)
    for one in states:
        keeper.keep(one)
    keeper.close()


def latest(folder: Path, device: str = "cpu") -> State | None:
    return checkpoint.latest(LocalFolder(folder), device)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_state_comes_back_as_it_was(tmp_path: Path, epochs: int) -> None:
    kept = state(7, epochs)
    keep(tmp_path / "run", kept)
    again = latest(tmp_path / "run")
    assert again is not None
    assert differences(again, kept) == []
    if epochs:
        assert again.best_epoch == kept.best_epoch


def test_a_run_killed_after_any_checkpoint_goes_on_from_its_file_to_the_same_bits(tmp_path: Path) -> None:
    train = settings(ema=0.8, optimizer="adamw", lr=0.002)
    keeper = Keeper(LocalFolder(tmp_path), device="cpu", steps=3, seconds=0)
    whole = run(train, keeper=keeper)
    keeper.close()
    (older, newest) = files(tmp_path)
    assert differences(run(train, state=latest(tmp_path)), whole) == []
    newest.unlink()
    stopped = latest(tmp_path)
    assert stopped is not None
    assert stopped.step == 2 * STEPS + 1 != whole.step, older
    assert differences(run(train, state=stopped), whole) == []


def test_a_folder_without_a_checkpoint_holds_no_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert latest(tmp_path / "none") is None
    assert latest(tmp_path) is None
    assert capsys.readouterr() == ("", "")


def test_the_last_two_are_kept_and_nothing_beside_them(tmp_path: Path) -> None:
    for number in range(1, 5):
        keep(tmp_path, state(number))
        assert len(files(tmp_path)) == min(number, 2)
    again = latest(tmp_path)
    assert again is not None
    assert again.step == 4


def test_after_validation_the_last_step_of_an_epoch_is_a_newer_state(tmp_path: Path) -> None:
    keep(tmp_path, state(4), state(4, 1))
    again = latest(tmp_path)
    assert again is not None
    assert len(again.history) == 1


def test_a_checkpoint_of_another_type_of_device_is_neither_used_nor_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, state(9), state(10), device="cuda")
    assert latest(tmp_path) is None, "a run begun on a GPU would go on on a CPU, to the bits of neither"
    said = f"{tmp_path}/000000010-00000.cuda.pt is not gone on from, which was trained on another type of device"
    assert capsys.readouterr().err == f"{said}: on cpu this run begins anew\n"
    keep(tmp_path, state(1), state(2), state(3))
    for device, step in (("cpu", 3), ("cuda", 10)):
        again = latest(tmp_path, device)
        assert again is not None
        assert again.step == step
    assert len(files(tmp_path)) == 4


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"")
    keep(tmp_path, state(1), state(2), state(3))
    assert (tmp_path / "run") in files(tmp_path)
    assert len(files(tmp_path)) == 3


# --- damage -----------------------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[:-1]
    if how == "flipped":
        content[len(content) // 2] ^= 1
    if how == "flipped in its digest":
        content[len(checkpoint.FORMAT) + 3] ^= 1
    if how == "empty":
        content = content[:0]
    if how == "of another format":
        content[: len(checkpoint.FORMAT)] = b"resflow-state-1\n"
    path.write_bytes(content)


DAMAGES = ["truncated", "flipped", "flipped in its digest", "empty", "of another format"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_is_passed_over_with_one_line_and_the_one_before_is_used(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    older = state(1)
    keep(tmp_path, older, state(2))
    damage(files(tmp_path)[1], how)
    again = latest(tmp_path)
    assert again is not None
    assert differences(again, older) == []
    warning = capsys.readouterr().err
    assert str(files(tmp_path)[1]) in warning
    assert warning.count("\n") == 1


def test_where_all_are_damaged_the_run_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path, state(1), state(2))
    for path in files(tmp_path):
        damage(path, "flipped")
    assert latest(tmp_path) is None
    assert capsys.readouterr().err.count("\n") == 2


def test_a_checkpoint_ahead_stays_until_the_run_is_past_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is damaged, and not to count among the last two, or of a process that took over a run that this one lost."""
    keep(tmp_path, state(100), state(200))
    whole = latest(tmp_path)
    keep(tmp_path, state(1), state(2), state(3))
    again = latest(tmp_path)
    assert again is not None
    assert whole is not None
    assert again.step == whole.step == 200
    for path in files(tmp_path)[-2:]:
        damage(path, "truncated")
    again = latest(tmp_path)
    assert again is not None
    assert again.step == 3
    assert capsys.readouterr().err.count(" is damaged ") == 2
    keep(tmp_path, state(201), state(202))
    assert [path.name[:9] for path in files(tmp_path)] == ["000000201", "000000202"]


def test_a_killed_write_leaves_the_checkpoint_before_and_is_overwritten(tmp_path: Path) -> None:
    keep(tmp_path, state(1))
    half = files(tmp_path)[0].read_bytes()[:100]
    (tmp_path / "000000002-00000.cpu.pt.partial").write_bytes(half)
    again = latest(tmp_path)
    assert again is not None
    assert again.step == 1
    keep(tmp_path, state(2))
    assert [path.suffix for path in files(tmp_path)] == [".pt", ".pt"]


# --- when and how -----------------------------------------------------------------------------------------------------


def test_an_interval_in_steps_is_due_at_its_multiples(tmp_path: Path) -> None:
    keeper = Keeper(LocalFolder(tmp_path), device="cpu", steps=3, seconds=0)
    assert [step for step in range(1, 10) if keeper.due_by_steps(step)] == [3, 6, 9]
    assert not keeper.due_by_time()


def test_an_interval_in_seconds_begins_anew_with_each_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    keeper = Keeper(LocalFolder(tmp_path), device="cpu", steps=0, seconds=10)
    assert not any(keeper.due_by_steps(step) for step in range(1, 100))
    due = []
    for _ in range(5):
        now[0] += 6
        due.append(keeper.due_by_time())
        if due[-1]:
            keeper.keep(state(1))
            keeper.wait()
    keeper.close()
    assert due == [False, True, False, True, False]


def test_an_interval_of_nothing_is_never_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper(LocalFolder(tmp_path), device="cpu", steps=0, seconds=0)
    monkeypatch.setattr("time.monotonic", lambda: 1e9)
    assert not keeper.due_by_time()
    assert not keeper.due_by_steps(1)


class SlowFolder(LocalFolder):
    """Writes only once it is let."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.let, self.started, self.written = threading.Event(), threading.Event(), 0

    def write(self, name: str, content: bytes) -> None:
        self.started.set()
        assert self.let.wait(20)
        super().write(name, content)
        self.written += 1


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowFolder]:
    folder = SlowFolder(tmp_path)
    yield folder
    folder.let.set()


def test_training_goes_on_while_a_checkpoint_is_written(slow: SlowFolder) -> None:
    keeper = Keeper(slow, device="cpu", steps=0, seconds=0)
    keeper.keep(state(1))
    assert slow.started.wait(20)
    assert slow.written == 0, "keep() came back, and nothing is written yet"
    assert slow.names() == []
    slow.let.set()
    keeper.wait()
    assert slow.written == 1
    keeper.close()


def test_an_interval_in_seconds_waits_for_no_store_and_begins_once_a_checkpoint_is_written(
    slow: SlowFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    keeper = Keeper(slow, device="cpu", steps=0, seconds=10)
    keeper.keep(state(1))
    now[0] += 60
    assert not keeper.due_by_time(), "it is still being written"
    slow.let.set()
    keeper.wait()
    assert not keeper.due_by_time()
    now[0] += 10
    assert keeper.due_by_time()
    keeper.close()


def test_one_checkpoint_waits_for_the_one_before(slow: SlowFolder) -> None:
    keeper = Keeper(slow, device="cpu", steps=0, seconds=0)
    keeper.keep(state(1))
    threading.Timer(0.1, slow.let.set).start()
    keeper.keep(state(2))
    assert slow.written >= 1
    keeper.close()
    assert slow.written == 2


def keep_and_stop(folder: SlowFolder) -> None:
    """As SIGTERM has it, while a checkpoint is being written."""
    with Keeper(folder, device="cpu", steps=0, seconds=0) as keeper:
        keeper.keep(state(1))
        assert folder.started.wait(20)
        sys.exit()


def test_a_stop_waits_for_the_checkpoint_that_is_being_written(slow: SlowFolder) -> None:
    threading.Timer(0.1, slow.let.set).start()
    with pytest.raises(SystemExit):
        keep_and_stop(slow)
    assert slow.written == 1


def test_a_stop_does_not_wait_for_a_checkpoint_that_hangs(slow: SlowFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAVE_SECONDS", 0.1)
    with pytest.raises(SystemExit):
        keep_and_stop(slow)
    assert slow.written == 0


# --- errors -----------------------------------------------------------------------------------------------------------


def refused(path: Path) -> Any:
    return pytest.raises(SetupError, match=f"{path}.*: cannot be written")


def test_an_error_of_the_writing_thread_reaches_training(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file in the place of the folder")
    keeper = Keeper(LocalFolder(tmp_path / "run"), device="cpu", steps=1, seconds=0)
    with refused(tmp_path / "run"):
        run(settings(), keeper=keeper)
    with refused(tmp_path / "run"):
        keeper.close()
    assert (tmp_path / "run").read_text() == "a file in the place of the folder"


def test_an_error_of_the_last_checkpoint_is_raised_when_closing_and_the_thread_ends(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    before = set(threading.enumerate())
    keeper = Keeper(LocalFolder(tmp_path / "run"), device="cpu", steps=0, seconds=0)
    keeper.keep(state(1))
    with refused(tmp_path / "run"):
        keeper.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_refuses_writing_is_one_error(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with refused(tmp_path / "run"):
        keep(tmp_path / "run", state(1))


def test_a_full_disk_is_one_error_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """A limit to the size of files stands for the disk."""
    keep(tmp_path, state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with refused(tmp_path):
            keep(tmp_path, state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = latest(tmp_path)
    assert again is not None
    assert again.step == 1
    assert len(files(tmp_path)) == 1, "a part of the other would keep the disk full"


def test_a_folder_in_the_place_of_an_old_checkpoint_is_one_error(tmp_path: Path) -> None:
    keep(tmp_path, state(1))
    path = files(tmp_path)[0]
    path.unlink()
    path.mkdir()
    with refused(path):
        keep(tmp_path, state(2), state(3), state(4))
