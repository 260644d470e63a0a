"""The IDX format of MNIST and its relatives: read into arrays, checked; and written.

An IDX file is two zero bytes, a type byte, the number of dimensions, each dimension as a big-endian 32-bit number, then
the values in C order. Only unsigned bytes (type 8) are understood. Whether a file is the right one (its SHA-256) is
checked in `fetch`.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resflow.errors import DataError

__all__ = ["Bytes", "check_pair", "read", "read_images", "read_labels", "write"]

Bytes = NDArray[np.uint8]

UBYTE = 8
AGAIN = "Delete it and run `dvc repro`, which fetches it again"
SWAP = "Check which file stands under which name in data.files of params.yaml"


def read_images(path: Path) -> Bytes:
    """The images of `path` as (N, H, W, C). Raises `DataError`."""
    found = read(path)
    if found.ndim == 1:
        raise DataError(str(path), "magic is 0x00000801, labels, where 0x00000803, images, is expected", SWAP)
    if found.ndim not in (3, 4):
        raise DataError(str(path), f"has {found.ndim} dimensions where images have 3 or 4", AGAIN)
    if 0 in found.shape:
        raise DataError(str(path), f"dimensions are {_times(found.shape)}: it holds no pixels", AGAIN)
    return found if found.ndim == 4 else found[..., np.newaxis]


def read_labels(path: Path, num_classes: int) -> Bytes:
    """The labels of `path` as (N,), each below `num_classes`. Raises `DataError`."""
    found = read(path)
    if found.ndim in (3, 4):
        problem = f"magic is 0x0000080{found.ndim}, images, where 0x00000801, labels, is expected"
        raise DataError(str(path), problem, SWAP)
    if found.ndim != 1:
        raise DataError(str(path), f"has {found.ndim} dimensions where labels have 1", AGAIN)
    wrong = np.flatnonzero(found >= num_classes)
    if wrong.size:
        first = int(wrong[0])
        problem = f"label {first} is {found[first]}, but {num_classes} classes allow 0 to {num_classes - 1}"
        raise DataError(str(path), problem, "Name every class in prepare.classes of params.yaml, or mend the file")
    return found


def check_pair(images: Bytes, labels: Bytes, images_path: Path, labels_path: Path) -> None:
    """Raise `DataError` unless there is one label for each image."""
    if len(images) != len(labels):
        problem = f"holds {len(images)} images, but {labels_path.name} holds {len(labels)} labels"
        raise DataError(str(images_path), problem, SWAP)


def read(path: Path) -> Bytes:
    """The values of an IDX file, mapped read-only, in the shape that its header gives. Raises `DataError`."""
    try:
        with path.open("rb") as file:
            header, length = file.read(4 + 4 * 255), file.seek(0, os.SEEK_END)
    except FileNotFoundError as error:
        raise DataError(str(path), "is missing", "Run `dvc repro`, which fetches it first") from error
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}", "Check the file and its permissions") from error
    shape = _shape(path, header)
    start, size = 4 + 4 * len(shape), math.prod(shape)
    found = length - start
    if found != size:
        kind = "truncated: it" if found < size else "followed by other bytes: it"
        problem = f"is {kind} holds {found} bytes of values, its header promises {_times(shape)} = {size}"
        raise DataError(str(path), problem, AGAIN)
    return np.memmap(path, np.uint8, "r", start, shape) if size else np.empty(shape, np.uint8)


def write(path: Path, values: Bytes) -> None:
    """Write `values` as an IDX file: for data sets of your own, and for tests."""
    header = bytes([0, 0, UBYTE, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(header + np.ascontiguousarray(values, np.uint8).tobytes())


def _shape(path: Path, header: bytes) -> tuple[int, ...]:
    magic = header[:4]
    if len(magic) < 4:
        raise DataError(str(path), f"is truncated: magic is {len(magic)} bytes, expected 4", AGAIN)
    if magic[:3] != bytes([0, 0, UBYTE]) or not magic[3]:
        problem = f"magic is 0x{magic.hex()}, expected 0x00000803 (images) or 0x00000801 (labels)"
        raise DataError(str(path), problem, AGAIN)
    dimensions = header[4 : 4 + 4 * magic[3]]
    if len(dimensions) < 4 * magic[3]:
        problem = f"is truncated: dimensions are {len(dimensions)} bytes, expected {4 * magic[3]}"
        raise DataError(str(path), problem, AGAIN)
    return tuple(int(size) for size in np.frombuffer(dimensions, ">u4"))


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
