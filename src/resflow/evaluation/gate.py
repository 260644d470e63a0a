"""Is a model good enough to be released? A pure function of its metrics, production's and the limits.

Acting on the answer (refusing to register, telling the user) is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resflow.errors import GateError
from resflow.params import Gate

__all__ = ["Check", "Verdict", "judge"]

SLACK = 1e-9
"""Metrics are written with six digits; this keeps 0.995 - 0.002 from being more than 0.993."""


@dataclass(frozen=True)
class Check:
    """One limit and what was measured against it."""

    name: str
    """The limit's name in params.yaml, below `gate`."""
    value: float
    limit: float
    passed: bool
    text: str
    """One clause for the user, such as `accuracy 0.9953 reaches 0.99`."""


@dataclass(frozen=True)
class Verdict:
    """The answer of the gate, with its reasons."""

    passed: bool
    checks: tuple[Check, ...]
    incomparable: bool
    """Whether there is a version in production that was measured on other test data."""

    @property
    def text(self) -> str:
        """The failed checks, or all of them where none failed, in one line."""
        clauses = [check.text for check in self.checks if check.passed == self.passed]
        return "; ".join([*clauses, INCOMPARABLE] if self.passed and self.incomparable else clauses)


def judge(
    metrics: Mapping[str, Any], production: Mapping[str, Any] | None, gate: Gate, *, incomparable: bool = False
) -> Verdict:
    """Hold metrics/evaluate.json against the gate and against `production`, the same file of the version in production.

    That is None where there is none, or where it is `incomparable`: two accuracies on different images say nothing of
    which model is better. Raises `GateError` where a figure is missing or no fraction.
    """
    accuracy, ece = _fraction(metrics, "accuracy", OURS), _fraction(metrics, "ece", OURS)
    checks = [
        _at_least("min_accuracy", accuracy, gate.min_accuracy, ""),
        _at_most("max_ece", ece, gate.max_ece),
    ]
    if production is not None:
        theirs = _fraction(production, "accuracy", THEIRS)
        of = f" (production has {theirs:.6g}, and may be undercut by {gate.max_accuracy_drop:g})"
        checks.append(_at_least("max_accuracy_drop", accuracy, theirs - gate.max_accuracy_drop, of))
    return Verdict(all(check.passed for check in checks), tuple(checks), incomparable)


INCOMPARABLE = "production was measured on other test data and is not compared"
OURS = "metrics/evaluate.json"
THEIRS = "metrics/evaluate.json of the version in production"


def _at_least(name: str, value: float, limit: float, of: str) -> Check:
    passed = value >= limit - SLACK
    verb = "reaches" if passed else "is below"
    return Check(name, value, limit, passed, f"accuracy {value:.6g} {verb} {limit:.6g}{of}")


def _at_most(name: str, value: float, limit: float) -> Check:
    passed = value <= limit + SLACK
    verb = "stays within" if passed else "exceeds"
    return Check(name, value, limit, passed, f"calibration error {value:.6g} {verb} {limit:.6g}")


def _fraction(metrics: Mapping[str, Any], key: str, where: str) -> float:
    value = metrics.get(key)
    if value is None:
        raise GateError(where, f"lacks {key!r}", "Make it again with `dvc repro --force evaluate`")
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or math.isnan(value) or not 0 <= value <= 1:
        raise GateError(
            where, f"{key!r} is {value!r}, not a fraction of 1", "Make it again with `dvc repro --force evaluate`"
        )
    return float(value)
