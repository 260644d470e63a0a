"""Checkpoints: whole or not at all, and damaged ones passed over with a word."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from resflow.errors import SetupError
from resflow.training import checkpoint
from resflow.training.loop import Epoch, Progress


def progress(epochs: int) -> Progress:
    fields = ("learning_rate", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    history = [Epoch(epoch=number + 1, **dict.fromkeys(fields, 0.1 * number)) for number in range(epochs)]
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    weights = dict(net.state_dict())
    generator = torch.get_rng_state()
    return Progress(
        history=history, best=weights, net=weights, optimizer=optimizer.state_dict(), generator=generator
    )  # fmt: skip


def test_progress_comes_back_as_it_was(tmp_path: Path) -> None:
    kept = progress(2)
    checkpoint.save(kept, tmp_path / "run")
    again = checkpoint.load(tmp_path / "run")
    assert again is not None
    assert again.history == kept.history
    assert again.best_epoch == kept.best_epoch
    assert kept.generator is not None
    assert again.generator is not None
    assert torch.equal(again.generator, kept.generator)
    assert all(torch.equal(again.best[name], weights) for name, weights in kept.best.items())
    assert again.optimizer is not None
    assert kept.optimizer is not None
    momentum = kept.optimizer["state"][0]["momentum_buffer"]
    assert torch.equal(again.optimizer["state"][0]["momentum_buffer"], momentum)


def test_a_folder_without_a_checkpoint_holds_no_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert checkpoint.load(tmp_path / "none") is None
    assert capsys.readouterr() == ("", "")


def test_a_newer_checkpoint_takes_the_place_of_the_older_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for epochs in (1, 2):
        checkpoint.save(progress(epochs), tmp_path)
    again = checkpoint.load(tmp_path)
    assert again is not None
    assert len(again.history) == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_save_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(progress(1), tmp_path)
    (path,) = tmp_path.iterdir()
    path.with_name(path.name + ".part").write_bytes(path.read_bytes()[:100])
    again = checkpoint.load(tmp_path)
    assert again is not None
    assert len(again.history) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(progress(1), tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    cut = {"truncated": -1, "flipped": None, "empty": 0, "foreign": None}[damage]
    path.write_bytes(b"resflow-progress-0\n" + content[19:] if damage == "foreign" else bytes(content[:cut]))
    assert checkpoint.load(tmp_path) is None
    warning = capsys.readouterr().err
    assert str(path) in warning
    assert warning.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_refuses_writing_is_one_error(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(SetupError, match="cannot be written"):
        checkpoint.save(progress(1), tmp_path / "run")


def test_a_file_in_the_place_of_the_folder_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(SetupError, match="cannot be written"):
        checkpoint.save(progress(1), tmp_path / "run")
