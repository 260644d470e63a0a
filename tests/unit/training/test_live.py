"""What is shown while a run trains: on the terminal, and through DVCLive."""

from __future__ import annotations

import csv
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

from resflow.errors import SetupError
from resflow.training import lines
from resflow.training.display import Display, Event, Meter
from resflow.training.live import Live
from resflow.training.loop import Epoch
from tests.unit.training.small import run, settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVCLive looks for a repository around the current folder; not for ours."""
    monkeypatch.chdir(tmp_path)


def history(epochs: int, shift: float = 0.0) -> list[Epoch]:
    made = []
    for number in range(1, epochs + 1):
        figures = {"learning_rate": 0.1 / number, "train_loss": 2 / number, "train_accuracy": 1 - 1 / number}
        validated = {"validation_loss": 3 / number + shift, "validation_accuracy": 1 - 2 / number}
        made.append(Epoch(epoch=number, **figures, **validated))
    return made


def shown(folder: Path, name: str) -> list[tuple[int, float]]:
    with (folder / "plots" / "metrics" / f"{name}.tsv").open() as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [(int(row["step"]), float(row[name.rpartition("/")[2]])) for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- DVCLive ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def new_repository(tmp_path: Path) -> Path:
    """The current folder as a git and DVC repository without a commit."""
    for command in ("git init -q", f"{sys.executable} -m dvc init -q"):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    return tmp_path


@pytest.fixture
def repository(new_repository: Path) -> Path:
    """The same with a commit, and what is under timings ignored."""
    (new_repository / ".gitignore").write_text("/timings/\n")
    (new_repository / "dvc.yaml").write_text("stages: {}\n")
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    subprocess.run(["git", "add", "-A"], cwd=new_repository, check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "Start"], cwd=new_repository, check=True)
    return new_repository


def test_each_epoch_can_be_seen_as_soon_as_it_is_done(tmp_path: Path) -> None:
    live = Live(tmp_path / "live")
    for number in range(1, 4):
        epochs = history(number)
        live.show(epochs)
        for name in ("train/loss", "train/accuracy", "validation/loss", "validation/accuracy", "learning_rate"):
            wanted = [(epoch.epoch, getattr(epoch, name.replace("/", "_"))) for epoch in epochs]
            assert shown(tmp_path / "live", name) == wanted
    live.close()
    assert len(shown(tmp_path / "live", "train/loss")) == 3


def test_a_run_that_goes_on_shows_all_its_epochs_and_none_of_another(tmp_path: Path) -> None:
    for epochs in (history(9, shift=1.0), history(4)):
        Live(tmp_path).show(epochs[:3])
    gone_on = Live(tmp_path)
    gone_on.show(history(4))
    gone_on.show(history(5))
    gone_on.close()
    assert shown(tmp_path, "validation/loss") == [(epoch.epoch, epoch.validation_loss) for epoch in history(5)]


def test_the_repository_is_left_as_it_is(repository: Path) -> None:
    live = Live(repository / "timings" / "live")
    live.show(history(2))
    live.close()
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    assert status.stdout == ""
    assert (repository / "dvc.yaml").read_text() == "stages: {}\n"
    refs = subprocess.run(["git", "for-each-ref", "refs/exps"], capture_output=True, text=True, check=True)
    assert refs.stdout == "", "it made an experiment"


def test_a_repository_without_a_commit_is_one_error(new_repository: Path) -> None:
    with pytest.raises(SetupError, match=r"live: DVCLive cannot log there \(Empty git repo\)\. Make a first commit"):
        Live(new_repository / "live").show(history(1))


def test_nothing_in_it_depends_on_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        live = Live(tmp_path / name)
        live.show(history(3))
        live.close()
    assert files(tmp_path / "one") == files(tmp_path / "two") != {}


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "live").write_text("")
    with pytest.raises(SetupError, match="live: cannot be written"):
        Live(tmp_path / "live").show(history(1))


def test_a_folder_that_is_lost_while_a_run_trains_costs_no_trained_network(tmp_path: Path) -> None:
    live = Live(tmp_path / "live")
    live.show(history(1))
    shutil.rmtree(tmp_path / "live")
    (tmp_path / "live").write_text("a file in its place")
    live.close()
    assert (tmp_path / "live").read_text() == "a file in its place"


def test_a_run_that_cannot_be_shown_in_plots_trains_on_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "live").write_text("")
    display = Display(settings(epochs=2), tmp_path / "live")
    for epoch in (1, 2):
        display.show(Event(epoch, 200, 200, 2.0, 0.0, 10_123.4, 4.0, tuple(history(epoch)), 3.21))
    display.close()
    said = capsys.readouterr()
    assert said.out.count("\n") == 2
    (line,) = said.err.splitlines()
    assert line.startswith(f"{tmp_path}/live: cannot be written")


# --- events -----------------------------------------------------------------------------------------------------------


def test_a_run_is_told_as_a_line_an_epoch_and_shown_from_its_first_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = run(settings(epochs=1))
    display = Display(settings(), tmp_path)
    meter = Meter(4, 16, stopped.step, display.show)
    done = run(
        settings(), state=stopped, on_step=meter.step, on_epoch=lambda state: meter.epoch(state.history) and None
    )
    display.close()
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in said] == ["epoch 2/3", "epoch 3/3"]
    assert re.search(r" s  [\d,]+ images/s  0:0\d left$", said[0])
    assert said[1].endswith(" images/s"), "nothing is left"
    assert [step for step, _ in shown(tmp_path, "train/loss")] == [1, 2, 3]
    assert [loss for _, loss in shown(tmp_path, "train/loss")] == [epoch.train_loss for epoch in done.history]


def test_an_event_within_an_epoch_tells_how_far_it_is() -> None:
    events: list[Event] = []
    meter = Meter(4, 16, 0, events.append)
    meter.step(6, torch.tensor([32.0, 8.0, 32.0], dtype=torch.float64))
    (event,) = events
    assert (event.epoch, event.step, event.steps) == (2, 2, 4)
    assert (event.loss, event.accuracy, event.finished) == (1.0, 0.25, None)
    assert event.images_per_second > 0


def test_a_run_that_went_on_within_an_epoch_tells_the_speed_of_what_it_computed_itself() -> None:
    events: list[Event] = []

    def show(event: Event) -> None:
        events.append(event)
        time.sleep(0.01)

    meter = Meter(4, 16, 2, show)
    for number, steps in ((1, range(3, 5)), (2, range(5, 9))):
        for step in steps:
            meter.step(step, torch.ones(3, dtype=torch.float64))
        time.sleep(0.01)
        timing = meter.epoch(history(number))
        assert events[-1].seconds >= 0.01
        assert timing.seconds >= events[-1].seconds + 0.01, "showing an epoch is a part of it"
        assert timing.images_per_second * timing.seconds == pytest.approx(len(steps) * 16)
    assert events[0].steps_per_second > 0
    assert 0 < events[-1].steps_per_second <= 6 / 0.02


# --- a bar ------------------------------------------------------------------------------------------------------------


def test_on_a_terminal_of_80_columns_each_epoch_has_a_bar_which_its_line_takes_the_place_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with open(terminal, "w") as file:  # noqa: PTH123  # it is no path
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.setattr(sys, "stdout", file)
        display = Display(settings(), tmp_path)
        display.show(within(1, 50))
        display.show(within(1, 100))
        display.show(Event(1, 200, 200, 2.0, 0.0, 10_123.4, 4.0, tuple(history(1)), 3.21))
        display.show(within(2, 60))
        display.close()
        said = os.read(screen, 100_000).decode()
    os.close(screen)
    bars = re.findall(r"epoch (\d)/3: +(\d+)%\|[^|]*\| ([^|\r]* left)", said)
    figures = "loss 0.3121, acc 91.20%, 10,123 images/s"
    assert ("1", "50", f"{figures}, 2:05 left") in bars
    assert bars[-1] == ("2", "30", f"{figures}, 1:25 left")
    line = "epoch 1/3  loss 2.0000  validation accuracy -100.00%"
    assert f"\r{line}" in said, "the bar is gone"
    assert said.index(" 50%|") < said.index(line) < said.index(" 30%|")


# --- lines within an epoch --------------------------------------------------------------------------------------------


def within(epoch: int, step: int) -> Event:
    """Of 200 steps an epoch, four a second."""
    return Event(epoch, step, 200, 0.31214, 0.912, 10_123.4, 4.0)


def test_off_a_terminal_a_long_epoch_is_told_by_lines_at_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display(settings(), tmp_path, line_seconds=0.2)
    display.show(within(1, 1))
    display.show(within(1, 2))
    assert capsys.readouterr().out == "", "the first event begins the interval"
    time.sleep(0.2)
    display.show(within(1, 81))
    display.show(within(1, 82))
    wanted = "epoch 1/3  40%  loss 0.3121  accuracy 91.20%  10,123 images/s  2:10 left\n"
    assert capsys.readouterr().out == wanted
    time.sleep(0.2)
    display.say("a line of another kind")
    display.show(within(2, 1))
    assert capsys.readouterr().out == "a line of another kind\n"
    time.sleep(0.2)
    display.show(within(3, 200))
    display.close()
    assert capsys.readouterr().out == "epoch 3/3  100%  loss 0.3121  accuracy 91.20%  10,123 images/s\n"


def test_by_default_short_epochs_are_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(settings(), tmp_path)
    for step in range(1, 200):
        display.show(within(1, step))
    done = tuple(history(1))
    display.show(Event(1, 200, 200, 2.0, 0.0, 10_123.4, 4.0, done, 3.21))
    display.close()
    wanted = "epoch 1/3  loss 2.0000  validation accuracy -100.00%  lr 0.1  3.2 s  10,123 images/s  1:40 left\n"
    assert capsys.readouterr().out == wanted


def test_an_epoch_of_which_only_validation_was_left_has_no_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Event] = []
    Meter(200, 16, 200, told.append).epoch(history(1))
    display = Display(settings(), tmp_path)
    display.show(told[0])
    display.close()
    wanted = "epoch 1/3  loss 2.0000  validation accuracy -100.00%  lr 0.1  0.0 s\n"
    assert capsys.readouterr().out == wanted


def test_hours_are_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(settings(epochs=300), tmp_path, line_seconds=0.0)
    display.show(within(1, 101))
    display.close()
    assert capsys.readouterr().out.endswith("  50%  loss 0.3121  accuracy 91.20%  10,123 images/s  4:09:35 left\n")


def test_what_a_run_tells_is_read_from_its_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(settings(epochs=2), tmp_path, line_seconds=0.0)
    display.show("going on from step 3 of 400")
    display.show(within(1, 81))
    display.show(Event(1, 200, 200, 2.0, 0.0, 10_123.4, 4.0, tuple(history(1)), 3.21))
    display.show(within(2, 100))
    display.show(Event(2, 200, 200, 2.0, 0.0, 10_123.4, 4.0, tuple(history(2)), 3.21))
    display.close()
    other, *told = map(lines.read, capsys.readouterr().out.splitlines())
    assert other is None
    assert [(one.share, one.passing) for one in told if one] == [(0.2, True), (0.5, False), (0.75, True), (1.0, False)]
    assert told[0]
    figures = "loss 0.3121, accuracy 91.20%, 10,123 images/s, 1:20 left"
    assert told[0].description == f"epoch 1 of 2, 40%: {figures}"
    assert told[1]
    assert told[1].description.startswith("epoch 1 of 2: loss 2.0000, validation accuracy ")
    assert told[1].description.endswith(", lr 0.1, 3.2 s, 10,123 images/s, 0:50 left")


@pytest.mark.parametrize("line", ["", "epoch", "epoch 1/2", "an epoch 1/2  40%  loss 1", "epoch 1/2 done"])
def test_other_lines_tell_nothing(line: str) -> None:
    assert lines.read(line) is None
