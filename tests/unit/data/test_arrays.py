"""Prepared arrays are mapped read-only, and damaged ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resflow.data import arrays
from resflow.errors import DataError
from resflow.files import write_together


def prepared(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    write_together(
        {
            arrays.images_path(folder, "test"): arrays.writer(images),
            arrays.labels_path(folder, "test"): arrays.writer(labels),
        }
    )
    return folder


def test_what_is_written_is_mapped_and_cannot_be_changed(tmp_path: Path) -> None:
    images = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5, 1)
    found = arrays.load(prepared(tmp_path, images[::-1], np.array([1, 0], np.uint8)), "test")
    assert isinstance(found.images, np.memmap)
    assert np.array_equal(found.images, images[::-1])
    assert found.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="read-only"):
        found.images[0] = 1


def test_the_files_are_what_numpy_itself_writes(tmp_path: Path) -> None:
    labels = np.arange(7, dtype=np.uint8)
    prepared(tmp_path, np.zeros((7, 1, 1, 1), np.uint8), labels)
    np.save(tmp_path / "numpy.npy", labels)
    assert arrays.labels_path(tmp_path, "test").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_missing_arrays_say_to_run_the_pipeline(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dvc repro"):
        arrays.load(tmp_path, "train")


@pytest.mark.parametrize("keep", [0, 5, -3])
def test_truncated_arrays_are_refused(tmp_path: Path, keep: int) -> None:
    prepared(tmp_path, np.zeros((7, 1, 1, 1), np.uint8), np.zeros(7, np.uint8))
    path = arrays.images_path(tmp_path, "test")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="no whole npy file"):
        arrays.load(tmp_path, "test")


def test_arrays_of_another_type_or_shape_are_refused(tmp_path: Path) -> None:
    prepared(tmp_path, np.zeros((7, 1, 1), np.uint8), np.zeros(7, np.uint8))
    with pytest.raises(DataError, match="uint8 in 3 dimensions, expected uint8 in 4"):
        arrays.load(tmp_path, "test")


def test_images_and_labels_of_different_counts_are_refused(tmp_path: Path) -> None:
    prepared(tmp_path, np.zeros((7, 1, 1, 1), np.uint8), np.zeros(6, np.uint8))
    with pytest.raises(DataError, match="7 images, but there are 6 labels"):
        arrays.load(tmp_path, "test")
