"""A run in this process that is told to end waits for a last checkpoint. That of one elsewhere is `post`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

__all__ = ["LEAVE_SECONDS", "StopHere"]

LEAVE_SECONDS = 5.0
"""How long what ends a run early waits for a checkpoint: a store that hangs would hold it for long, and so would steps
that take long."""


class StopHere:
    """As a context, holds back SIGTERM and Ctrl-C until a checkpoint is kept (`checkpoint.Stop`), for a moment at most.

    Then what they had done without it is done: the handler that was there is called, which should raise. More of them
    change nothing: who ends a pipeline may send one to each of its processes, each of which sends one on.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._before: tuple[Any, tuple[float, float]] = (signal.SIG_DFL, (0.0, 0.0))  # of SIGALRM, and its timer
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others get no signals
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    self._handlers[number] = handler
                    signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None and self.asked():  # training has ended by itself meanwhile
            self.kept()
        self._let_go()

    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    def kept(self) -> None:
        """End as the signal would have."""
        number, handlers = self._number, self._handlers
        assert number is not None
        self._let_go()
        handlers[number](number, None)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._number is None:
            self._number = number
            handler = signal.signal(signal.SIGALRM, lambda number, frame: self.kept())
            self._before = handler, signal.setitimer(signal.ITIMER_REAL, LEAVE_SECONDS)

    def _let_go(self) -> None:
        if self._number is not None and self._handlers:
            handler, timer = self._before
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, *timer)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
