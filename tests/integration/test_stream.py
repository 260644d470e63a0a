"""Training on streamed images: in less memory than they take, to the same bits, from a disk and from a bucket."""

from __future__ import annotations

import io
import json
import logging
import shutil
import signal
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from resflow import storage
from resflow.data import arrays, shards
from resflow.data.arrays import Split
from resflow.data.idx import Bytes
from resflow.data.stream import Piece, Read
from resflow.errors import DataError
from resflow.files import write_together
from resflow.training.cluster.reader import read_with_ray, store_bytes
from resflow.training.remote import Arrays, Bucket
from tests.conftest import Project, make_project
from tests.drills.drill import wait_until_step
from tests.integration import limits

pytestmark = pytest.mark.integration

MIB = 1 << 20
LIMIT, DATA = 1536 * MIB, 1664 * MIB
"""Of it, Ray's own processes, the interpreter and torch take about 1 GiB."""
STEPS = 96
"""Of an epoch of 3840 images in batches of 40; its windows are of 33 steps and their files of 1337 images."""


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Project:
    """A project with three files of streamed images."""
    folder = tmp_path_factory.mktemp("stream")
    made = make_project(folder / "project", home)
    made.edit(train__epochs=2, train__shards=2, checkpoint__steps=7)
    made.stream_digits()
    return made


def test_two_workers_that_are_killed_within_an_epoch_and_one_that_goes_on_end_in_the_bits_of_one(
    streamed: Project,
) -> None:
    assert len(shards.load(streamed.root / "data/prepared/train").shards) == 3
    done = streamed.run("resflow", "stage", "train")
    ended = [line for line in done.out.splitlines() if "validation accuracy" in line]  # a slow one is told within, too
    assert [line.split()[1] for line in ended] == ["1/2", "2/2"]
    undisturbed = streamed.digest()

    streamed.edit(train__num_workers=2)
    command = ["resflow", "stage", "train"]
    driver = subprocess.Popen(
        command, cwd=streamed.root, env=streamed.env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert wait_until_step(streamed, driver, STEPS + 7), driver.communicate()[0]
        driver.send_signal(signal.SIGKILL)
    finally:
        driver.kill()
        driver.communicate()
    streamed.edit(train__num_workers=1)
    again = streamed.run("resflow", "stage", "train")
    step = int(again.out.split()[4])
    assert STEPS < step < 2 * STEPS, again.out
    assert streamed.digest() == undisturbed


def test_a_file_that_is_not_as_it_was_prepared_ends_training_in_one_line(streamed: Project) -> None:
    path = streamed.root / "data" / "prepared" / "train" / "000001.parquet"
    content = path.read_bytes()
    path.unlink()  # a link into DVC's cache, which is not to be spoilt
    try:
        path.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
        done = streamed.run("resflow", "stage", "train", code=1)
    finally:
        path.write_bytes(content)
    problem = "is damaged: its SHA-256 is not the one in index.json"
    assert done.err.splitlines() == [f"train: {path}: {problem}. Run `dvc repro --force prepare`"]


# --- bounded memory ---------------------------------------------------------------------------------------------------


class Pictures:
    """Images of 8 x 8 pixels in 512 channels, made as they are asked for: many bytes, and little work for a network."""

    shape = (DATA // (8 * 8 * 512), 8, 8, 512)

    def __init__(self) -> None:
        self._base = np.random.default_rng(0).integers(0, 200, (64, *self.shape[1:]), dtype=np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice, /) -> Bytes:
        rows = np.arange(*part.indices(len(self)))
        return self._base[rows % 64] + (rows // 64 % 50).astype(np.uint8)[:, None, None, None]


@pytest.mark.skipif(limits.why_not() is not None, reason=str(limits.why_not()))
def test_an_epoch_of_more_images_than_there_is_memory_is_trained(tmp_path: Path, home: Path) -> None:
    made = make_project(tmp_path / "project", home)
    made.edit(data__loader="stream", data__file_mib=4, data__shuffle_mib=16)
    made.edit(train__batch_size=256, train__epochs=1)
    prepared, images = made.root / "data" / "prepared", Pictures()
    labels = (np.arange(len(images)) % 10).astype(np.uint8)
    few = Split(images[:100], labels[:100])
    write_together(
        {
            arrays.images_path(prepared, "validation"): arrays.writer(few.images),
            arrays.labels_path(prepared, "validation"): arrays.writer(few.labels),
            **dict(shards.writers(prepared / "train", images, labels, file_mib=4)),
        }
    )
    sheet = {"classes": [str(number) for number in range(10)], "image_shape": list(images.shape[1:])}
    sheet |= {"mean": [0.5] * 512, "std": [0.2] * 512, "splits": {"train": {"count": len(images)}}}
    (made.root / "data" / "datasheet.json").write_text(json.dumps(sheet))
    assert sum(path.stat().st_size for path in (prepared / "train").iterdir()) > LIMIT

    with limits.memory_limit(LIMIT) as enter:
        within = ("sh", "-c", f'{enter} && exec "$@"', "sh")
        held = made.run(*within, "python", "-c", f"print(len(bytearray(b'x') * {DATA}))", code=None)
        assert held.code == -signal.SIGKILL, "the limit does not hold"
        done = made.run(*within, "resflow", "stage", "train")
    assert done.out.startswith("epoch 1/1 ")


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    import ray

    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=1, object_store_memory=store_bytes(MIB, 1), **options)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with three files of 64 images."""
    folder = tmp_path_factory.mktemp("prepared")
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (150, 128, 128, 1), np.uint8)
    write_together(dict(shards.writers(folder / "train", images, np.arange(150).astype(np.uint8), file_mib=1)))
    return folder


@pytest.fixture(scope="module")
def bucket(store: tuple[Path, storage.Endpoint]) -> Bucket:
    _, endpoint = store
    return Bucket(
        url="s3://resflow/stream",
        endpoint=endpoint.url,
        access_key=endpoint.access_key,
        secret_key=endpoint.secret_key,
        session_token=None,
        region="us-east-1",
    )


def described(prepared: Path) -> Arrays:
    train = prepared / "train"
    streamed = {f"train/{shard.name}": shard for shard in shards.load(train).shards}
    digests = {f"train/{shards.INDEX}": sha256((train / shards.INDEX).read_bytes()).hexdigest()}
    return Arrays(folder=prepared, digests=digests, streamed=streamed)


PIECES = [Piece("000002.parquet", 0, 22), Piece("000000.parquet", 60, 64), Piece("000001.parquet", 3, 9)]
LABELS = [*range(128, 150), *range(60, 64), *range(67, 73)]


def test_pieces_are_read_in_their_order_from_a_disk_and_from_a_bucket(
    ray: None, prepared: Path, bucket: Bucket, tmp_path: Path
) -> None:
    given = described(prepared)
    bucket.send(given)
    fetched = bucket.fetch(given, tmp_path)
    assert [path.name for path in (fetched / "train").iterdir()] == [shards.INDEX], "only the index is fetched"
    index = shards.load(fetched / "train")
    blocks = []
    for place in (prepared / "train", bucket.folder(f"arrays/{given.key}/train")):
        read = read_with_ray(place, index)
        images, labels = zip(*read(PIECES), strict=True)
        assert np.concatenate(labels).tolist() == LABELS
        blocks.append(np.concatenate(images))
    assert np.array_equal(*blocks)
    assert not given.whole(fetched), "a folder without the files is not taken for the driver's own"
    assert given.whole(prepared)


def refusal(read: Read, piece: Piece) -> str:
    """The error, in a line, of a piece that cannot be read."""
    with pytest.raises(DataError) as caught:
        list(read([piece]))
    assert len(str(caught.value).splitlines()) == 1, str(caught.value)
    return str(caught.value)


def other(content: bytes, index: shards.Index) -> bytes:
    """A whole Parquet file of the same rows and size, but of another image."""
    images, labels = shards.pixels(shards.read(io.BytesIO(content), "", 0, 64, index.shape), index.shape)
    made = io.BytesIO()
    dict(shards.writers(Path(), np.roll(images, 1, axis=1), labels, file_mib=1))[Path("000000.parquet")](made)
    assert len(made.getvalue()) == len(content)
    return made.getvalue()


def test_a_file_that_is_damaged_replaced_or_gone_is_one_line_that_names_it(
    ray: None, prepared: Path, tmp_path: Path
) -> None:
    index = shards.load(prepared / "train")
    content = bytearray((prepared / "train" / "000001.parquet").read_bytes())
    (tmp_path / "000000.parquet").write_bytes(other(bytes(content), index))
    content[len(content) // 2] ^= 1
    (tmp_path / "000001.parquet").write_bytes(content)
    read, problem = read_with_ray(tmp_path, index), "is damaged: its SHA-256 is not the one in index.json"
    for piece in PIECES[1:]:
        assert refusal(read, piece) == f"{tmp_path}/{piece.name}: {problem}. Run `dvc repro --force prepare`"
    assert refusal(read, PIECES[0]) == f"{tmp_path}/000002.parquet: is missing. Run `dvc repro --force prepare`"


def test_an_object_that_is_damaged_or_gone_is_one_line_and_what_that_says_mends_it(
    ray: None, prepared: Path, bucket: Bucket
) -> None:
    given, index = described(prepared), shards.load(prepared / "train")
    bucket.send(given)
    folder = bucket.folder(f"arrays/{given.key}/train")
    content = bytearray(folder.read("000001.parquet"))
    content[len(content) // 2] ^= 1
    folder.write("000001.parquet", content)
    folder.delete("000002.parquet")
    read, problem = read_with_ray(folder, index), "is damaged: its SHA-256 is not the one in index.json"
    mend = "Delete it in the store and run again: it is sent anew"
    assert refusal(read, PIECES[2]) == f"{folder}/000001.parquet: {problem}. {mend}"
    mend = "Run again: what is missing there is sent anew"
    assert refusal(read, PIECES[0]) == f"{folder}/000002.parquet: is missing. {mend}"
    folder.delete("000001.parquet")
    bucket.send(given)
    assert np.concatenate([labels for _, labels in read(PIECES)]).tolist() == LABELS


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_file_that_is_not_as_it_was_prepared_is_not_sent_and_not_blamed_on_the_store(
    prepared: Path, bucket: Bucket, tmp_path: Path, how: str
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    given, path = described(tmp_path), tmp_path / "train" / "000001.parquet"
    bucket.arrays(given).remove()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError) as caught:
        bucket.send(given)
    mend = "Run `dvc repro --force prepare`"
    assert str(caught.value) == f"{path}: is missing, or not what was prepared. {mend}"
    assert "train/000001.parquet" not in bucket.arrays(given).names()
