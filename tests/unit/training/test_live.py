"""What is shown while a run trains: on the terminal, and through DVCLive."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resflow.errors import SetupError
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
def repository(tmp_path: Path) -> Path:
    """The current folder as a git and DVC repository, in which what is under timings is ignored."""
    for command in ("git init -q", f"{sys.executable} -m dvc init -q", "git add -A"):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("/timings/\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "Start"], cwd=tmp_path, check=True)
    return tmp_path


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
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 2/3", "epoch 3/3"]
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
