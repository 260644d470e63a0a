"""Fetching from local folders and from a stand-in for S3; HTTP and npm are tested with real ones, in integration."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from resflow.data.fetch import fetch
from resflow.errors import SetupError, SourceError, StoreError, StoreUnavailable
from resflow.params import RawFile

CONTENT = {"images": b"i" * 5000, "labels": b"l" * 300}
FILES = [RawFile(name=name, sha256=hashlib.sha256(content).hexdigest()) for name, content in CONTENT.items()]


def mirror(folder: Path, *, zipped: bool = False) -> Path:
    folder.mkdir()
    for name, content in CONTENT.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


class Run:
    """One project folder, and the lines that fetching into it printed."""

    def __init__(self, root: Path) -> None:
        self.root, self.raw, self.lines = root, root / "raw", list[str]()

    def fetch(self, *sources: object, **options: object) -> list[str]:
        self.lines.clear()
        texts = [str(source) for source in sources]
        downloads = self.root / "downloads"
        fetch(FILES, texts, self.raw, downloads, root=self.root, say=self.lines.append, **options)
        return self.lines

    def complete(self) -> bool:
        return {path.name: path.read_bytes() for path in self.raw.iterdir()} == CONTENT


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_gives_raw_and_gzipped_files(run: Run, zipped: bool) -> None:
    folder = mirror(run.root / "mirror", zipped=zipped)
    lines = run.fetch(folder)
    assert run.complete()
    assert lines == [f"images: fetched from {folder}", f"labels: fetched from {folder}"]


def test_a_relative_folder_lies_under_the_project(run: Run) -> None:
    mirror(run.root / "mirror")
    run.fetch("mirror")
    assert run.complete()


def test_what_is_there_and_right_is_left_alone(run: Run) -> None:
    run.fetch(mirror(run.root / "mirror"))
    before = (run.raw / "images").stat().st_mtime_ns
    assert run.fetch("nowhere") == ["images: already there", "labels: already there"]
    assert (run.raw / "images").stat().st_mtime_ns == before


def test_what_is_there_and_wrong_is_replaced(run: Run) -> None:
    folder = mirror(run.root / "mirror")
    run.fetch(folder)
    (run.raw / "labels").write_bytes(b"damaged")
    assert run.fetch(folder) == ["images: already there", f"labels: fetched from {folder}"]
    assert run.complete()


def test_a_wrong_file_is_reported_and_the_next_source_is_tried(run: Run) -> None:
    wrong, right = mirror(run.root / "wrong"), mirror(run.root / "right")
    (wrong / "images").write_bytes(b"wrong")
    lines = run.fetch(wrong, right)
    assert run.complete()
    assert lines[0].startswith(f"images: {wrong} gives a wrong images: SHA-256 8810ad58")
    assert lines[1:] == [f"images: fetched from {right}", f"labels: fetched from {wrong}"]


def test_a_right_gzip_beside_a_wrong_raw_file_is_found(run: Run) -> None:
    folder = mirror(run.root / "mirror", zipped=True)
    (folder / "images").write_bytes(b"wrong")
    run.fetch(folder)
    assert run.complete()


@pytest.mark.parametrize(
    "content",
    [gzip.compress(CONTENT["images"])[:-9], b"\x1f\x8b rubbish", b"\x1f\x8b"],
    ids=["cut short", "rubbish", "its first bytes"],  # gzip writes the time: workers would not agree on a name
)
def test_a_damaged_gzip_is_reported_and_nothing_is_left_of_it(run: Run, content: bytes) -> None:
    folder = mirror(run.root / "mirror", zipped=True)
    (folder / "images.gz").write_bytes(content)
    with pytest.raises(SourceError, match="gives a damaged gzip file"):
        run.fetch(folder)
    assert list(run.raw.iterdir()) == []


def test_a_missing_folder_is_reported_once_for_all_files(run: Run) -> None:
    lines = run.fetch("nowhere", mirror(run.root / "mirror"))
    assert [line for line in lines if "nowhere" in line] == ["images: nowhere no such folder"]


def test_when_all_fail_one_error_names_each_and_how_to_mend(run: Run) -> None:
    (run.root / "empty").mkdir()
    with pytest.raises(SourceError) as caught:
        run.fetch("nowhere", "empty", "s3://bucket/mnist")
    assert caught.value.retryable
    assert str(caught.value) == (
        "images: no source gave it: nowhere no such folder; empty holds neither images nor images.gz; "
        "s3://bucket/mnist no S3 client is at hand. "
        "Check the network, or put the files in a folder and name it in data.sources of params.yaml"
    )


def test_what_came_before_a_failure_is_kept(run: Run) -> None:
    folder = mirror(run.root / "mirror")
    (folder / "labels").rename(folder / "elsewhere")
    with pytest.raises(SourceError, match="labels"):
        run.fetch(folder)
    (folder / "elsewhere").rename(folder / "labels")
    assert run.fetch(folder) == ["images: already there", f"labels: fetched from {folder}"]


def test_a_file_in_the_place_of_the_raw_folder_is_one_error(run: Run) -> None:
    run.raw.write_text("in the way")
    with pytest.raises(SetupError, match="Move away the file"):
        run.fetch(mirror(run.root / "mirror"))


def test_an_s3_prefix_is_read_through_the_function_given(run: Run) -> None:
    asked = []

    def download(url: str, to: Path) -> None:
        asked.append(url)
        if url.endswith("images.gz"):
            raise StoreError(url, "there is no such object", "Check the prefix")
        name = url.rpartition("/")[2]
        to.write_bytes(CONTENT[name] if name in CONTENT else gzip.compress(CONTENT[name.removesuffix(".gz")]))

    run.fetch("s3://bucket/mnist/", s3=download)
    assert run.complete()
    assert asked == [f"s3://bucket/mnist/{name}" for name in ("images.gz", "images", "labels.gz")]
    assert [path.name for path in (run.root / "downloads").iterdir()] in ([], ["fetch.lock"])


def test_a_store_that_is_down_is_asked_once(run: Run) -> None:
    asked = []

    def download(url: str, to: Path) -> None:
        asked.append(url)
        raise StoreUnavailable("http://127.0.0.1:1", "does not answer", "Run `resflow store start`")

    lines = run.fetch("s3://bucket/mnist", mirror(run.root / "mirror"), s3=download)
    assert len(asked) == 1
    assert lines[0] == "images: s3://bucket/mnist does not answer"
