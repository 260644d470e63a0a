"""A training split in Parquet files: what is written is read back, and damaged files are refused."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from resflow.data import shards
from resflow.data.arrays import Split
from resflow.errors import DataError
from resflow.files import write_together

SHAPE = (64, 64, 3)
ROWS = (1 << 20) // (64 * 64 * 3)
"""Of a file of 1 MiB."""


def split(count: int) -> Split:
    draw = np.random.default_rng(0)
    return Split(draw.integers(0, 256, (count, *SHAPE), np.uint8), draw.integers(0, 10, count).astype(np.uint8))


@pytest.fixture
def given() -> Split:
    return split(2 * ROWS + 3)


def write(folder: Path, given: Split) -> shards.Index:
    write_together(dict(shards.writers(folder, *given, file_mib=1)))
    return shards.load(folder)


def test_what_is_written_is_read_back(tmp_path: Path, given: Split) -> None:
    index = write(tmp_path, given)
    assert (index.shape, index.count, index.file_bytes) == (SHAPE, len(given.labels), ROWS * 64 * 64 * 3)
    assert [shard.rows for shard in index.shards] == [ROWS, ROWS, 3]
    tables = [shards.read(tmp_path / s.name, s.name, 0, s.rows, SHAPE) for s in index.shards]
    images, labels = zip(*(shards.pixels(table, SHAPE) for table in tables), strict=True)
    assert np.array_equal(np.concatenate(images), given.images)
    assert np.array_equal(np.concatenate(labels), given.labels)


def test_some_rows_of_a_file_are_read(tmp_path: Path, given: Split) -> None:
    shard = write(tmp_path, given).shards[1]
    images, labels = shards.pixels(shards.read(tmp_path / shard.name, shard.name, 5, 9, SHAPE), SHAPE)
    assert np.array_equal(images, given.images[ROWS + 5 : ROWS + 9])
    assert np.array_equal(labels, given.labels[ROWS + 5 : ROWS + 9])


def test_the_index_tells_the_size_and_digest_of_each_file(tmp_path: Path, given: Split) -> None:
    for shard in write(tmp_path, given).shards:
        content = (tmp_path / shard.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.size, shard.sha256)


def test_an_image_larger_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    given = Split(np.zeros((2, 1024, 1024, 2), np.uint8), np.zeros(2, np.uint8))
    assert [shard.rows for shard in write(tmp_path, given).shards] == [1, 1]


def test_without_an_index_it_says_to_run_the_pipeline(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index\.json: is missing, which data\.loader stream reads\. Run `dvc repro`"):
        shards.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"image_shape": [1, 2], "files": []}', '{"image_shape": [1, 2, 3]}', "[]"])
def test_a_damaged_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / shards.INDEX).write_text(text)
    with pytest.raises(DataError, match="is damaged"):
        shards.load(tmp_path)


@pytest.mark.parametrize("place", [100, -100, None])
def test_a_damaged_file_is_refused(tmp_path: Path, given: Split, place: int | None) -> None:
    shard = write(tmp_path, given).shards[0]
    content = bytearray((tmp_path / shard.name).read_bytes())
    if place is None:
        del content[len(content) // 2 :]
    else:
        content[place] ^= 1
    (tmp_path / shard.name).write_bytes(content)
    with pytest.raises(DataError, match=r"is no whole Parquet file .*dvc repro --force prepare"):
        shards.read(tmp_path / shard.name, shard.name, 0, shard.rows, SHAPE)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing"):
        shards.read(tmp_path / "000000.parquet", "000000.parquet", 0, 1, SHAPE)


@pytest.mark.parametrize(
    "columns",
    [
        {"image": pa.array([b"ab"], pa.binary(2)), "label": pa.array([1], pa.uint8())},
        {"image": pa.array([[1, 2]]), "label": pa.array([1], pa.uint8())},
        {"image": pa.array([b"abc"], pa.binary(3)), "label": pa.array([1])},
        {"image": pa.array([b"abc"], pa.binary(3))},
    ],
)
def test_a_file_of_other_rows_is_refused(tmp_path: Path, columns: dict[str, pa.Array]) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "other")
    with pytest.raises(DataError, match=r"other: .*expected 1 of"):
        shards.read(tmp_path / "other", "other", 0, 1, (1, 1, 3))


def test_a_file_that_is_missing_or_shorter_is_told_before_any_is_read(tmp_path: Path, given: Split) -> None:
    index, path = write(tmp_path, given), tmp_path / "000001.parquet"
    shards.check(tmp_path, index)
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    problem = f"{path}: has {len(content) - 9} bytes, expected {len(content)}"
    with pytest.raises(DataError, match=f"^{re.escape(problem)}. Run `dvc repro --force prepare`"):
        shards.check(tmp_path, index)
    path.unlink()
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: is missing. Run `dvc repro --force prepare`"):
        shards.check(tmp_path, index)
