"""The Pareto front, on cases with a known answer and against its definition."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from resflow.study.front import dominates, first_front, fronts

Points = st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=20)


def test_a_point_dominates_what_is_nowhere_better_and_somewhere_worse() -> None:
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 3), (1, 2))
    assert not dominates((1, 2), (2, 1))
    assert not dominates((1, 2), (1, 2))


def test_the_front_of_known_points_is_found() -> None:
    points = [(-0.99, 4.0), (-0.98, 2.0), (-0.97, 3.0), (-0.90, 1.0), (-0.99, 5.0)]
    assert first_front(points) == [0, 1, 3]
    assert fronts(points) == [[0, 1, 3], [2, 4]]


def test_equal_points_are_on_the_front_together() -> None:
    assert first_front([(1, 1), (1, 1), (2, 2)]) == [0, 1]


def test_no_points_have_no_front() -> None:
    assert fronts([]) == []


@given(Points)
def test_ranks_hold_each_point_once_and_each_is_beaten_by_the_rank_before(points: list[tuple[int, int, int]]) -> None:
    ranked = fronts(points)
    assert sorted(at for rank in ranked for at in rank) == list(range(len(points)))
    for rank in ranked:
        assert not any(dominates(points[a], points[b]) for a in rank for b in rank)
    for before, rank in pairwise(ranked):
        assert all(any(dominates(points[a], points[b]) for a in before) for b in rank)
