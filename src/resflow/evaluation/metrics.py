"""Figures of merit of a classifier, in NumPy and float64.

Scores are logits or probabilities, float32 or float64 of shape (N, K); labels are integers of shape (N,) in 0..K-1.
The predicted class is the first one with the greatest score. Rounding and files are `resflow.stages.evaluate`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Calibration",
    "PerClass",
    "accuracy",
    "calibration",
    "confusion",
    "expected_calibration_error",
    "log_softmax",
    "macro_f1",
    "negative_log_likelihood",
    "per_class",
    "softmax",
    "wilson",
]

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


class PerClass(NamedTuple):
    """One value a class, each of shape (K,)."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]


class Calibration(NamedTuple):
    """One value a bin of confidence, each of shape (bins,), `size` its images; an empty bin has 0 everywhere."""

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    size: NDArray[np.int64]


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Natural logarithms of the class probabilities, (N, K); exact also where exp(logits) would overflow."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Class probabilities, (N, K)."""
    return np.asarray(np.exp(log_softmax(logits)), dtype=np.float64)


def accuracy(scores: Floats, labels: Labels) -> float:
    """Fraction of the N images whose class was predicted."""
    _check(scores, labels)
    return float(np.mean(scores.argmax(axis=1) == labels))


def confusion(scores: Floats, labels: Labels) -> NDArray[np.int64]:
    """Counts of images, int64 of shape (K, K): true class by row, predicted class by column."""
    _check(scores, labels)
    classes = scores.shape[1]
    cells = labels.astype(np.int64) * classes + scores.argmax(axis=1)
    return np.bincount(cells, minlength=classes * classes).astype(np.int64).reshape(classes, classes)


def per_class(matrix: NDArray[np.int64]) -> PerClass:
    """Precision, recall, F1 and number of images of each class, from a confusion matrix.

    A ratio of 0/0 is 0: the precision of a class that was never predicted, the recall of one that never occurs.
    """
    hits = np.diag(matrix).astype(np.float64)
    predicted, actual = matrix.sum(axis=0), matrix.sum(axis=1)
    return PerClass(
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, actual),
        f1=_ratio(2 * hits, predicted + actual),
        support=actual.astype(np.int64),
    )


def macro_f1(matrix: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that occur in a confusion matrix, as truth or as answer: others have none (0/0)."""
    occurs = matrix.sum(axis=0) + matrix.sum(axis=1) > 0
    return float(per_class(matrix).f1[occurs].mean())


def negative_log_likelihood(logits: Floats, labels: Labels) -> float:
    """Mean of -ln p(true class) over the images, in nats."""
    _check(logits, labels)
    return float(-np.mean(log_softmax(logits)[np.arange(len(labels)), labels]))


def calibration(probabilities: Floats, labels: Labels, bins: int) -> Calibration:
    """Mean confidence and accuracy in bins of equal width, ((m-1)/bins, m/bins], by the probability of the prediction.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.
    """
    _check(probabilities, labels)
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    edges = np.arange(bins + 1) / bins
    # searchsorted on the edges themselves, so that a confidence equal to an edge falls below it as the paper has it
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    size = np.bincount(index, minlength=bins)
    return Calibration(
        lower=edges[:-1],
        upper=edges[1:],
        confidence=_ratio(np.bincount(index, confidence, bins), size),
        accuracy=_ratio(np.bincount(index, correct, bins), size),
        size=size.astype(np.int64),
    )


def expected_calibration_error(probabilities: Floats, labels: Labels, bins: int) -> float:
    """Mean distance of confidence and accuracy over the bins, weighted by their images: Guo et al. 2017, equation 3."""
    table = calibration(probabilities, labels, bins)
    return float(np.sum(table.size / len(labels) * np.abs(table.accuracy - table.confidence)))


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of an accuracy seen on `count` images: Wilson 1927, "Probable Inference"."""
    if not 0 <= correct <= count or not count:
        raise ValueError(f"{correct} of {count} is no share")
    z = 1.959963984540054  # 97.5 % of a normal distribution lie below it
    share, spread = correct / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / count / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    ratio = np.zeros(len(above), np.float64)
    np.divide(above, below, out=ratio, where=below > 0)
    return ratio


def _check(scores: Floats, labels: Labels) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} are not (N, K) and (N,) with N > 0")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels {labels.min()}..{labels.max()} lie outside the {scores.shape[1]} classes")
