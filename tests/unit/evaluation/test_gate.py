from __future__ import annotations

import pytest

from resflow.errors import GateError
from resflow.evaluation.gate import judge
from resflow.params import Gate

GATE = Gate(min_accuracy=0.99, max_ece=0.15, max_accuracy_drop=0.002)
GOOD = {"accuracy": 0.995, "ece": 0.08}


def failed(verdict):
    return [check.name for check in verdict.checks if not check.passed]


def test_a_first_model_within_the_limits_passes():
    verdict = judge(GOOD, None, GATE)
    assert verdict.passed
    assert [check.name for check in verdict.checks] == ["min_accuracy", "max_ece"]
    assert verdict.text == "accuracy 0.995 reaches 0.99; calibration error 0.08 stays within 0.15"


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        ({"accuracy": 0.9899, "ece": 0.08}, ["min_accuracy"]),
        ({"accuracy": 0.995, "ece": 0.1501}, ["max_ece"]),
        ({"accuracy": 0, "ece": 1}, ["min_accuracy", "max_ece"]),
    ],
)
def test_a_model_beyond_a_limit_fails_and_the_text_names_only_what_failed(metrics, names):
    verdict = judge(metrics, None, GATE)
    assert not verdict.passed
    assert failed(verdict) == names
    assert verdict.text.count(";") == len(names) - 1


def test_a_model_exactly_at_the_limits_passes():
    assert judge({"accuracy": 0.99, "ece": 0.15}, {"accuracy": 0.992}, GATE).passed
    # 0.995 - 0.002 is a little more than 0.993 in binary
    assert judge({"accuracy": 0.993, "ece": 0}, {"accuracy": 0.995}, GATE).passed


def test_a_model_worse_than_production_by_more_than_the_margin_fails():
    verdict = judge({"accuracy": 0.9929, "ece": 0.08}, {"accuracy": 0.995}, GATE)
    assert failed(verdict) == ["max_accuracy_drop"]
    assert "0.9929 is below 0.993 (production has 0.995" in verdict.text


def test_a_model_better_than_production_passes():
    assert judge(GOOD, {"accuracy": 0.991}, GATE).passed


def test_production_on_other_test_data_is_not_compared_and_the_text_says_so():
    verdict = judge(GOOD, None, GATE, incomparable=True)
    assert verdict.passed
    assert verdict.incomparable
    assert [check.name for check in verdict.checks] == ["min_accuracy", "max_ece"]
    assert verdict.text.endswith("; production was measured on other test data and is not compared")
    assert "production" not in judge({**GOOD, "accuracy": 0.5}, None, GATE, incomparable=True).text
    assert not judge(GOOD, {"accuracy": 0.995}, GATE).incomparable


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 99.5, -0.1, "0.99", True])
@pytest.mark.parametrize("key", ["accuracy", "ece"])
def test_a_figure_that_is_missing_or_no_fraction_is_an_error_that_names_it(key, value):
    with pytest.raises(GateError, match=f"metrics/evaluate.json: .*{key!r}"):
        judge({**GOOD, key: value}, None, GATE)


def test_a_version_in_production_without_accuracy_is_an_error_that_says_so():
    with pytest.raises(GateError, match="in production: lacks 'accuracy'"):
        judge(GOOD, {}, GATE)
