"""The data sheet: what is known of the prepared splits, as numbers that depend on nothing but the arrays.

Mean and standard deviation come from whole-number sums and one division, so that they have the same bits everywhere.
Exact duplicates are reported, not removed: the splits stay comparable with published results.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from resflow.data.arrays import AGAIN, Rows, chunks
from resflow.data.idx import Bytes
from resflow.errors import DataError

__all__ = ["Inputs", "describe", "read", "to_json"]

EXAMPLES = 5
"""Pairs of duplicates shown for each pair of splits."""


class Described(Protocol):
    """A split, whose images need not fit in memory."""

    @property
    def images(self) -> Rows:
        """uint8 (N, H, W, C)."""

    @property
    def labels(self) -> Bytes:
        """uint8 (N,)."""


def describe(splits: Mapping[str, Described], classes: tuple[str, ...]) -> dict[str, Any]:
    """All that the sheet says; `mean` and `std` are those of pixel / 255 in the training split, for each channel."""
    mean, std = _moments(splits["train"].images)
    return {
        "classes": list(classes),
        "image_shape": list(splits["train"].images.shape[1:]),
        "mean": mean,
        "std": std,
        "splits": {name: _counts(split.labels, classes) for name, split in splits.items()},
        "duplicates": _duplicates({name: split.images for name, split in splits.items()}),
    }


def to_json(sheet: Mapping[str, Any]) -> str:
    """The sheet as text, the same for the same sheet."""
    return json.dumps(sheet, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


class Inputs(NamedTuple):
    """What a sheet says of that a network must know."""

    image_shape: tuple[int, int, int]
    """Height, width, channels."""
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read(path: Path) -> Inputs:
    """What the sheet at `path` says. Raises `DataError`."""
    try:
        described = json.loads(path.read_text())
        height, width, channels = described["image_shape"]
        classes, mean, std = (tuple(described[key]) for key in ("classes", "mean", "std"))
    except OSError as error:
        raise DataError(str(path), "is missing", AGAIN) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(str(path), f"is damaged ({error})", "Run `dvc repro --force prepare`") from error
    return Inputs((height, width, channels), classes, mean, std)


def _counts(labels: Bytes, classes: tuple[str, ...]) -> dict[str, Any]:
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    return {"count": len(labels), "class_counts": dict(zip(classes, counts, strict=True))}


def _moments(images: Rows) -> tuple[list[float], list[float]]:
    histograms = np.zeros((images.shape[3], 256), np.int64)
    for chunk in chunks(images):
        for channel, histogram in enumerate(histograms):
            histogram += np.bincount(chunk[..., channel].ravel(), minlength=256)
    means, deviations = [], []
    for histogram in histograms:
        counts: list[int] = histogram.tolist()  # Python's whole numbers: the products below do not overflow
        n = sum(counts)
        total = sum(value * count for value, count in enumerate(counts))
        squares = sum(value * value * count for value, count in enumerate(counts))
        means.append(total / (255 * n))
        deviations.append(math.sqrt(n * squares - total * total) / (255 * n))
    return means, deviations


def _duplicates(splits: Mapping[str, Rows]) -> dict[str, Any]:
    """For each pair of splits, the images of the later one that stand in the earlier one too."""
    keys = {name: [_key(image) for chunk in chunks(images) for image in chunk] for name, images in splits.items()}
    found = {}
    for one, other in combinations(keys, 2):
        first = {key: index for index, key in reversed(list(enumerate(keys[one])))}
        shared = [{one: first[key], other: index} for index, key in enumerate(keys[other]) if key in first]
        found[f"{one}/{other}"] = {"count": len(shared), "examples": shared[:EXAMPLES]}
    return found


def _key(image: Bytes) -> bytes:
    return hashlib.blake2b(image.data, digest_size=16).digest()
