"""Whether two samples differ by more than chance, against published figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resflow.study.statistics import holm, sample, welch, words

# Student's sleep data, 1908: extra hours of sleep by two drugs. R's t.test(extra ~ group) prints p-value = 0.07939.
SLEEP = (
    (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0),
    (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4),
)
VALUES = st.lists(st.floats(-100, 100).map(lambda value: round(value, 3)), min_size=2, max_size=6)


def test_welch_gives_what_r_prints_for_students_sleep_data() -> None:
    assert welch(sample(SLEEP[0]), sample(SLEEP[1])) == pytest.approx(0.07939, abs=5e-6)


def test_welch_of_two_and_two_is_the_closed_form_for_equal_spreads() -> None:
    """With two degrees of freedom, P(|T| > t) = 1 - t / sqrt(2 + t^2)."""
    t = 3 / math.sqrt(0.5 / 2 + 0.5 / 2)
    assert welch(sample([0, 1]), sample([3, 4])) == pytest.approx(1 - t / math.sqrt(2 + t**2))


@given(VALUES, VALUES)
def test_welch_is_a_probability_and_the_same_both_ways(one: list[float], other: list[float]) -> None:
    p = welch(sample(one), sample(other))
    assert 0 <= p <= 1
    assert welch(sample(other), sample(one)) == pytest.approx(p)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1 / 3, 0.028000000000000025])
def test_samples_that_hold_one_value_alone_do_not_differ(value: float) -> None:
    """However often: the sum of three floats of 0.1, divided by three, is more than 0.1."""
    for count, others in ((2, 2), (2, 3), (3, 7), (5, 6)):
        assert welch(sample([value] * count), sample([value] * others)) == 1


def test_samples_without_any_spread_are_told_apart_by_how_many_they_are() -> None:
    """There are 20 ways to deal six values out to two samples of three; one parts them, and one the other way round."""
    assert welch(sample([0.5] * 3), sample([0.25] * 3)) == pytest.approx(2 / 20)
    assert welch(sample([0.5] * 2), sample([0.25] * 2)) == pytest.approx(2 / 6)
    assert welch(sample([0.5] * 5), sample([0.25] * 3)) == pytest.approx(2 / 56)
    assert words(welch(sample([0.5] * 2), sample([0.25] * 2))).startswith("within the noise")


def test_one_run_tells_nothing() -> None:
    assert math.isnan(welch(sample([1.0]), sample([5.0, 6.0])))
    assert "two runs" in words(math.nan)


def test_holm_corrects_as_in_his_paper_and_leaves_gaps() -> None:
    """Smallest times four, next times three, ...; never below the one before."""
    corrected = holm([0.02, 0.01, math.nan, 0.03, 0.005])
    assert [corrected[place] for place in (0, 1, 3, 4)] == pytest.approx([0.04, 0.03, 0.04, 0.02])
    assert math.isnan(corrected[2])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_small_p_is_more_than_noise_and_a_large_one_is_not() -> None:
    assert words(0.0004) == "more than noise: p < 0.001"
    assert words(0.4) == "within the noise: p = 0.4"
