"""Stage `prepare` from raw files to arrays: the right ones, the same ones each time, all of them or none."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import resflow
from resflow import params
from resflow.data import arrays, idx, shards
from resflow.data.arrays import Split
from resflow.errors import DataError, SetupError
from resflow.stages import prepare
from resflow.stages.paths import PREPARED, RAW, SHEET

PROJECT = Path(__file__).parents[3]
PARAMS = params.load(PROJECT / "params.yaml")
FILES = PARAMS.data.files
NAMES = {name for split in arrays.SPLITS for name in (f"{split}/images.npy", f"{split}/labels.npy")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project folder with a small raw data set."""
    rng = np.random.default_rng(0)
    (tmp_path / RAW).mkdir(parents=True)
    for images, labels, count in (
        (FILES.train_images.name, FILES.train_labels.name, 400),
        (FILES.test_images.name, FILES.test_labels.name, 50),
    ):
        idx.write(tmp_path / RAW / images, rng.integers(0, 256, (count, 28, 28), np.uint8))
        idx.write(tmp_path / RAW / labels, (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


def outputs(root: Path) -> dict[str, str]:
    """Every file outside data/raw with a digest of its bytes."""
    found = [path for path in root.rglob("*") if path.is_file() and root / RAW not in path.parents]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def run_elsewhere(root: Path, shell: str) -> str:
    """The error of `prepare` run under a shell line that ends in `exec "$@"`."""
    code = (
        "import sys; from pathlib import Path; from resflow import params; from resflow.stages import prepare\n"
        "from resflow.errors import ResflowError\n"
        "try: prepare.run(Path(sys.argv[1]), params.load(Path(sys.argv[2])))\n"
        "except ResflowError as error: print(type(error).__name__, error, *sorted(Path(sys.argv[1]).rglob('*.*')))"
    )
    done = subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-c", code, str(root), str(PROJECT / "params.yaml")],
        env={**os.environ, "PYTHONPATH": str(Path(resflow.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_splits_are_the_images_of_the_raw_files(root: Path) -> None:
    prepare.run(root, PARAMS)
    whole = idx.read_images(root / RAW / FILES.train_images.name)
    train, validation, test = (arrays.load(root / PREPARED, split) for split in arrays.SPLITS)
    assert train.images.shape == (380, 28, 28, 1)
    assert np.bincount(validation.labels).tolist() == [2] * 10
    assert np.array_equal(test.images, idx.read_images(root / RAW / FILES.test_images.name))
    both = {image.tobytes() for image in train.images} | {image.tobytes() for image in validation.images}
    assert both == {image.tobytes() for image in whole}


def test_the_sheet_says_what_the_arrays_hold(root: Path) -> None:
    prepare.run(root, PARAMS)
    sheet = json.loads((root / SHEET).read_text())
    assert sheet["classes"] == list(PARAMS.prepare.classes)
    assert sheet["image_shape"] == [28, 28, 1]
    assert sheet["splits"]["test"] == {"count": 50, "class_counts": {str(digit): 5 for digit in range(10)}}
    assert str(root) not in (root / SHEET).read_text()


def test_the_same_raw_files_give_the_same_bytes(root: Path) -> None:
    prepare.run(root, PARAMS)
    once = outputs(root)
    prepare.run(root, PARAMS)
    assert outputs(root) == once
    assert set(once) == {str(PREPARED / name) for name in NAMES} | {str(SHEET)}


STREAM = PARAMS.model_copy(update={"data": PARAMS.data.model_copy(update={"loader": "stream", "file_mib": 1})})


def streamed(root: Path) -> Split:
    """All that the Parquet files hold."""
    folder = root / PREPARED / "train"
    index = shards.load(folder)
    tables = [shards.read(folder / shard.name, shard.name, 0, shard.rows, index.shape) for shard in index.shards]
    images, labels = zip(*(shards.pixels(table, index.shape) for table in tables), strict=True)
    return Split(np.concatenate(images), np.concatenate(labels))


def test_a_training_split_to_be_streamed_holds_the_same_images_in_an_order_of_its_own(root: Path) -> None:
    count = 3000
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    images[:, 0, 0] = np.arange(count) % 10
    idx.write(root / RAW / FILES.train_images.name, images)
    idx.write(root / RAW / FILES.train_labels.name, images[:, 0, 0].copy())
    prepare.run(root, STREAM)
    sheet, found = (root / SHEET).read_bytes(), streamed(root)
    assert len(shards.load(root / PREPARED / "train").shards) == 3
    prepare.run(root, PARAMS)
    wanted = arrays.load(root / PREPARED, "train")
    assert (root / SHEET).read_bytes() == sheet
    assert np.array_equal(found.images[:, 0, 0, 0], found.labels)
    assert {image.tobytes() for image in found.images} == {image.tobytes() for image in wanted.images}
    assert len(found.images) == len(wanted.images)
    assert set(found.labels[:100]) == set(range(10)) != set(found.labels[:10])


def test_files_to_be_streamed_are_the_same_bytes_again_and_replace_those_of_the_other_loader(root: Path) -> None:
    prepare.run(root, PARAMS)
    memory = outputs(root)
    prepare.run(root, STREAM)
    once = outputs(root)
    names = {"000000.parquet", shards.INDEX}
    assert {path.name for path in (root / PREPARED / "train").iterdir()} == names
    prepare.run(root, STREAM)
    assert outputs(root) == once
    prepare.run(root, PARAMS)
    assert outputs(root) == memory


def test_another_seed_gives_another_split_but_the_same_test_set(root: Path) -> None:
    prepare.run(root, PARAMS)
    once = outputs(root)
    prepare.run(root, PARAMS.model_copy(update={"seed": PARAMS.seed + 1}))
    again = outputs(root)
    assert again[str(PREPARED / "validation/images.npy")] != once[str(PREPARED / "validation/images.npy")]
    assert again[str(PREPARED / "test/images.npy")] == once[str(PREPARED / "test/images.npy")]


def test_duplicates_across_splits_are_reported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = idx.read_images(root / RAW / FILES.test_images.name)[..., 0].copy()
    train = idx.read_images(root / RAW / FILES.train_images.name)[..., 0].copy()
    train[:2] = test[7]
    idx.write(root / RAW / FILES.train_images.name, train)
    prepare.run(root, PARAMS)
    assert "test: 1 images stand in both" in capsys.readouterr().out


def test_classes_without_an_image_are_told_in_one_line_with_their_splits(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.run(root, PARAMS)
    assert "warning" not in capsys.readouterr().out
    train = (np.arange(400) % 9).astype(np.uint8)
    train[train == 3] = 4
    train[0] = 3  # one image, which validation does not get
    idx.write(root / RAW / FILES.train_labels.name, train)
    idx.write(root / RAW / FILES.test_labels.name, np.full(50, 7, np.uint8))
    prepare.run(root, PARAMS)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    test = "'0', '1', '2', '3', '4', '5', '6', '8' and 1 more in test"
    assert line == f"warning: no image at all of '9' in train; '3', '9' in validation; {test}"


def test_a_file_that_is_the_one_named_by_its_digest_is_not_to_be_fetched_again(root: Path) -> None:
    path = root / RAW / FILES.test_images.name
    idx.write(path, np.zeros((50, 28), np.uint8))
    with pytest.raises(DataError, match=r"has 2 dimensions .*\. Delete it and run `dvc repro`"):
        prepare.run(root, PARAMS)
    named = FILES.test_images.model_copy(update={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    files = FILES.model_copy(update={"test_images": named})
    same = PARAMS.model_copy(update={"data": PARAMS.data.model_copy(update={"files": files})})
    with pytest.raises(DataError, match=r"has 2 dimensions .*\. It is the one .*: mend it at its source"):
        prepare.run(root, same)


def break_missing(raw: Path) -> None:
    (raw / FILES.train_labels.name).unlink()


def break_counts(raw: Path) -> None:
    idx.write(raw / FILES.test_labels.name, np.zeros(49, np.uint8))


def break_swapped(raw: Path) -> None:
    images, labels = raw / FILES.train_images.name, raw / FILES.train_labels.name
    images.rename(raw / "kept")
    labels.rename(images)
    (raw / "kept").rename(labels)


def break_label(raw: Path) -> None:
    idx.write(raw / FILES.test_labels.name, np.full(50, 10, np.uint8))


def break_truncated(raw: Path) -> None:
    path = raw / FILES.test_images.name
    path.write_bytes(path.read_bytes()[:-1])


def break_size(raw: Path) -> None:
    idx.write(raw / FILES.test_images.name, np.zeros((50, 14, 14), np.uint8))


def break_constant(raw: Path) -> None:
    idx.write(raw / FILES.train_images.name, np.full((400, 28, 28), 7, np.uint8))


def break_single(raw: Path) -> None:
    idx.write(raw / FILES.train_images.name, np.zeros((1, 28, 28), np.uint8))
    idx.write(raw / FILES.train_labels.name, np.zeros(1, np.uint8))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (break_missing, ("train-labels", "is missing", "dvc repro")),
        (break_counts, ("t10k-images", "holds 50 images", "holds 49 labels")),
        (break_swapped, ("train-images", "labels, where", "data.files")),
        (break_label, ("t10k-labels", "label 0 is 10", "prepare.classes")),
        (break_truncated, ("t10k-images", "truncated", "50 x 28 x 28")),
        (break_size, ("t10k-images", "14 x 14 x 1", "28 x 28 x 1")),
        (break_constant, ("train-images", "every pixel of channel 0 is the same")),
        (break_single, ("train-labels", "validation split would be empty")),
    ],
)
def test_bad_raw_files_are_refused_and_what_was_prepared_stays(root: Path, spoil, words: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    prepare.run(root, PARAMS)
    once = outputs(root)
    spoil(root / RAW)
    with pytest.raises(DataError) as caught:
        prepare.run(root, PARAMS)
    for word in words:
        assert word in str(caught.value)
    assert outputs(root) == once


def test_without_raw_files_it_says_to_run_the_pipeline(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is missing\. Run `dvc repro`"):
        prepare.run(tmp_path, PARAMS)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_one_error(root: Path) -> None:
    (root / PREPARED).write_text("in the way")
    with pytest.raises(SetupError, match="Move away the file"):
        prepare.run(root, PARAMS)
    assert (root / PREPARED).read_text() == "in the way"
    assert not (root / SHEET).exists()


def test_a_write_that_hits_a_limit_leaves_nothing_half_written(root: Path) -> None:
    out = run_elsewhere(root, 'ulimit -f 100; exec "$@"')
    assert out.startswith("SetupError")
    assert "File too large" in out
    assert outputs(root) == {}


def test_a_write_that_hits_a_limit_leaves_what_was_prepared(root: Path) -> None:
    prepare.run(root, PARAMS)
    once = outputs(root)
    assert run_elsewhere(root, 'ulimit -f 100; exec "$@"').startswith("SetupError")
    assert outputs(root) == once


def in_own_mounts(line: str) -> str:
    """A shell line that runs with mounts of its own, gone when it ends."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount (root)")
    return f'exec unshare -m bash -c \'{line} && exec "$@"\' bash "$@"'


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(root: Path) -> None:
    (root / PREPARED).mkdir()
    out = run_elsewhere(root, in_own_mounts(f"mount -t tmpfs -o size=64k tmpfs {root / PREPARED}"))
    assert out.startswith("SetupError")
    assert "No space left on device. Free disk space" in out
    assert ".partial" not in out
    assert "datasheet" not in out


def test_a_read_only_folder_is_one_error(root: Path) -> None:
    (root / PREPARED).mkdir()
    bind = f"mount --bind {root / PREPARED} {root / PREPARED} && mount -o remount,ro,bind {root / PREPARED}"
    out = run_elsewhere(root, in_own_mounts(bind))
    assert out.startswith("SetupError")
    assert "Read-only file system. Make the folder writable" in out
    assert outputs(root) == {}


def test_it_loads_no_engine() -> None:
    """Nor torch: a stage that only moves bytes starts in a blink."""
    code = "import sys, resflow.stages.prepare; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(resflow.__file__).parents[1])}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "prefect", "dvc", "boto3"} & set(out.stdout.split())
