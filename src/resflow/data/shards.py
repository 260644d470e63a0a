"""A training split in Parquet files of a few MiB each, for data larger than memory: written, listed, read.

    index = shards.load(folder)               # which files there are, and what stands in them
    images, labels = shards.pixels(shards.read(folder / name, name, 0, 100, index.shape), index.shape)

`data/prepared/train/index.json` lists the files with their rows, sizes and digests, so that nobody opens them to plan
an epoch (`stream`) or to know one data set from another. A row is an image, its pixels in the order height, width,
channel, and a label. Every page has a checksum, which `read` verifies. Reading them ahead is `training.cluster.reader`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from resflow.data.arrays import AGAIN, Rows
from resflow.data.idx import Bytes
from resflow.errors import DataError
from resflow.files import json_bytes

__all__ = ["ANEW", "INDEX", "Index", "Shard", "check", "load", "pixels", "read", "writers"]

INDEX = "index.json"
MIB = 1 << 20
ANEW = "Run `dvc repro --force prepare`"


class Shard(NamedTuple):
    """One Parquet file."""

    name: str
    rows: int
    size: int
    """Bytes on disk."""
    sha256: str


@dataclass(frozen=True)
class Index:
    """The files of a split."""

    shape: tuple[int, int, int]
    """Of an image: height, width, channels."""
    shards: tuple[Shard, ...]

    @property
    def count(self) -> int:
        """Images in all files."""
        return sum(shard.rows for shard in self.shards)

    @property
    def file_bytes(self) -> int:
        """Bytes of the pixels of the largest file."""
        return max((shard.rows for shard in self.shards), default=0) * math.prod(self.shape)


def writers(
    folder: Path, images: Rows, labels: Rows, file_mib: int
) -> Iterator[tuple[Path, Callable[[BinaryIO], Any]]]:
    """The files to write, each with a function that writes it, in this order; one file at a time is in memory.

    `images` are uint8 (N, H, W, C), `labels` uint8 (N,).
    """
    rows = max(1, file_mib * MIB // math.prod(images.shape[1:]))
    written: list[Shard] = []
    for number, start in enumerate(range(0, len(labels), rows)):
        path = folder / f"{number:06}.parquet"
        part = slice(start, start + rows)
        yield path, partial(_write, name=path.name, images=images, labels=labels, part=part, written=written)
    yield folder / INDEX, lambda file: file.write(json_bytes(_described(images.shape[1:], written)))


def _write(file: BinaryIO, name: str, images: Rows, labels: Rows, part: slice, written: list[Shard]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    pixels = np.ascontiguousarray(images[part])
    count, size = len(pixels), math.prod(pixels.shape[1:])
    image = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), count, [None, pa.py_buffer(pixels)])
    table = pa.table({"image": image, "label": pa.array(labels[part], pa.uint8())})
    sink = pa.BufferOutputStream()
    parquet.write_table(
        table,
        sink,
        row_group_size=count,
        compression="zstd",
        use_dictionary=False,  # no two images are alike
        write_statistics=False,
        write_page_checksum=True,
    )
    content = sink.getvalue()
    file.write(content)
    written.append(Shard(name, count, len(content), hashlib.sha256(content).hexdigest()))


def _described(shape: tuple[int, ...], written: list[Shard]) -> dict[str, Any]:
    return {"image_shape": list(shape), "files": [shard._asdict() for shard in written]}


def load(folder: Path) -> Index:
    """What `folder` holds. Raises `DataError`."""
    path = folder / INDEX
    try:
        found = json.loads(path.read_text())
        height, width, channels = map(int, found["image_shape"])
        return Index((height, width, channels), tuple(Shard(**each) for each in found["files"]))
    except FileNotFoundError as error:
        raise DataError(str(path), "is missing, which data.loader stream reads", AGAIN) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(str(path), f"is damaged ({error})", ANEW) from error


def check(folder: Path, index: Index) -> None:
    """See that each file is there and as long as listed, without opening it. Raises `DataError`."""
    for shard in index.shards:
        path = folder / shard.name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(str(path), "is missing", ANEW) from error
        if size != shard.size:
            raise DataError(str(path), f"has {size} bytes, expected {shard.size}", ANEW)


def read(source: Any, where: str, start: int, stop: int, shape: tuple[int, int, int]) -> Any:
    """Rows `start` to `stop` of a Parquet file as an Arrow table. Raises `DataError`.

    `source` is a path or an open file; `where` names it in errors.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(source, page_checksum_verification=True) as file:
            table = file.read(columns=["image", "label"], use_threads=False).slice(start, stop - start)
    except FileNotFoundError as error:
        raise DataError(where, "is missing", AGAIN) from error
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(where, f"is no whole Parquet file ({reason})", ANEW) from error
    wanted = {"image": pa.binary(math.prod(shape)), "label": pa.uint8()}
    found = {field.name: field.type for field in table.schema}
    if found != wanted or len(table) != stop - start:
        problem = f"holds {len(table)} rows of {found}, expected {stop - start} of {wanted}"
        raise DataError(where, problem, ANEW)
    return table


def pixels(table: Any, shape: tuple[int, int, int]) -> tuple[Bytes, Bytes]:
    """The images (N, H, W, C) and labels (N,) of a table, without a copy where it is in one piece."""
    image, label = table["image"].combine_chunks(), table["label"].combine_chunks()
    values = np.frombuffer(image.buffers()[1], np.uint8)
    size = math.prod(shape)
    images = values[image.offset * size : (image.offset + len(image)) * size].reshape(len(image), *shape)
    return images, label.to_numpy(zero_copy_only=False)
