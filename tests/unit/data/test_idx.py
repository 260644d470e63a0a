"""The IDX format: what is written is read, and what is wrong is refused with a word on what and where."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from resflow.data import idx
from resflow.errors import DataError

any_values = arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6))


def images(count: int = 3) -> idx.Bytes:
    return np.arange(count * 4 * 5, dtype=np.uint8).reshape(count, 4, 5)


def refusal(path: Path, *, labels: bool = False) -> DataError:
    with pytest.raises(DataError) as caught:
        _ = idx.read_labels(path, 10) if labels else idx.read_images(path)
    assert str(path) in str(caught.value)
    assert caught.value.mend
    return caught.value


@given(any_values)
def test_what_is_written_is_read_again(values: idx.Bytes) -> None:
    with TemporaryDirectory() as folder:
        idx.write(Path(folder) / "file", values)
        found = idx.read(Path(folder) / "file")
    assert found.shape == values.shape
    assert np.array_equal(found, values)


@given(any_values, st.data())
def test_any_truncation_is_refused(values: idx.Bytes, data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        idx.write(path, values)
        content = path.read_bytes()
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        with pytest.raises(DataError, match="truncated"):
            idx.read(path)


@given(any_values, st.binary(min_size=1, max_size=9))
def test_trailing_bytes_are_refused(values: idx.Bytes, more: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        idx.write(path, values)
        path.write_bytes(path.read_bytes() + more)
        with pytest.raises(DataError, match="followed by other bytes"):
            idx.read(path)


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_read_or_refused_but_never_crash(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        try:
            found = idx.read(path)
        except DataError:
            return
        assert found.tobytes() == content[4 + 4 * found.ndim :]


def test_grey_images_get_a_channel_and_colour_keeps_its_own(tmp_path: Path) -> None:
    idx.write(tmp_path / "grey", images())
    idx.write(tmp_path / "colour", np.zeros((2, 4, 5, 3), np.uint8))
    assert idx.read_images(tmp_path / "grey").shape == (3, 4, 5, 1)
    assert idx.read_images(tmp_path / "colour").shape == (2, 4, 5, 3)


def test_a_missing_file_says_to_run_the_pipeline(tmp_path: Path) -> None:
    assert "dvc repro" in refusal(tmp_path / "nothing").mend


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path).problem


@pytest.mark.parametrize("magic", [b"\x1f\x8b\x08\x00", b"<htm", b"\x00\x00\x0d\x03", b"\x00\x00\x08\x00"])
def test_a_wrong_magic_is_named_beside_the_right_ones(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(magic + bytes(100))
    problem = refusal(path).problem
    assert f"0x{magic.hex()}" in problem
    assert "0x00000803" in problem


def test_a_truncated_file_says_what_its_header_promises(tmp_path: Path) -> None:
    path = tmp_path / "file"
    idx.write(path, images())
    path.write_bytes(path.read_bytes()[:-7])
    assert refusal(path).problem == "is truncated: it holds 53 bytes of values, its header promises 3 x 4 x 5 = 60"


def test_swapped_files_are_called_swapped_both_ways(tmp_path: Path) -> None:
    idx.write(tmp_path / "images", images())
    idx.write(tmp_path / "labels", np.zeros(3, np.uint8))
    swapped = refusal(tmp_path / "labels")
    assert "labels, where 0x00000803, images" in swapped.problem
    assert "data.files" in swapped.mend
    assert "images, where 0x00000801, labels" in refusal(tmp_path / "images", labels=True).problem


@pytest.mark.parametrize("shape", [(3, 4), (1, 2, 3, 4, 5), (0, 4, 5), (3, 0, 5)])
def test_images_of_another_kind_or_without_pixels_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    idx.write(tmp_path / "file", np.zeros(shape, np.uint8))
    assert "dimensions" in refusal(tmp_path / "file").problem


def test_labels_of_two_dimensions_are_refused(tmp_path: Path) -> None:
    idx.write(tmp_path / "file", np.zeros((3, 4), np.uint8))
    assert "2 dimensions where labels have 1" in refusal(tmp_path / "file", labels=True).problem


def test_a_label_out_of_range_is_named_with_its_place(tmp_path: Path) -> None:
    idx.write(tmp_path / "file", np.array([0, 9, 10, 11], np.uint8))
    error = refusal(tmp_path / "file", labels=True)
    assert error.problem == "label 2 is 10, but 10 classes allow 0 to 9"
    assert "prepare.classes" in error.mend


def test_images_and_labels_of_different_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 3 images, but labels holds 2 labels"):
        idx.check_pair(images(), np.zeros(2, np.uint8), tmp_path / "images", tmp_path / "labels")
