"""The Pareto front: what is not worse in everything than something else. Plain Python.

    first_front([(-0.99, 4.0), (-0.98, 2.0), (-0.97, 3.0)])   # [0, 1]

All objectives are minimised.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["dominates", "first_front", "fronts"]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is nowhere worse than `other`, and somewhere better (Deb et al. 2002, "NSGA-II", section III)."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def first_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Places of the points that no other dominates, in their order; equal points are all on it or none."""
    return [
        at for at, point in enumerate(points) if not any(dominates(other, point) for other in points)
    ]  # fmt: skip


def fronts(points: Sequence[Sequence[float]]) -> list[list[int]]:
    """All places by rank: the front, then that of what is left without it, and so on (section III A)."""
    left, ranked = list(range(len(points))), []
    while left:
        best = [left[at] for at in first_front([points[at] for at in left])]
        ranked.append(best)
        left = [at for at in left if at not in best]
    return ranked
