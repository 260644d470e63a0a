"""Stage `prepare`: raw IDX files in, arrays for training, validation and test and a data sheet out.

With `data.loader: stream` the training split becomes Parquet files, in an order drawn by the seed. Images go from disk
to disk a few MiB at a time. All checks come before the first byte is written, and the files appear together or not at
all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from resflow.data import arrays, idx, shards, sheet
from resflow.data.arrays import Chosen, Rows, Split
from resflow.data.idx import Bytes
from resflow.data.split import Indices, stratified
from resflow.errors import DataError
from resflow.files import explained, sha256, write_together
from resflow.params import Params, RawFile
from resflow.stages.paths import PREPARED, RAW, SHEET

__all__ = ["run"]


ORDER = 1
"""Of the draws made from the seed, those for the order of the Parquet files; the split makes its own."""


NAMED = 8
"""Classes that a warning still names."""


class Source(NamedTuple):
    """A split as it lies in the raw files."""

    images: Rows
    labels: Bytes


def run(root: Path, params: Params) -> None:
    """Prepare the data under `root`. Raises `DataError`, or `SetupError` when writing fails."""
    streamed, file_mib = params.data.loader == "stream", params.data.file_mib
    splits = _splits(root / RAW, params, shuffled=streamed)
    described = sheet.describe(splits, params.prepare.classes)
    _check(described, root / RAW / params.data.files.train_images.name)
    writes: dict[Path, Callable[[BinaryIO], object]] = {}
    for name, split in splits.items():
        if streamed and name == "train":
            writes.update(shards.writers(root / PREPARED / name, *split, file_mib))
        else:
            writes[arrays.images_path(root / PREPARED, name)] = arrays.writer(split.images)
            writes[arrays.labels_path(root / PREPARED, name)] = arrays.writer(split.labels)
    writes[root / SHEET] = partial(_write_text, text=sheet.to_json(described))
    write_together(writes)
    _remove_others(root / PREPARED, set(writes))
    for name, split in splits.items():
        print(f"{name}: {len(split.labels)} images")
    for pair, found in described["duplicates"].items():
        if found["count"]:
            print(f"{pair}: {found['count']} images stand in both; see {SHEET}")
    if empty := _empty(described["splits"]):
        print(f"warning: no image at all of {empty}")


def _splits(raw: Path, params: Params, *, shuffled: bool) -> dict[str, Source]:
    files, num_classes = params.data.files, len(params.prepare.classes)
    whole = _pair(raw, files.train_images, files.train_labels, num_classes)
    test = _pair(raw, files.test_images, files.test_labels, num_classes)
    if whole.images.shape[1:] != test.images.shape[1:]:
        sizes = [" x ".join(map(str, split.images.shape[1:])) for split in (test, whole)]
        problem = f"images are {sizes[0]}, those for training {sizes[1]}"
        raise DataError(str(raw / files.test_images.name), problem, "Check data.files of params.yaml")
    train, validation = stratified(whole.labels, params.prepare.validation_fraction, params.seed)
    if not len(validation):
        problem = "no class has two images, so the validation split would be empty"
        raise DataError(str(raw / files.train_labels.name), problem, "Give more images")
    if shuffled:
        train = train[np.argsort(np.random.PCG64([params.seed, ORDER]).random_raw(len(train)), kind="stable")]
    return {"train": _chosen(whole, train), "validation": _chosen(whole, validation), "test": Source(*test)}


def _chosen(whole: Split, rows: Indices) -> Source:
    return Source(Chosen(whole.images, rows), whole.labels[rows])


def _remove_others(folder: Path, written: set[Path]) -> None:
    """What an earlier run left, with another loader or smaller files: the folder is hashed as it is."""
    with explained(folder):
        for path in folder.rglob("*"):
            if path.is_file() and path not in written:
                path.unlink()


def _pair(raw: Path, images_file: RawFile, labels_file: RawFile, num_classes: int) -> Split:
    images_path, labels_path = raw / images_file.name, raw / labels_file.name
    with _as_named(images_path, images_file):
        images = idx.read_images(images_path)
    with _as_named(labels_path, labels_file):
        labels = idx.read_labels(labels_path, num_classes)
    split = Split(images, labels)
    idx.check_pair(*split, images_path, labels_path)
    return split


@contextmanager
def _as_named(path: Path, file: RawFile) -> Iterator[None]:
    """Nobody is sent to fetch a file again which is the very one that params.yaml names."""
    try:
        yield
    except DataError as error:
        if error.mend != idx.AGAIN or sha256(path) != file.sha256:
            raise
        mend = "It is the one that params.yaml names by its SHA-256: mend it at its source, and the SHA-256 with it"
        raise DataError(error.where, error.problem, mend) from error


def _check(described: dict[str, list[float]], path: Path) -> None:
    if 0.0 in described["std"]:
        channel = described["std"].index(0.0)
        raise DataError(str(path), f"every pixel of channel {channel} is the same", "Give images that differ")


def _empty(splits: dict[str, Any]) -> str:
    """The classes without an image in some split, by split; nothing where there are none."""
    said = []
    for name, split in splits.items():
        classes = [repr(label) for label, count in split["class_counts"].items() if not count]
        more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
        if classes:
            said.append(f"{', '.join(classes[:NAMED])}{more} in {name}")
    return "; ".join(said)


def _write_text(file: BinaryIO, text: str) -> None:
    file.write(text.encode())
