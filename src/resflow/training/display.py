"""What a run shows while it trains: a bar on a terminal, elsewhere a line an epoch.

The worker measures (`Meter`), the driver shows (`Display`); between hosts the events travel as they are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from resflow.training.live import Live
from resflow.training.loop import Epoch

if TYPE_CHECKING:
    from resflow.params import Train

__all__ = ["Display", "Event", "Meter"]

INTERVAL = 0.5
"""Seconds between two events within an epoch: reading the sums makes a GPU wait."""


class Event(NamedTuple):
    """Where a run stands."""

    epoch: int
    """The epoch under way or just finished, from 1."""
    step: int
    """Steps done in it."""
    steps: int
    loss: float
    """Mean since the epoch began, or since the run went on within it."""
    accuracy: float
    images_per_second: float
    history: tuple[Epoch, ...] = ()
    """With an epoch's last event, its outcome and those of all before it, by whomever they were trained."""
    seconds: float = 0.0
    """That the finished epoch took, since the run began or went on."""

    @property
    def finished(self) -> Epoch | None:
        """The epoch's outcome, with its last event."""
        return self.history[-1] if self.history else None


class Meter:
    """Turns the loop's steps into events for `show`, at most one each half second."""

    def __init__(self, steps: int, batch_size: int, done: int, show: Callable[[Event], None]) -> None:
        self._steps, self._batch_size, self._show = steps, batch_size, show
        self._done, self._since, self._last = done, done, 0.0
        self._started = time.perf_counter()

    def step(self, step: int, sums: Tensor) -> None:
        """After each optimiser step: `step` of them are done, `sums` is as in `loop.State`."""
        self._done = step
        now = time.perf_counter()
        if now - self._last < INTERVAL:
            return
        self._last = now
        loss, correct, count = sums.tolist()
        within = (step - 1) % self._steps + 1
        self._show(
            Event((step - 1) // self._steps + 1, within, self._steps, loss / count, correct / count, self._rate(now))
        )

    def epoch(self, history: Sequence[Epoch]) -> float:
        """After each epoch; returns its seconds."""
        epoch = history[-1]
        now = time.perf_counter()
        seconds, rate = now - self._started, self._rate(now)
        figures = (epoch.train_loss, epoch.train_accuracy, rate)
        self._show(Event(epoch.epoch, self._steps, self._steps, *figures, tuple(history), seconds))
        self._started, self._since = time.perf_counter(), self._done
        return seconds

    def _rate(self, now: float) -> float:
        return (self._done - self._since) * self._batch_size / max(now - self._started, 1e-9)


class Display:
    """A bar over the steps of each epoch on a terminal, with loss, accuracy, images per second and time left.

    The figures of each epoch also go to `live`, for `dvc plots`.
    """

    def __init__(self, train: Train, live: Path) -> None:
        self._train, self._live = train, Live(live)
        self._bar: Any = None

    def show(self, event: Event | str) -> None:
        """Show where the run stands, or a line."""
        if isinstance(event, str):
            self.say(event)
            return
        bar = self._bar or self._new_bar(event)
        bar.set_description(f"epoch {event.epoch}/{self._train.epochs}", refresh=False)
        figures = f"loss {event.loss:.4f}, accuracy {event.accuracy:.2%}, {event.images_per_second:,.0f} images/s"
        bar.set_postfix_str(figures, refresh=False)
        bar.update((event.epoch - 1) * event.steps + event.step - bar.n)
        if event.finished:
            self.say(_line(event.finished, self._train, event.seconds))
            self._live.show(event.history)

    def say(self, line: str) -> None:
        """Show a line beside the bar."""
        if self._bar:
            self._bar.write(line)
            sys.stdout.flush()
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.close()
        self._live.close()

    def _new_bar(self, event: Event) -> Any:
        from tqdm import tqdm

        done = (event.epoch - 1) * event.steps + event.step
        self._bar = tqdm(
            total=self._train.epochs * event.steps, initial=done, unit="step", leave=False, disable=None, mininterval=0
        )
        return self._bar


def _line(epoch: Epoch, train: Train, seconds: float) -> str:
    return (
        f"epoch {epoch.epoch}/{train.epochs}  loss {epoch.train_loss:.4f}  validation accuracy "
        f"{epoch.validation_accuracy:.2%}  lr {epoch.learning_rate:.3g}  {seconds:.1f} s"
    )
