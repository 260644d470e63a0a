"""Means, spreads, and whether two differ by more than chance.

`welch` compares two samples, `holm` corrects the p-values of many comparisons, `judged` says both in words. What is
compared is `answers`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["LEVEL", "Sample", "holm", "sample", "welch", "words"]

LEVEL = 0.05
"""Probability of calling any of a family of differences real when none is, after Holm's correction."""


class Sample(NamedTuple):
    """Results of one thing over seeds."""

    values: tuple[float, ...]
    mean: float
    std: float
    """Standard deviation with n - 1; not a number below two values."""

    @property
    def n(self) -> int:
        """How many."""
        return len(self.values)


def sample(values: Sequence[float]) -> Sample:
    """Mean and standard deviation of at least one value."""
    std = statistics.stdev(values) if len(values) > 1 else math.nan
    # exact: fmean([0.1] * 3) is above 0.1, so that one value would differ from itself by how often it came
    return Sample(tuple(values), statistics.mean(values), std)


def welch(one: Sample, other: Sample) -> float:
    """Two-sided p-value for equal means by Welch's t-test (Welch 1947); not a number below two values in each.

    Not paired by seed: another structure draws other weights from the same seed, so nothing is shared but the order of
    the images.

    Where neither sample has any spread, t divides by zero. Its limit, p = 0, would take two runs of each for proof, but
    figures that are counts of images tie by chance. The exact permutation test of two means (Pitman 1937) needs no
    spread: of all ways to deal the values out to both samples, only the one that was seen parts them so, and p is twice
    its share. Equal samples have p = 1.
    """
    if min(one.n, other.n) < 2:
        return math.nan
    parts = [each.std**2 / each.n for each in (one, other)]
    if not sum(parts):
        return 1.0 if one.mean == other.mean else 2 / math.comb(one.n + other.n, one.n)
    t2 = (one.mean - other.mean) ** 2 / sum(parts)
    freedom = sum(parts) ** 2 / sum(part**2 / (each.n - 1) for part, each in zip(parts, (one, other), strict=True))
    from mpmath import betainc

    # the tails of Student's distribution: Abramowitz and Stegun 1964, 26.7.1
    return float(betainc(freedom / 2, 0.5, 0, freedom / (freedom + t2), regularized=True))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for so many comparisons (Holm 1979), in the order given; those that are none stay so."""
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, greatest = list(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        greatest = max(greatest, min(1.0, (len(known) - rank) * p))
        corrected[place] = greatest
    return corrected


def words(p: float) -> str:
    """What a corrected p-value says of a difference."""
    if math.isnan(p):
        return "not tested: it takes two runs of each"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    return f"more than noise: {shown}" if p < LEVEL else f"within the noise: {shown}"
