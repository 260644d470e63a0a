"""The prepared arrays: `SPLIT/images.npy`, uint8 (N, H, W, C), and `SPLIT/labels.npy`, uint8 (N,).

`load` maps them into memory, read-only; `writer` is how they are written, a few MiB at a time. Making them is
`stages.prepare`; a training split that is streamed instead is `shards`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

import numpy as np

from resflow.data.idx import Bytes
from resflow.errors import DataError

if TYPE_CHECKING:
    from resflow.data.split import Indices

__all__ = ["SPLITS", "Chosen", "Rows", "Split", "chunks", "images_path", "labels_path", "load", "paths", "writer"]

SPLITS = ("train", "validation", "test")
AGAIN = "Run `dvc repro`, which prepares the data first"
CHUNK = 1 << 23
"""Bytes that are copied from one file to another at a time."""


class Split(NamedTuple):
    """Images (N, H, W, C) and labels (N,) of one split."""

    images: Bytes
    labels: Bytes


class Rows(Protocol):
    """What is asked of an array that need not fit in memory: uint8, its first axis the images or labels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Bytes: ...


class Chosen:
    """Some rows of an array on disk, in an order of their own, copied out a slice at a time."""

    def __init__(self, whole: Rows, chosen: Indices) -> None:
        self._whole, self._chosen = np.asarray(whole), chosen

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return (len(self._chosen), *self._whole.shape[1:])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, part: slice, /) -> Bytes:
        return self._whole[self._chosen[part]]


def chunks(rows: Rows) -> Iterator[Bytes]:
    """All of `rows`, a few MiB at a time."""
    count = max(1, CHUNK // max(1, math.prod(rows.shape[1:])))
    for start in range(0, len(rows), count):
        yield rows[start : start + count]


def images_path(folder: Path, split: str) -> Path:
    """Where the images of `split` lie."""
    return folder / split / "images.npy"


def labels_path(folder: Path, split: str) -> Path:
    """Where the labels of `split` lie."""
    return folder / split / "labels.npy"


def paths(folder: Path, split: str) -> tuple[Path, Path]:
    """Both files of a split: images, labels."""
    return images_path(folder, split), labels_path(folder, split)


def load(folder: Path, split: str) -> Split:
    """One split of the prepared `folder`, memory-mapped and read-only. Raises `DataError`."""
    found = Split(_map(images_path(folder, split), 4), _map(labels_path(folder, split), 1))
    if len(found.images) != len(found.labels):
        problem = f"holds {len(found.images)} images, but there are {len(found.labels)} labels"
        raise DataError(str(images_path(folder, split)), problem, AGAIN)
    return found


def writer(values: Rows) -> Callable[[BinaryIO], None]:
    """A function that writes `values` to an open file in the npy format, a few MiB of them in memory."""

    def write(file: BinaryIO) -> None:
        # Not np.save: it hides the reason (a full disk) when a write fails.
        header = {"descr": "|u1", "fortran_order": False, "shape": tuple(values.shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks(values):
            file.write(np.ascontiguousarray(chunk).data)

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
