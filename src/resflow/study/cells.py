"""What trials gave, by point and by pair: means with their spread, and which differences are more than noise.

What is made of it in words and tables is `answers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from resflow.study.experiments import Point
from resflow.study.statistics import LEVEL, Sample, holm, sample, welch, words

__all__ = ["Cell", "Compared", "by_verdict", "compare", "figure", "groups", "listed", "mean", "runs", "shown"]

Verdict = Literal["better", "worse", "noise", "open", "untested"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A point with the results of those of its trials that have run."""

    point: Point
    results: tuple[Mapping[str, Any], ...]

    def sample(self, what: str) -> Sample | None:
        """One figure of those runs that have it: a diverged one has no errors."""
        values = [float(result[what]) for result in self.results if what in result]
        return sample(values) if values else None

    @property
    def diverged(self) -> int:
        """Runs whose loss was no number in the end."""
        return sum("diverged" in result for result in self.results)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two cells, and what is to be said of their difference."""

    one: Cell
    other: Cell
    what: str
    alone: float
    """The p-value of this comparison by itself."""
    p: float
    """Corrected for all comparisons of the question."""

    @property
    def difference(self) -> float:
        """Of the means: below zero where `one` is lower."""
        return mean(self.one, self.what) - mean(self.other, self.what)

    @property
    def verdict(self) -> Verdict:
        """Of `one`: its error is lower or higher by more than noise; or not; or there are too few runs to tell.

        What passes the test alone, but not corrected for all comparisons, is `open`; so is what is lower in the runs
        that it ended, of which there are fewer: diverged ones have no error.
        """
        if math.isnan(self.p):
            return "untested"
        if self.p < LEVEL:
            lower: Verdict = "better" if self.one.diverged <= self.other.diverged else "open"
            return lower if self.difference < 0 else "worse"
        return "open" if self.alone < LEVEL else "noise"

    @property
    def is_as_good(self) -> bool:
        """Whether `one` may stand for `other`: lower in the mean, or within the noise and both spreads.

        Failing a test is no proof of equality: with few runs even a great difference does.
        """
        if self.verdict == "untested" or self.one.diverged > self.other.diverged:
            return False
        spread = max(figure(cell, self.what).std for cell in (self.one, self.other))
        return self.difference <= 0 or (self.verdict == "noise" and self.difference <= spread)

    @property
    def told(self) -> str:
        """The verdict in words, with the p-value."""
        return f"open, more runs would tell: p = {self.p:.2g}" if self.verdict == "open" else words(self.p)

    def __str__(self) -> str:
        one, other = (shown(cell.sample(self.what)) for cell in (self.one, self.other))
        return f"{one} against {other}, {self.told}"


def groups(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Cells with results, by their group."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.results:
            found.setdefault(cell.point.group, []).append(cell)
    return found


def compare(pairs: Sequence[tuple[Cell, Cell]], what: str) -> list[Compared]:
    """Those pairs that have results, their p-values corrected for all of them; a pair asked for twice counts once."""
    known = [(one, other) for one, other in pairs if one.sample(what) and other.sample(what)]
    names = [frozenset((id(one), id(other))) for one, other in known]  # the same both ways
    alone = {
        name: welch(figure(one, what), figure(other, what)) for name, (one, other) in zip(names, known, strict=True)
    }
    corrected = dict(zip(alone, holm([*alone.values()]), strict=True))
    return [
        Compared(one=one, other=other, what=what, alone=alone[name], p=corrected[name])
        for name, (one, other) in zip(names, known, strict=True)
    ]


def by_verdict(compared: Sequence[Compared], name: Callable[[Compared], str]) -> dict[str, list[str]]:
    """Names of comparisons by their verdict."""
    found: dict[str, list[str]] = {verdict: [] for verdict in get_args(Verdict)}
    for each in compared:
        found[each.verdict].append(name(each))
    return found


def figure(cell: Cell, what: str) -> Sample:
    """One figure of a cell that is known to have it."""
    found = cell.sample(what)
    assert found is not None
    return found


def mean(cell: Cell, what: str) -> float:
    """The mean of that."""
    return figure(cell, what).mean


def shown(found: Sample | None) -> str:
    """Mean and standard deviation of a fraction, in percent."""
    if found is None:
        return "none"
    spread = "" if math.isnan(found.std) else f" ± {100 * found.std:.2f}"
    return f"{100 * found.mean:.2f}{spread} %"


def runs(cell: Cell) -> str:
    """How many of its trials have run, and how many of those diverged."""
    whole = len(cell.point.trials)
    count = f"{len(cell.results)}" if len(cell.results) == whole else f"{len(cell.results)} of {whole}"
    return f"{count}, {cell.diverged} diverged" if cell.diverged else count


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence."""
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)
