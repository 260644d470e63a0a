"""`fetch` from an s3:// prefix, on a real store."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from resflow import params, storage
from resflow.errors import SourceError
from resflow.stages import fetch
from resflow.stages.paths import RAW
from resflow.storage import Endpoint
from tests.conftest import write_digits

pytestmark = pytest.mark.integration


def settings(tmp_path: Path, source: str) -> params.Params:
    tree = {**params.load(Path(__file__).parents[3] / "params.yaml").model_dump()}
    files = write_digits(tmp_path / "digits", train=20, test=10)
    named = {role: {"name": name, "sha256": digest} for role, (name, digest) in files.items()}
    tree["data"] |= {"sources": [source], "files": named}
    return params.parse(tree, "params.yaml")


def test_raw_files_come_from_a_prefix_gzipped_or_not(
    tmp_path: Path, store: tuple[Path, Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = store[1]
    for name, value in endpoint.environment().items():
        monkeypatch.setenv(name, value)
    wanted = settings(tmp_path, "s3://resflow/raw/digits")
    s3 = storage.client(endpoint)
    for number, path in enumerate(sorted((tmp_path / "digits").iterdir())):
        body, suffix = (gzip.compress(path.read_bytes()), ".gz") if number % 2 else (path.read_bytes(), "")
        s3.put_object(Bucket="resflow", Key=f"raw/digits/{path.name}{suffix}", Body=body)
    fetch.run(tmp_path, wanted)
    for path in (tmp_path / "digits").iterdir():
        assert (tmp_path / RAW / path.name).read_bytes() == path.read_bytes()


def test_a_prefix_that_holds_nothing_is_said_to(
    tmp_path: Path, store: tuple[Path, Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in store[1].environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceError, match="s3://resflow/nothing"):
        fetch.run(tmp_path, settings(tmp_path, "s3://resflow/nothing"))
    assert not list(tmp_path.glob(f"{RAW}/*"))
