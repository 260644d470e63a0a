"""What a run shows while it trains: a bar on a terminal, elsewhere lines, and DVCLive's plots.

The worker measures (`Meter`), the driver shows (`Display`); between hosts the events travel as they are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from resflow.errors import SetupError
from resflow.training import lines
from resflow.training.checkpoint import tell
from resflow.training.live import Live
from resflow.training.loop import Epoch

if TYPE_CHECKING:
    from resflow.params import Train

__all__ = ["INTERVAL", "Display", "Event", "Meter", "Timing"]

BAR = "{l_bar}{bar}| "
"""The left of tqdm's. Its own figures on the right are steps, of which nobody asks, and leave no room for ours."""
INTERVAL = 0.5
"""Seconds between two events within an epoch: reading the sums makes a GPU wait."""
LINE_SECONDS = 5.0
"""From a line to one within an epoch: short epochs are told by a line each, long ones need not be waited for."""


class Event(NamedTuple):
    """Where a run stands."""

    epoch: int
    """The epoch under way or just finished, from 1."""
    step: int
    """Steps done in it."""
    steps: int
    loss: float
    """Mean since the epoch began."""
    accuracy: float
    images_per_second: float
    steps_per_second: float
    """Since the run began or went on, validation included: what is left takes as long."""
    history: tuple[Epoch, ...] = ()
    """With an epoch's last event, its outcome and those of all before it, by whomever they were trained."""
    seconds: float = 0.0
    """That the finished epoch took until it is shown; `Timing` counts that in."""

    @property
    def finished(self) -> Epoch | None:
        """The epoch's outcome, with its last event."""
        return self.history[-1] if self.history else None


class Timing(NamedTuple):
    """What this run computed of an epoch: all of it, or what was left where it went on."""

    seconds: float
    """Validation included, and showing the epoch."""
    images_per_second: float


class Meter:
    """Turns the loop's steps into events for `show`, at most one each half second."""

    def __init__(self, steps: int, batch_size: int, done: int, show: Callable[[Event], None]) -> None:
        self._steps, self._batch_size, self._show = steps, batch_size, show
        self._done, self._since, self._last = done, done, 0.0
        self._started = time.perf_counter()
        self._run_since, self._run_started = done, self._started

    def step(self, step: int, sums: Tensor) -> None:
        """After each optimiser step: `step` of them are done, `sums` is as in `loop.State`."""
        self._done = step
        now = time.perf_counter()
        if now - self._last < INTERVAL:
            return
        self._last = now
        loss, correct, count = sums.tolist()
        within = (step - 1) % self._steps + 1
        figures = (loss / count, correct / count, self._rate(now), self._run_rate(now))
        self._show(Event((step - 1) // self._steps + 1, within, self._steps, *figures))

    def epoch(self, history: Sequence[Epoch]) -> Timing:
        """After each epoch; returns how long it took."""
        epoch = history[-1]
        now = time.perf_counter()
        figures = (epoch.train_loss, epoch.train_accuracy, self._rate(now), self._run_rate(now))
        self._show(Event(epoch.epoch, self._steps, self._steps, *figures, tuple(history), now - self._started))
        now = time.perf_counter()
        timing = Timing(now - self._started, self._rate(now))
        self._started, self._since = now, self._done
        return timing

    def _rate(self, now: float) -> float:
        return (self._done - self._since) * self._batch_size / max(now - self._started, 1e-9)

    def _run_rate(self, now: float) -> float:
        return (self._done - self._run_since) / max(now - self._run_started, 1e-9)


class Display:
    """A bar an epoch on a terminal, with loss, accuracy, images per second and the time left of the run.

    Elsewhere a line tells the same: one an epoch, and one within it `line_seconds` after the last.
    The figures of each epoch also go to `live`, for `dvc plots`.
    """

    def __init__(self, train: Train, live: Path, line_seconds: float = LINE_SECONDS) -> None:
        self._train, self._live, self._line_seconds = train, Live(live), line_seconds
        self._bar: Any = None
        self._epoch = 0
        self._said = 0.0
        self._logs = True

    def show(self, event: Event | str) -> None:
        """Show where the run stands, or a line."""
        if isinstance(event, str):
            self.say(event)
            return
        # workers that are started again may go on in the epoch before
        bar = self._bar if self._bar and self._epoch == event.epoch else self._new_bar(event)
        figures = [f"loss {event.loss:.4f}", f"accuracy {event.accuracy:.2%}", _rate(event)]
        bar.bar_format = BAR + ", ".join([*figures, *self._left(event)]).replace("accuracy", "acc")  # for 80 columns
        bar.update(event.step - bar.n)
        if event.finished:
            self._remove_bar()
            self.say(self._line(event, _outcome(event.finished, event)))
            self._log(event.history)
        elif self._needs_lines() and time.perf_counter() - self._said >= self._line_seconds:
            self.say(self._line(event, figures, 100 * event.step // event.steps))

    def say(self, line: str) -> None:
        """Show a line beside the bar."""
        self._said = time.perf_counter()
        if self._bar:
            self._bar.write(line)
            sys.stdout.flush()
        else:
            print(line, flush=True)

    def _log(self, history: Sequence[Epoch]) -> None:
        if self._logs:
            try:
                self._live.show(history)
            except SetupError as error:  # no reason to end a training
                self._logs = False
                tell(f"{error}. What comes now is not shown there.")

    def close(self) -> None:
        """Take the bar away."""
        self._remove_bar()
        self._live.close()

    def _needs_lines(self) -> bool:
        return self._bar.disable or not sys.stdout.isatty()  # tqdm asks about stderr, where it draws

    def _line(self, event: Event, figures: Sequence[str], percent: int | None = None) -> str:
        return lines.text(event.epoch, self._train.epochs, [*figures, *self._left(event)], percent)

    def _left(self, event: Event) -> list[str]:
        """Of the run."""
        steps = (self._train.epochs - event.epoch + 1) * event.steps - event.step
        return [f"{_clock(steps / event.steps_per_second)} left"] if steps and event.steps_per_second else []

    def _new_bar(self, event: Event) -> Any:
        from tqdm import tqdm

        self._remove_bar()
        self._epoch = event.epoch
        self._said = self._said or time.perf_counter()  # not from the start of a cluster on, which may take long
        self._bar = tqdm(
            desc=f"epoch {event.epoch}/{self._train.epochs}",
            total=event.steps,
            initial=event.step,
            bar_format=BAR,
            leave=False,
            disable=None,
            mininterval=0,
        )
        return self._bar

    def _remove_bar(self) -> None:
        if self._bar:
            self._bar.close()
            self._bar = None


def _outcome(epoch: Epoch, event: Event) -> list[str]:
    validated = f"validation accuracy {epoch.validation_accuracy:.2%}"
    loss, rate = f"loss {epoch.train_loss:.4f}", f"lr {epoch.learning_rate:.3g}"
    rates = [_rate(event)] if event.images_per_second else []  # none where a run went on within the validation
    return [loss, validated, rate, f"{event.seconds:.1f} s", *rates]


def _rate(event: Event) -> str:
    return f"{event.images_per_second:,.0f} images/s"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
