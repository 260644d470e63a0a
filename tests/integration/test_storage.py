"""Bundles on a real S3 server: whole or invisible, the same twice, verified when pulled; and what S3 can refuse."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from resflow import storage
from resflow.errors import SetupError, StoreError, StoreUnavailable
from resflow.storage import Endpoint

pytestmark = pytest.mark.integration

Store = tuple[Path, Endpoint]
BUCKET = "resflow"
EXTRA = {"name": "model", "version": "v1"}


@pytest.fixture
def endpoint(store: Store) -> Endpoint:
    return store[1]


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A place of its own for each test."""
    return f"tests/{request.node.name}"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path | bytes]:
    model = tmp_path / "model.safetensors"
    model.write_bytes(bytes(range(256)) * 4_000)
    return {"model.safetensors": model, "metrics/evaluate.json": b'{"accuracy": 0.995}', "empty": b""}


def put(endpoint: Endpoint, key: str, body: bytes) -> None:
    storage.client(endpoint).put_object(Bucket=BUCKET, Key=key, Body=body)


def delete(endpoint: Endpoint, key: str) -> None:
    storage.client(endpoint).delete_object(Bucket=BUCKET, Key=key)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- publish and pull -----------------------------------------------------------------------------------------------


def test_what_is_published_can_be_pulled(
    endpoint: Endpoint, prefix: str, files: dict[str, Path | bytes], tmp_path: Path
) -> None:
    published = storage.publish(endpoint, BUCKET, prefix, files, EXTRA)
    paths = storage.pull(endpoint, BUCKET, prefix, tmp_path / "to" / "here")

    assert published.created
    assert published.url == f"s3://{BUCKET}/{prefix}/"
    pulled = everything_in(tmp_path / "to")
    assert {str(path.relative_to(tmp_path / "to")) for path in paths} == {*pulled}
    manifest = json.loads(pulled.pop("here/manifest.json"))
    assert manifest == storage.manifest(endpoint, BUCKET, prefix)
    assert manifest["version"] == "v1"
    assert manifest["files"]["empty"]["size"] == 0
    contents = {name: body if isinstance(body, bytes) else body.read_bytes() for name, body in files.items()}
    assert pulled == {f"here/{name}": content for name, content in contents.items()}


def test_publishing_twice_uploads_nothing(endpoint: Endpoint, prefix: str, files: dict[str, Path | bytes]) -> None:
    first = storage.publish(endpoint, BUCKET, prefix, files, EXTRA)
    reordered = dict(reversed(files.items()))
    second = storage.publish(endpoint, BUCKET, prefix, reordered, dict(reversed(EXTRA.items())))

    assert first.uploaded_bytes > 1_024_000
    assert second == (first.url, False, 0)


def test_a_half_done_publish_is_invisible_and_finished_by_the_next(
    endpoint: Endpoint, prefix: str, files: dict[str, Path | bytes]
) -> None:
    whole = storage.publish(endpoint, BUCKET, prefix, files, EXTRA)
    delete(endpoint, f"{prefix}/manifest.json")
    delete(endpoint, f"{prefix}/metrics/evaluate.json")
    put(endpoint, f"{prefix}/empty", b"of another attempt")
    with pytest.raises(StoreError, match="no bundle is published"):
        storage.manifest(endpoint, BUCKET, prefix)

    again = storage.publish(endpoint, BUCKET, prefix, files, EXTRA)

    assert again.created
    assert again.uploaded_bytes == whole.uploaded_bytes - 1_024_000
    assert storage.manifest(endpoint, BUCKET, prefix)["files"].keys() == files.keys()


def test_of_publishers_at_once_one_makes_the_manifest(
    endpoint: Endpoint, prefix: str, files: dict[str, Path | bytes], tmp_path: Path
) -> None:
    together = threading.Barrier(4)

    def publish() -> storage.Published:
        together.wait()
        return storage.publish(endpoint, BUCKET, prefix, files, EXTRA)

    with ThreadPoolExecutor(4) as pool:
        done = [future.result() for future in [pool.submit(publish) for _ in range(4)]]

    assert sorted(published.created for published in done) == [False, False, False, True]
    storage.pull(endpoint, BUCKET, prefix, tmp_path / "to")


def test_a_published_bundle_is_never_replaced_by_other_content(endpoint: Endpoint, prefix: str, tmp_path: Path) -> None:
    storage.publish(endpoint, BUCKET, prefix, {"a": b"first"}, EXTRA)

    for files, extra in (({"a": b"other"}, EXTRA), ({"a": b"first"}, {"name": "other"})):
        with pytest.raises(StoreError, match="other content"):
            storage.publish(endpoint, BUCKET, prefix, files, extra)

    storage.pull(endpoint, BUCKET, prefix, tmp_path / "to")
    assert (tmp_path / "to" / "a").read_bytes() == b"first"


def test_a_pull_into_a_folder_with_other_files_leaves_those(endpoint: Endpoint, prefix: str, tmp_path: Path) -> None:
    storage.publish(endpoint, BUCKET, prefix, {"a": b"a", "b/c": b"c"}, EXTRA)
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "mine").write_bytes(b"mine")

    for _ in range(2):
        storage.pull(endpoint, BUCKET, prefix, tmp_path)

        assert {**everything_in(tmp_path), "manifest.json": b""} == {
            "a": b"a",
            "b/c": b"c",
            "manifest.json": b"",
            "mine": b"mine",
        }


def test_a_pull_overwrites_nothing_that_no_pull_has_put_there(endpoint: Endpoint, prefix: str, tmp_path: Path) -> None:
    storage.publish(endpoint, BUCKET, prefix, {"a": b"new", "b/c": b"c", "d": b"d", "params.yaml": b"new"}, EXTRA)
    folder = tmp_path / "to"
    (folder / "d").mkdir(parents=True)
    for name in ("d/mine", "params.yaml", "manifest.json"):
        (folder / name).write_bytes(b'{"files": {}}')
    before = everything_in(tmp_path)

    with pytest.raises(
        SetupError, match=r"to: files that no pull .*: d, manifest\.json, params\.yaml\. Pull into another folder"
    ):
        storage.pull(endpoint, BUCKET, prefix, folder)

    assert everything_in(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


def test_a_pulled_folder_is_brought_to_another_version_unless_it_was_edited(
    endpoint: Endpoint, prefix: str, tmp_path: Path
) -> None:
    first, second = {"a": b"first", "b": b"same"}, {"a": b"second", "b": b"same"}
    for version, files in (("v1", first), ("v2", second)):
        storage.publish(endpoint, BUCKET, f"{prefix}/{version}", files, {"version": version})
    (tmp_path / "mine").write_bytes(b"mine")

    for version, files in (("v1", first), ("v2", second), ("v1", first)):
        storage.pull(endpoint, BUCKET, f"{prefix}/{version}", tmp_path)
        found = everything_in(tmp_path)
        assert json.loads(found.pop("manifest.json"))["version"] == version
        assert found == {**files, "mine": b"mine"}

    (tmp_path / "a").write_bytes(b"edited")
    before = everything_in(tmp_path)
    with pytest.raises(SetupError, match=r": a\. Pull into another folder"):
        storage.pull(endpoint, BUCKET, f"{prefix}/v2", tmp_path)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("spoil", ["changed", "truncated", "missing"])
def test_a_damaged_object_is_named_and_nothing_is_left(
    endpoint: Endpoint, prefix: str, files: dict[str, Path | bytes], tmp_path: Path, spoil: str
) -> None:
    storage.publish(endpoint, BUCKET, prefix, files, EXTRA)
    key = f"{prefix}/metrics/evaluate.json"
    if spoil == "missing":
        delete(endpoint, key)
    else:
        put(endpoint, key, b'{"accuracy": 0.999}' if spoil == "changed" else b'{"accuracy"')
    folder = tmp_path / "beside"
    folder.mkdir()

    with pytest.raises(StoreError, match=r"metrics/evaluate\.json"):
        storage.pull(endpoint, BUCKET, prefix, folder / "to")

    assert not list(folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"[]", b'{"files": {"a": {"size": 1}}}', b'{"files": {"../a": {}}}'])
def test_a_damaged_manifest_is_refused(endpoint: Endpoint, prefix: str, tmp_path: Path, content: bytes) -> None:
    put(endpoint, f"{prefix}/manifest.json", content)

    with pytest.raises(StoreError, match=r"manifest\.json|name of a file"):
        storage.pull(endpoint, BUCKET, prefix, tmp_path / "to")

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../up", "a/../../up", "a//b", "./a", "a\\b", "manifest.json", ".."]
)
def test_names_that_would_leave_the_folder_are_refused(endpoint: Endpoint, prefix: str, name: str) -> None:
    with pytest.raises(StoreError, match="name of a file"):
        storage.publish(endpoint, BUCKET, prefix, {name: b""}, EXTRA)


def test_a_file_that_cannot_be_read_stops_publishing_before_it_begins(
    endpoint: Endpoint, prefix: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="missing"):
        storage.publish(endpoint, BUCKET, prefix, {"a": b"a", "b": tmp_path / "missing"}, EXTRA)

    with pytest.raises(StoreError, match="no such object"):
        storage.download(f"s3://{BUCKET}/{prefix}/a", tmp_path / "a", endpoint)


def test_a_pull_to_where_a_file_stands_says_so(endpoint: Endpoint, prefix: str, tmp_path: Path) -> None:
    storage.publish(endpoint, BUCKET, prefix, {"a": b"a"}, EXTRA)
    (tmp_path / "to").write_text("mine")

    with pytest.raises(SetupError, match="cannot be written"):
        storage.pull(endpoint, BUCKET, prefix, tmp_path / "to")

    assert everything_in(tmp_path) == {"to": b"mine"}


# --- download -------------------------------------------------------------------------------------------------------


def test_an_object_is_downloaded_as_the_environment_says(
    endpoint: Endpoint, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(endpoint, f"{prefix}/raw", b"raw")
    for name, value in endpoint.environment().items():
        monkeypatch.setenv(name, value)

    storage.download(f"s3://{BUCKET}/{prefix}/raw", tmp_path / "raw")

    assert (tmp_path / "raw").read_bytes() == b"raw"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"s3://{BUCKET}/none", "no such object"),
        ("s3://misspelt/none", "no such bucket"),
        ("s3://bucket", "not the address"),
        ("https://bucket/key", "not the address"),
        ("s3://not a bucket/key", "cannot be used"),
    ],
)
def test_an_object_that_is_not_there_leaves_no_file(endpoint: Endpoint, tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        storage.download(url, tmp_path / "raw", endpoint)

    assert not list(tmp_path.iterdir())


# --- what a store can refuse ----------------------------------------------------------------------------------------


def attempts(endpoint: Endpoint, folder: Path, bucket: str = BUCKET) -> list[Callable[[], Any]]:
    return [
        lambda: storage.answers(endpoint),
        lambda: storage.ensure_bucket(endpoint, bucket),
        lambda: storage.publish(endpoint, bucket, "x", {"a": b"a"}, {}),
        lambda: storage.manifest(endpoint, bucket, "x"),
        lambda: storage.pull(endpoint, bucket, "x", folder / "to"),
        lambda: storage.download(f"s3://{bucket}/x", folder / "to", endpoint),
    ]


@pytest.mark.parametrize("changed", ["id", "secret"])
def test_wrong_keys_are_named_as_such(endpoint: Endpoint, tmp_path: Path, changed: str) -> None:
    wrong = replace(endpoint, access_key="wrong") if changed == "id" else replace(endpoint, secret_key="wrong" * 4)

    for attempt in attempts(wrong, tmp_path):
        with pytest.raises(StoreError, match="keys") as caught:
            attempt()
        assert not caught.value.retryable


@pytest.mark.timeout(30)
def test_a_store_that_is_down_is_found_out_quickly(tmp_path: Path) -> None:
    down = Endpoint(f"http://127.0.0.1:{closed_port()}", "key", "secret", "us-east-1", embedded=True)
    for attempt in attempts(down, tmp_path):
        with pytest.raises(StoreUnavailable, match="does not answer") as caught:
            attempt()
        assert caught.value.retryable


def test_no_keys_at_all_are_named_as_such(endpoint: Endpoint) -> None:
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        storage.answers(Endpoint(endpoint.url, region="us-east-1"))


def test_an_unknown_profile_is_named(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "none-such")

    with pytest.raises(StoreError, match="none-such"):
        storage.answers(Endpoint(endpoint.url, region="us-east-1"))


def test_a_profile_or_proxy_of_the_user_does_not_come_between_us_and_the_embedded_store(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "none-such")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")

    storage.answers(endpoint)


def test_a_misspelt_bucket_is_refused_and_not_made(endpoint: Endpoint, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"s3://misspelt.*no such bucket.*resflow store start"):
        storage.publish(endpoint, "misspelt", "x", {"a": b"a"}, {})
    foreign = Endpoint(endpoint.url, endpoint.access_key, endpoint.secret_key, endpoint.region)
    with pytest.raises(StoreError, match="no such bucket"):
        storage.ensure_bucket(foreign, "misspelt")

    buckets = storage.client(endpoint).list_buckets()["Buckets"]
    assert "misspelt" not in [bucket["Name"] for bucket in buckets]


def test_a_bucket_is_made_on_purpose_once(endpoint: Endpoint) -> None:
    assert storage.ensure_bucket(endpoint, "on-purpose")
    assert not storage.ensure_bucket(endpoint, "on-purpose")


@pytest.mark.parametrize("url", ["nonsense", "http://", "http://127.0.0.1:port"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(StoreError):
        storage.answers(Endpoint(url, "key", "secret", "us-east-1"))


class Stranger(BaseHTTPRequestHandler):
    """A server that is no S3: it promises more than it sends, fails, or talks of something else."""

    def do_GET(self) -> None:
        failing = self.path.startswith("/failing")
        self.send_response(503 if failing else 200)
        body = b"" if failing else b"<html><body>Welcome"
        self.send_header("Content-Length", str(len(body) + (100 if self.path.startswith("/short") else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        return


@pytest.fixture
def stranger() -> Iterator[Endpoint]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Endpoint(f"http://127.0.0.1:{server.server_port}", "key", "secret", "us-east-1")
        server.shutdown()


def test_a_connection_that_breaks_off_leaves_no_file(stranger: Endpoint, tmp_path: Path) -> None:
    for bucket in ("short", "failing"):
        with pytest.raises(StoreUnavailable):
            storage.download(f"s3://{bucket}/x", tmp_path / "raw", stranger)

    assert not list(tmp_path.iterdir())


def test_a_server_that_is_no_s3_is_not_taken_for_one(stranger: Endpoint) -> None:
    with pytest.raises(StoreError, match=re.escape(str(stranger.url))):
        storage.answers(stranger)


def test_errors_keep_what_boto3_said(endpoint: Endpoint) -> None:
    with pytest.raises(StoreError) as caught:
        storage.manifest(endpoint, "misspelt", "x")

    assert "NoSuchBucket" in str(caught.value.__cause__)
