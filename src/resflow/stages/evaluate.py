"""The stage `evaluate`: measure the trained model on the test split.

Writes metrics/evaluate.json and plots/evaluate/, which are hashed and so hold nothing that depends on time, and
timings/evaluate.json, which is not. How the figures are defined is `resflow.evaluation.metrics`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resflow import compute
from resflow.data import arrays
from resflow.data.arrays import Split
from resflow.errors import DataError
from resflow.evaluation import inference, metrics, mistakes
from resflow.files import csv_bytes, json_bytes, write, write_together
from resflow.nets import file
from resflow.nets.file import ModelCard
from resflow.params import Evaluate, Params
from resflow.stages.paths import METRICS, MODEL, PLOTS, PREPARED, TIMINGS

__all__ = ["run"]


def run(root: Path, params: Params) -> None:
    """Evaluate models/model.safetensors on the test split of data/prepared. Raises `DataError`."""
    net, card = file.load(root / MODEL)
    test = arrays.load(root / PREPARED, "test")
    inference.check_fit(root / MODEL, card, test)
    start = time.perf_counter()
    with compute.deterministic(params.train.threads):
        device = compute.measuring_device(params.train.device)
        logits = inference.logits(net, test.images, card, params.evaluate.batch_size, device)
    seconds = time.perf_counter() - start
    if not np.isfinite(logits).all():
        raise DataError(str(root / MODEL), "answers with numbers that are not finite", "Lower train.lr and train again")

    report = _report(logits, test, card, params.evaluate)
    outputs = {root / METRICS / "evaluate.json": json_bytes(report)}
    outputs |= {root / PLOTS / "evaluate" / name: drawn for name, drawn in _plots(logits, test, card, params.evaluate)}
    write_together(outputs)
    timing = {"seconds": seconds, "images_per_second": len(test.labels) / max(seconds, 1e-9)}
    write(root / TIMINGS / "evaluate.json", json_bytes(timing))
    print(f"test accuracy {report['accuracy']:.2%}, {report['error_count']} of {report['count']} wrong", flush=True)


def _report(logits: NDArray[np.float32], test: Split, card: ModelCard, settings: Evaluate) -> dict[str, Any]:
    matrix = metrics.confusion(logits, test.labels)
    each = metrics.per_class(matrix)
    rows = zip(*(column.tolist() for column in each), strict=True)
    probabilities = metrics.softmax(logits)
    return {
        "accuracy": metrics.accuracy(logits, test.labels),
        "error_count": int(matrix.sum() - matrix.trace()),
        "count": len(test.labels),
        "nll": metrics.negative_log_likelihood(logits, test.labels),
        "ece": metrics.expected_calibration_error(probabilities, test.labels, settings.calibration_bins),
        "macro_f1": metrics.macro_f1(matrix),
        "classes": {
            name: dict(zip(each._fields, row, strict=True)) for name, row in zip(card.classes, rows, strict=True)
        },
    }


def _plots(logits: NDArray[np.float32], test: Split, card: ModelCard, settings: Evaluate) -> list[tuple[str, bytes]]:
    probabilities, predicted = metrics.softmax(logits), logits.argmax(axis=1)
    # one row an image: DVC's template counts them itself
    pairs = ((card.classes[a], card.classes[p]) for a, p in zip(test.labels, predicted, strict=True))
    table = metrics.calibration(probabilities, test.labels, settings.calibration_bins)
    # an empty bin has no accuracy, so it has no row
    bins = (row for row in zip(*(column.tolist() for column in table), strict=True) if row[-1])
    each = metrics.per_class(metrics.confusion(logits, test.labels))
    by_class = zip(card.classes, *(column.tolist() for column in each), strict=True)
    return [
        ("confusion.csv", csv_bytes(("actual", "predicted"), pairs)),
        ("calibration.csv", csv_bytes(("lower", "upper", "confidence", "accuracy", "count"), bins)),
        ("classes.csv", csv_bytes(("class", *each._fields), by_class)),
        ("mistakes.png", mistakes.draw(test.images, probabilities, test.labels, card.classes, settings.mistakes)),
    ]
