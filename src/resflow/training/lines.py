"""The lines that tell how far a run is: `display` writes them, `tasks.progress` reads them where the stage is piped.

Not in `display`, since the process of a flow does not load torch. What the figures are is said there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Told", "read", "text"]

LINE = re.compile(r"epoch (\d+)/(\d+)  (?:(\d+)%  )?(.+)")
GAP = "  "


class Told(NamedTuple):
    """What a line tells."""

    share: float
    """Of the whole run that is done, from 0 to 1."""
    description: str
    passing: bool
    """Whether the epoch is under way: the next line outdates it."""


def text(epoch: int, epochs: int, figures: Iterable[str], percent: int | None = None) -> str:
    """The line of an epoch, from 1, of which `percent` is done, or which is finished."""
    share = [] if percent is None else [f"{percent}%"]
    return GAP.join([f"epoch {epoch}/{epochs}", *share, *figures])


def read(line: str) -> Told | None:
    """What `text` has written; None for any other line."""
    found = LINE.fullmatch(line)
    if not found:
        return None
    epoch, epochs, percent = int(found[1]), int(found[2]), int(found[3] or 100)
    within = f", {percent}%" if found[3] else ""
    figures = found[4].replace(GAP, ", ")
    return Told((epoch - 1 + percent / 100) / epochs, f"epoch {epoch} of {epochs}{within}: {figures}", bool(within))
