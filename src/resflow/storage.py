"""Publish, check and fetch bundles of files on S3-compatible storage; the only module that imports boto3.

A bundle is a prefix with files and a `manifest.json` that names them with SHA-256 and size. The manifest is written
last, by one conditional PutObject, and makes the bundle visible: without it there is none. Publishing twice changes
nothing.

Whatever goes wrong becomes `StoreUnavailable` (no answer: trying again can help) or `StoreError` (it cannot).
Starting the embedded server and choosing between it and another store is `resflow.store`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

from resflow import files as disk
from resflow.errors import SetupError, StoreError, StoreUnavailable

__all__ = [
    "MANIFEST",
    "Endpoint",
    "Published",
    "Seen",
    "answers",
    "check_address",
    "client",
    "download",
    "ensure_bucket",
    "look",
    "manifest",
    "publish",
    "pull",
    "remove",
    "replace",
]

MANIFEST = "manifest.json"
CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 3, 30, 2
CHUNK = 1 << 20
"""Bytes read at once."""
KEYS = {
    "403",  # HEAD has no body, so all that is known is the status
    "AccessDenied",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
MISSING = {"404", "NoSuchKey", "NotFound"}
EXISTS = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}


@dataclass(frozen=True)
class Endpoint:
    """Where a store answers, and as whom."""

    url: str | None
    """None stands for what boto3 finds by itself."""
    access_key: str | None = None
    """None leaves credentials to boto3's own chain: environment, files, roles."""
    secret_key: str | None = None
    region: str | None = None
    embedded: bool = False
    """Resflow's own server: buckets may be made there on purpose."""

    def __repr__(self) -> str:  # the secret must not reach logs
        return f"Endpoint({self.url!r}, access_key={self.access_key!r}, embedded={self.embedded})"

    def environment(self) -> dict[str, str]:
        """Variables that make another program (such as `dvc push`) use this store."""
        values = {"AWS_ENDPOINT_URL_S3": self.url, "AWS_REGION": self.region, "AWS_DEFAULT_REGION": self.region}
        values |= {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        if self.embedded:  # neither a proxy nor the session of another account belongs between us and loopback
            hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
            hosts = ",".join(filter(None, [hosts, "127.0.0.1"]))
            values |= {"AWS_SESSION_TOKEN": "", "NO_PROXY": hosts, "no_proxy": hosts}
        return {key: value for key, value in values.items() if value is not None}


class Published(NamedTuple):
    """What `publish` did."""

    url: str
    created: bool
    """False when the same bundle was there already."""
    uploaded_bytes: int


class Seen(NamedTuple):
    """One object, as `look` found it."""

    content: bytes
    etag: str
    age: float
    """Seconds since it was written, by the store's own clock."""


class Content(NamedTuple):
    """One file of a bundle, hashed."""

    body: Path | bytes
    sha256: str
    size: int


def client(endpoint: Endpoint | None = None, *, read_seconds: float = READ_SECONDS) -> Any:
    """A boto3 client that fails within seconds. Call its methods inside `translated`.

    `read_seconds` is how long it waits for the next bytes of an answer; for the embedded store it stays as it is.
    """
    if endpoint is not None and endpoint.embedded:
        return _kept_client(endpoint, os.getpid())
    return _new_client(endpoint or Endpoint(None), read_seconds)


@cache
def _kept_client(endpoint: Endpoint, _process: int) -> Any:
    """A client takes 0.15 s to make. Where keys come from the environment it is made anew: they may have changed."""
    return _new_client(endpoint, READ_SECONDS)


def _new_client(endpoint: Endpoint, read_seconds: float) -> Any:
    from boto3.session import Session
    from botocore import session as core
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=read_seconds,
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": "path"},
        proxies={} if endpoint.embedded else None,
    )
    nothing = {"profile": (None, None, None, None), "config_file": (None, None, os.devnull, None)}
    where = endpoint.url or "S3"
    if endpoint.url:
        check_address(endpoint.url)
    try:
        with translated(where):  # the user's own AWS settings have no say in the embedded store
            session = Session(botocore_session=core.Session(session_vars=nothing if endpoint.embedded else None))
            return session.client(
                "s3",
                endpoint_url=endpoint.url,
                aws_access_key_id=endpoint.access_key,
                aws_secret_access_key=endpoint.secret_key,
                region_name=endpoint.region,
                config=config,
            )
    except ValueError as error:  # "Invalid endpoint"
        raise _unusable(where, error) from error


def check_address(url: str) -> None:
    """Pass for an address that boto3 and Arrow both take; neither says what one looks like. Raises `StoreError`."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, or too large
        good = False
    if not good:
        problem = "is no address of an S3 store, which is http://HOST:PORT or https://HOST"
        raise StoreError(f"AWS_ENDPOINT_URL_S3={url}", problem, "Set it anew, or unset it to use the embedded store")


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what boto3 raises about `where` (an endpoint or an s3:// URL) into our errors."""
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        raise _refusal(where, error) from error
    except (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError) as error:
        mend = "Start the store (`resflow store start`) or mend AWS_ENDPOINT_URL_S3, and run again"
        raise StoreUnavailable(where, f"the store does not answer: {error}", mend) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound) as error:
        mend = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or unset AWS_ENDPOINT_URL_S3 to use the embedded store"
        raise StoreError(where, f"no usable keys: {error}", mend) from error
    except boto.BotoCoreError as error:
        raise _unusable(where, error) from error


def _refusal(where: str, error: Any) -> StoreError:
    code = _code(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in KEYS:
        mend = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for the embedded store run `resflow store start`"
        return StoreError(where, f"the store refuses the keys ({code})", mend)
    if code == "NoSuchBucket":
        return _no_bucket(where)
    if code in MISSING:
        return StoreError(where, "there is no such object", "Check the address, or publish it first")
    if status >= 500 or code == "SlowDown":
        return StoreUnavailable(where, f"the store failed: {error}", "Look into the store's log, and run again")
    return StoreError(where, f"the store refused: {error}", "See what the store says")


def _unusable(where: str, error: Exception) -> StoreError:
    mend = "Check the address in AWS_ENDPOINT_URL_S3 and the name of the bucket"
    return StoreError(where, f"cannot be used as S3: {error}", mend)


def _no_bucket(where: str) -> StoreError:
    mend = "Check store.bucket in params.yaml; the embedded store's is made by `resflow store start`, another's by you"
    return StoreError(where, "there is no such bucket", mend)


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def answers(endpoint: Endpoint) -> None:
    """Return when the store lists its buckets with these keys; raise otherwise."""
    with translated(endpoint.url or "S3"):
        client(endpoint).list_buckets()


def ensure_bucket(endpoint: Endpoint, bucket: str) -> bool:
    """Make the bucket if it is missing and the store is the embedded one; True if it was made."""
    from botocore.exceptions import ClientError

    s3, where = client(endpoint), f"s3://{bucket}"
    with translated(where):
        try:
            s3.head_bucket(Bucket=bucket)
            return False
        except ClientError as error:
            if _code(error) not in MISSING | {"NoSuchBucket"}:
                raise
            if not endpoint.embedded:
                raise _no_bucket(where) from error
        try:
            s3.create_bucket(Bucket=bucket)
        except ClientError as error:  # another process was faster
            if _code(error) not in {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}:
                raise
            return False
    return True


def publish(
    endpoint: Endpoint,
    bucket: str,
    prefix: str,
    files: Mapping[str, Path | bytes],
    manifest_extra: Mapping[str, object],
) -> Published:
    """Upload `files` under `prefix`, then the manifest that makes them a bundle.

    What an earlier, killed call has uploaded is not sent again. A bundle of other content is refused, not overwritten.
    """
    prefix = prefix.strip("/")
    s3, url = client(endpoint), f"s3://{bucket}/{prefix}/"
    contents = {_checked(name, url): _hashed(body) for name, body in files.items()}
    listed = {name: {"sha256": content.sha256, "size": content.size} for name, content in contents.items()}
    wanted = json.dumps({**manifest_extra, "files": listed}, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
    if _same_bundle(_manifest(s3, bucket, prefix), wanted, url):
        return Published(url, False, 0)

    sent = sum(_upload(s3, bucket, f"{prefix}/{name}", content) for name, content in contents.items())
    if not _make_visible(s3, bucket, prefix, wanted):
        if not _same_bundle(_manifest(s3, bucket, prefix), wanted, url):  # a store may refuse both of two at once
            raise StoreUnavailable(url, "the store refused the manifest, yet there is none", "Publish again")
        return Published(url, False, sent)
    # Whoever published other content at the same time has lost, but may have overwritten a file before: put it right.
    sent += sum(_upload(s3, bucket, f"{prefix}/{name}", content) for name, content in contents.items())
    return Published(url, True, sent + len(wanted))


def _checked(name: str, url: str) -> str:
    """Refuse names that would leave the folder of the bundle, here or on the machine of who pulls it."""
    path = PurePosixPath(name)
    if not name or str(path) != name or path.is_absolute() or ".." in path.parts or "\\" in name or name == MANIFEST:
        raise StoreError(url, f"{name!r} cannot be the name of a file in a bundle", "Use a plain relative name")
    return name


def _hashed(body: Path | bytes) -> Content:
    if isinstance(body, bytes):
        return Content(body, hashlib.sha256(body).hexdigest(), len(body))
    try:
        with body.open("rb") as file:
            return Content(body, hashlib.file_digest(file, "sha256").hexdigest(), file.tell())
    except OSError as error:
        raise StoreError(str(body), f"cannot be read: {error.strerror}", "Run the pipeline again") from error


def _same_bundle(existing: bytes | None, wanted: bytes, url: str) -> bool:
    if existing is None:
        return False
    if existing == wanted:
        return True
    problem = "a bundle with other content is published there already, and stays as it is"
    raise StoreError(url, problem, "Publish under a new version")


def _upload(s3: Any, bucket: str, key: str, content: Content) -> int:
    """Send one file unless the same is there; the number of bytes sent."""
    from botocore.exceptions import ClientError

    with translated(f"s3://{bucket}/{key}"), ExitStack() as stack:
        try:
            head = s3.head_object(Bucket=bucket, Key=key)
            if head["Metadata"].get("sha256") == content.sha256 and head["ContentLength"] == content.size:
                return 0
        except ClientError as error:
            if _code(error) not in MISSING:
                raise
        body = content.body if isinstance(content.body, bytes) else stack.enter_context(content.body.open("rb"))
        s3.put_object(
            Bucket=bucket,
            Key=key,
            Body=body,
            ContentLength=content.size,
            ChecksumSHA256=base64.b64encode(bytes.fromhex(content.sha256)).decode(),  # the store refuses other bytes
            Metadata={"sha256": content.sha256},
        )
    return content.size


def _make_visible(s3: Any, bucket: str, prefix: str, content: bytes) -> bool:
    """Write the manifest; False if another one is there."""
    from botocore.exceptions import ClientError

    key = f"{prefix}/{MANIFEST}"
    with translated(f"s3://{bucket}/{key}"):
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*", ContentType="application/json")
        except ClientError as error:
            if _code(error) not in EXISTS:
                raise
            return False
    return True


def manifest(endpoint: Endpoint, bucket: str, prefix: str) -> dict[str, Any]:
    """The manifest of a published bundle."""
    prefix = prefix.strip("/")
    return _parsed(_manifest(client(endpoint), bucket, prefix), f"s3://{bucket}/{prefix}/")


def _manifest(s3: Any, bucket: str, prefix: str) -> bytes | None:
    from botocore.exceptions import ClientError

    key = f"{prefix}/{MANIFEST}"
    with translated(f"s3://{bucket}/{key}"):
        try:
            return bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        except ClientError as error:
            if _code(error) not in MISSING:
                raise
    return None


def _parsed(content: bytes | None, url: str) -> dict[str, Any]:
    if content is None:
        mend = "Publish it with `resflow run`; if another clone has, set what `resflow store env` prints there"
        raise StoreError(url, "no bundle is published there", mend)
    try:
        value = json.loads(content)
        for name, entry in value["files"].items():
            _checked(name, url)
            str(entry["sha256"]), int(entry["size"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(url + MANIFEST, f"is damaged: {error!r}", "Publish under a new version") from error
    return dict(value)


def pull(endpoint: Endpoint, bucket: str, prefix: str, to: Path) -> list[Path]:
    """Copy a bundle and its manifest into the folder `to`, each file verified; all of them or none.

    Of files that are there already, only those that an earlier pull left are replaced by others. Raises `StoreError`,
    `SetupError`.
    """
    prefix = prefix.strip("/")
    s3, url = client(endpoint), f"s3://{bucket}/{prefix}/"
    content = _manifest(s3, bucket, prefix)
    entries = _parsed(content, url)["files"]
    assert content is not None
    with disk.explained(to):
        beside = to.parent / f".{to.name}.{secrets.token_hex(4)}.partial"
        beside.mkdir(parents=True)
    try:
        for name, entry in entries.items():
            _fetch(s3, bucket, f"{prefix}/{name}", beside / name, entry)
        with disk.explained(to):
            (beside / MANIFEST).write_bytes(content)
            return _moved(beside, to, [*entries, MANIFEST])
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _fetch(s3: Any, bucket: str, key: str, to: Path, entry: Mapping[str, Any]) -> None:
    with disk.explained(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        with to.open("wb") as file:
            digest, size = _copy(s3, bucket, key, file)
    if (digest, size) != (entry["sha256"], entry["size"]):
        problem = (
            f"is damaged: {size} bytes with SHA-256 {digest}, the manifest says {entry['size']} and {entry['sha256']}"
        )
        raise StoreError(
            f"s3://{bucket}/{key}", problem, "Delete it from the store with its manifest and publish again"
        )


def _copy(s3: Any, bucket: str, key: str, file: BinaryIO) -> tuple[str, int]:
    """Write an object into `file`; its SHA-256 and size."""
    digest, size = hashlib.sha256(), 0
    with translated(f"s3://{bucket}/{key}"):
        for chunk in s3.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _moved(beside: Path, to: Path, names: list[str]) -> list[Path]:
    """Put the finished folder in its place, or its files one by one where the folder has others already."""
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        beside.rename(to)
    else:
        _refuse_to_overwrite(beside, to, names)
        for name in names:  # the manifest is the last
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (beside / name).replace(to / name)
    return [to / name for name in names]


def _refuse_to_overwrite(beside: Path, to: Path, names: list[str]) -> None:
    """Pass where each file in the way has the same content, or is still as an earlier pull left it."""
    pulled = _pulled(to)
    there = [name for name in names if os.path.lexists(to / name)]
    foreign = [
        name for name in there if disk.sha256(to / name) not in {disk.sha256(beside / name), pulled.get(name, "")}
    ]
    if foreign:
        problem = f"files that no pull has put there would be overwritten: {', '.join(sorted(foreign))}"
        raise SetupError(str(to), problem, "Pull into another folder (`--to`), or move them away")


def _pulled(to: Path) -> dict[str, str]:
    """Names and SHA-256 of what an earlier pull left in the folder, its manifest too; empty where none did."""
    try:
        content = (to / MANIFEST).read_bytes()
        entries = _parsed(content, f"{to}/")["files"]
    except (OSError, StoreError):  # a manifest.json of something else is the user's
        return {}
    own = {MANIFEST: hashlib.sha256(content).hexdigest()} if entries else {}
    return own | {name: str(entry["sha256"]) for name, entry in entries.items()}


def download(url: str, to: Path, endpoint: Endpoint | None = None) -> None:
    """Copy the object s3://BUCKET/KEY to the file `to`, whole or not at all; as boto3 is configured if no endpoint."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not url.startswith("s3://") or not bucket or not key:
        raise StoreError(url, "is not the address of an object", "Write s3://BUCKET/KEY")
    s3 = client(endpoint)
    disk.write_together({to: lambda file: _copy(s3, bucket, key, file)})


def look(s3: Any, url: str) -> Seen | None:
    """A small object s3://BUCKET/KEY, by a `client`; None where there is none."""
    from email.utils import parsedate_to_datetime

    from botocore.exceptions import ClientError

    bucket, _, key = url.removeprefix("s3://").partition("/")
    with translated(url):
        try:
            answer = s3.get_object(Bucket=bucket, Key=key)
            content = bytes(answer["Body"].read())
        except ClientError as error:
            if _code(error) not in MISSING:
                raise
            return None
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return Seen(content, answer["ETag"], (now - answer["LastModified"]).total_seconds())


def replace(s3: Any, url: str, content: bytes, etag: str | None) -> str | None:
    """Write a small object where the one there still is that of `etag`, or, with None, where there is none.

    Returns its ETag; None where another was there. Of several that try at once, one succeeds.
    """
    from botocore.exceptions import ClientError

    bucket, _, key = url.removeprefix("s3://").partition("/")
    condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
    with translated(url):
        try:
            return str(s3.put_object(Bucket=bucket, Key=key, Body=content, **condition)["ETag"])
        except ClientError as error:
            if _code(error) not in EXISTS | MISSING:
                raise
            return None


def remove(s3: Any, url: str) -> None:
    """Remove one object, whether or not it is there."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    with translated(url):
        s3.delete_object(Bucket=bucket, Key=key)
