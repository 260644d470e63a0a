"""The prepared arrays: `SPLIT_images.npy`, uint8 (N, H, W, C), and `SPLIT_labels.npy`, uint8 (N,).

`load` maps them into memory, read-only; `writer` is how they are written. Making them is `stages.prepare`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from resflow.data.idx import Bytes
from resflow.errors import DataError

__all__ = ["SPLITS", "Split", "images_path", "labels_path", "load", "writer"]

SPLITS = ("train", "validation", "test")
AGAIN = "Run `dvc repro`, which prepares the data first"


class Split(NamedTuple):
    """Images (N, H, W, C) and labels (N,) of one split."""

    images: Bytes
    labels: Bytes


def images_path(folder: Path, split: str) -> Path:
    """Where the images of `split` lie."""
    return folder / f"{split}_images.npy"


def labels_path(folder: Path, split: str) -> Path:
    """Where the labels of `split` lie."""
    return folder / f"{split}_labels.npy"


def load(folder: Path, split: str) -> Split:
    """One split of the prepared `folder`, memory-mapped and read-only. Raises `DataError`."""
    found = Split(_map(images_path(folder, split), 4), _map(labels_path(folder, split), 1))
    if len(found.images) != len(found.labels):
        problem = f"holds {len(found.images)} images, but there are {len(found.labels)} labels"
        raise DataError(str(images_path(folder, split)), problem, AGAIN)
    return found


def writer(values: Bytes) -> Callable[[BinaryIO], None]:
    """A function that writes `values` to an open file in the npy format."""

    def write(file: BinaryIO) -> None:
        # Not np.save: it hides the reason (a full disk) when a write fails.
        array = np.ascontiguousarray(values)
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)

    return write


def _map(path: Path, ndim: int) -> Bytes:
    try:
        found: Bytes = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(str(path), "is missing", AGAIN) from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(str(path), f"is no whole npy file ({error})", AGAIN) from error
    if found.dtype != np.uint8 or found.ndim != ndim:
        problem = f"holds {found.dtype} in {found.ndim} dimensions, expected uint8 in {ndim}"
        raise DataError(str(path), problem, AGAIN)
    return found
