"""A run in this process that is told to end: a last checkpoint first, and then the end that the signal asked for."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resflow.data.arrays import Split
from resflow.errors import StoreUnavailable
from resflow.training import checkpoint, loop, stop
from resflow.training.checkpoint import Keeper, LocalFolder
from resflow.training.loop import State
from resflow.training.stop import StopHere
from tests.unit.training.small import STEPS, VALIDATION, differences, run, settings

NUMBERS = (signal.SIGTERM, signal.SIGINT)
MIDDLE = STEPS + 2
"""A step within the second epoch."""


@pytest.fixture(autouse=True)
def unwinds() -> Iterator[None]:
    """SIGTERM and Ctrl-C end as they do in a stage: with their number."""
    before = {number: signal.signal(number, lambda number, frame: sys.exit(number)) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(folder: LocalFolder, number: int | None, said: list[str], state: State | None = None) -> State:
    """A run without checkpoints in its epochs; the signal comes before a step in the middle of one."""

    def on_step(step: int, sums: object) -> None:
        if step == MIDDLE - 1 and number is not None:
            signal.raise_signal(signal.Signals(number))

    with (
        StopHere() as asked,
        Keeper(folder, device="cpu", steps=0, seconds=0, say=said.append, stop=asked) as keeper,
    ):
        return run(settings(), keeper=keeper, state=state, on_step=on_step)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_that_is_told_to_end_keeps_its_last_step_and_goes_on_from_it_to_the_same_bits(
    tmp_path: Path, number: int
) -> None:
    folder, said, alarm = LocalFolder(tmp_path), list[str](), signal.getsignal(signal.SIGALRM)
    with pytest.raises(SystemExit) as ended:
        train(folder, number, said)
    assert ended.value.code == number
    assert said == [f"step {MIDDLE - 1} is kept, to go on from"]
    kept = checkpoint.latest(folder, "cpu")
    assert kept is not None
    assert kept.step == MIDDLE - 1
    assert differences(train(folder, None, said, kept), run(settings())) == []
    assert signal.getsignal(signal.SIGALRM) is alarm


def test_a_run_that_is_told_to_end_within_a_validation_goes_on_with_it_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Signals:
        """Images of which the second batch brings a signal."""

        shape = VALIDATION.images.shape

        def __len__(self) -> int:
            return len(VALIDATION.images)

        def __getitem__(self, part: slice) -> NDArray[np.uint8]:
            if part.start == 8:
                signal.raise_signal(signal.SIGTERM)
            return VALIDATION.images[part]

    monkeypatch.setattr(loop, "VALIDATION_BATCH", 8)
    folder, said = LocalFolder(tmp_path), list[str]()
    images: Any = Signals()
    with (
        pytest.raises(SystemExit),
        StopHere() as asked,
        Keeper(folder, device="cpu", steps=0, seconds=0, say=said.append, stop=asked) as keeper,
    ):
        run(settings(), keeper=keeper, validation=Split(images, VALIDATION.labels))
    assert said == [f"step {STEPS} is kept, to go on from"]
    kept = checkpoint.latest(folder, "cpu")
    assert kept is not None
    assert kept.history == []
    assert differences(run(settings(), state=kept), run(settings())) == []


def end(*numbers: int, meanwhile: Callable[[StopHere], object]) -> int:
    """The code with which training ends that gets signals and then does what it is given."""

    def trained() -> None:
        with StopHere() as asked:
            for number in numbers:
                signal.raise_signal(signal.Signals(number))
            meanwhile(asked)

    with pytest.raises(SystemExit) as ended:
        trained()
    return int(ended.value.code or 0)


def test_a_last_checkpoint_that_cannot_be_written_is_told_and_the_run_ends_as_it_was_told_to(tmp_path: Path) -> None:
    class Gone(LocalFolder):
        def write(self, name: str, content: bytes) -> None:
            raise StoreUnavailable("s3://here", "does not answer", "Wait")

    said: list[str] = []

    def keep(asked: StopHere) -> None:
        Keeper(Gone(tmp_path), device="cpu", steps=0, seconds=0, say=said.append, stop=asked).keep(State(step=3))

    assert end(signal.SIGTERM, meanwhile=keep) == signal.SIGTERM
    assert said == ["step 3 is not kept: s3://here: does not answer. Wait"]


def test_a_store_that_hangs_is_not_waited_for_when_training_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "LEAVE_SECONDS", 0.1)
    ended, done = threading.Event(), list[bool]()

    class Hangs(LocalFolder):
        def write(self, name: str, content: bytes) -> None:
            done.append(ended.wait(20))

    def close(asked: StopHere) -> None:
        with Keeper(Hangs(tmp_path), device="cpu", steps=0, seconds=0) as keeper:
            keeper.keep(State(step=3))

    assert end(signal.SIGTERM, meanwhile=close) == signal.SIGTERM
    assert done == []
    ended.set()


def test_nobody_need_read_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    gone = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", gone)
    checkpoint.tell("step 3 is kept, to go on from")
    with pytest.raises(BrokenPipeError):  # what it could not write
        gone.close()


def test_a_step_that_takes_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "LEAVE_SECONDS", 0.1)
    done: list[str] = []

    def step(asked: StopHere) -> None:
        time.sleep(20)
        done.append("a step")

    assert end(signal.SIGTERM, meanwhile=step) == signal.SIGTERM
    assert done == []


def test_a_second_signal_neither_hastens_the_end_nor_changes_it() -> None:
    assert end(signal.SIGINT, signal.SIGTERM, signal.SIGINT, meanwhile=StopHere.kept) == signal.SIGINT


def test_a_run_that_ends_by_itself_meanwhile_ends_as_it_was_told_to() -> None:
    done: list[str] = []
    assert end(signal.SIGTERM, meanwhile=lambda asked: done.append("training")) == signal.SIGTERM
    assert done == ["training"]


def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell has it in what it does not wait for
    with StopHere() as asked:
        signal.raise_signal(signal.SIGINT)
        assert not asked.asked()
