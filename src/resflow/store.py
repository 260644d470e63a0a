"""The embedded S3-compatible server: one SeaweedFS process per project, on loopback only.

    endpoint = store.start(root)     # idempotent; data in .resflow/store/data, keys and ports in .resflow/store.json
    store.stop(root)                 # data stays

The process is found by its data folder on its command line, so a stale record cannot point at a stranger. The port
of S3 is written in clones' DVC settings: it never moves by itself. Reading and writing objects is `resflow.storage`.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resflow import ports
from resflow.errors import SetupError, StoreError, StoreUnavailable
from resflow.files import explained
from resflow.ports import HOST
from resflow.storage import Endpoint

__all__ = ["Endpoint", "Status", "configure_dvc", "endpoint", "known", "ready", "start", "status", "stop", "wait_ready"]

REGION = "us-east-1"
READY_SECONDS = 60.0
"""0.8 s is usual; after a crash the server checks its data first."""
STOP_SECONDS = 20.0
"""2 to 4 s are usual; then the process is killed, which has lost no acknowledged object in tests."""
SERVICES = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "admin")
CROWDED = "Port allocation failed"
"""What the server says when another process took one of its ports after we had found it free."""
GRPC_OFFSET = 10_000
"""`weed admin` expects its gRPC port at this distance from its own."""
OPTIONS = (
    "-webdav=false",
    "-admin.ui=false",
    "-master.telemetry=false",
    "-s3.autoCreateBucket=false",
    "-s3.iam=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-volume.preStopSeconds=0",
)

TOKENS = ("SIGNING_KEY", "SIGNING_READ_KEY", "FILER_SIGNING_KEY", "FILER_SIGNING_READ_KEY")
"""Behind S3 the server has ports that ask for no keys, with CORS open to all: any web page could read and delete there.
With these keys, made anew at each start and known to no one else, they answer 401."""


@dataclass(frozen=True)
class Status:
    """What `resflow store status` shows."""

    running: bool
    pid: int | None
    url: str | None
    data: Path
    bytes_used: int


@dataclass(frozen=True)
class Places:
    """The files of one project's store."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root.resolve() / ".resflow" / "store"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def ready(self) -> Path:
        """Holds the PID of the server that has answered with our keys."""
        return self.folder / "ready"

    @property
    def settings(self) -> Path:
        return self.folder.with_suffix(".json")


def start(root: Path, port: int | None = None, *, wait: bool = True) -> Endpoint:
    """Start the store unless it runs; `wait=False` returns before it is ready (see `wait_ready`).

    `port` moves S3 there; without it, S3 stays where it was, or gets a free port the first time. Raises `SetupError`.
    """
    places = Places(root)
    with _locked(places):
        settings = _load(places)
        if "ports" not in settings:  # whoever deleted the settings of a running store lost its keys
            _end(places)
        if _pid(places) is None:
            _remove_sockets(settings)  # of a server that was killed
            settings = _completed(settings, port)
            _choose_ports(settings["ports"])
            _write(places.settings, json.dumps(settings, indent=2).encode() + b"\n")
            _spawn(places, settings)
        elif port is not None and port != settings["ports"]["s3"]:
            problem = f"the store runs already, on port {settings['ports']['s3']}"
            raise SetupError(f"port {port}", problem, "Stop it first: `resflow store stop`")
    if wait:
        wait_ready(root)
    return _endpoint(settings)


def ready(root: Path) -> Endpoint:
    """The store to use: that of `AWS_ENDPOINT_URL_S3`, or else the embedded one, started where it does not run."""
    return endpoint(root) if os.environ.get("AWS_ENDPOINT_URL_S3") else start(root)


def wait_ready(root: Path) -> Endpoint:
    """Wait until the store lists its buckets with our keys. Raises `SetupError` when it ends or takes too long."""
    from resflow import storage

    places = Places(root)
    settings = _load(places)
    found, deadline, seen = _endpoint(settings), time.monotonic() + READY_SECONDS, ""
    mend, moved = f"See {places.log}", False
    while True:
        pid = _pid(places)
        if pid is None:
            _remove_sockets(settings)
            if CROWDED in _last_line(places.log) and not moved:
                moved = True
                start(root, wait=False)  # refuses where it is the port of S3; others are chosen anew
                settings = _load(places)
                continue
            raise SetupError("embedded store", f"it ended while starting: {_last_line(places.log)}", mend)
        try:
            if _accepts(settings["ports"]["s3"]):
                if _is_ready(places, pid):
                    return found
                storage.answers(found)
                if _has_volumes(settings["ports"]["master"]):
                    _write(places.ready, f"{pid}\n".encode())
                    return found
        except StoreError as error:  # the port opens a moment before the keys are known
            seen = error.problem
        if time.monotonic() > deadline:
            problem = f"not ready after {READY_SECONDS:.0f} s: {seen or _last_line(places.log)}"
            raise SetupError("embedded store", problem, mend)
        time.sleep(0.05)


def stop(root: Path) -> bool:
    """End the store if it runs, and keep its data; False if it did not run."""
    places = Places(root)
    if not places.folder.exists():
        return False
    with _locked(places):
        return _end(places)


def status(root: Path) -> Status:
    """Whether the store runs, where, and how much disk it takes."""
    places = Places(root)
    pid = _pid(places)
    url = _endpoint(_load(places)).url if places.settings.exists() else None
    return Status(pid is not None, pid, url, places.data, _size(places.data))


def endpoint(root: Path) -> Endpoint:
    """The store to use: the one AWS_ENDPOINT_URL_S3 names, else the embedded one. Raises `StoreUnavailable`."""
    places = Places(root)
    url = os.environ.get("AWS_ENDPOINT_URL_S3")
    embedded = _endpoint(_load(places)) if places.settings.exists() else None
    if url and (embedded is None or url != embedded.url):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or REGION
        return Endpoint(url, region=region)
    if embedded is None:
        mend = "Run `resflow store start`; for another clone's store, set what `resflow store env` prints there"
        raise StoreUnavailable("embedded store", "it was never started here", mend)
    return embedded


def known(root: Path) -> bool:
    """Whether there is a store to use: one that AWS_ENDPOINT_URL_S3 names, or one that was started here before."""
    return bool(os.environ.get("AWS_ENDPOINT_URL_S3")) or Places(root).settings.exists()


def configure_dvc(root: Path, endpoint: Endpoint, remote: str = "store") -> bool:
    """Tell DVC's git-ignored settings where the store is, so that `dvc pull` works by hand; True if they changed."""
    from configobj import ConfigObj, ConfigObjError  # type: ignore[import-untyped]  # DVC's own reader and writer

    path = root / ".dvc" / "config.local"
    if not path.parent.is_dir():
        return False
    try:
        config = ConfigObj(str(path) if path.exists() else None, encoding="utf-8")
    except (ConfigObjError, UnicodeDecodeError) as error:
        raise SetupError(str(path), f"cannot be read: {error}", "Mend or delete it") from error
    section = config.setdefault(f'remote "{remote}"', {})
    before = dict(section)
    if not endpoint.embedded:
        _drop_embedded_keys(Places(root), section)
    keys = {"access_key_id": endpoint.access_key, "secret_access_key": endpoint.secret_key}
    wanted = {"endpointurl": endpoint.url, "region": endpoint.region, **keys}
    section.update({key: value for key, value in wanted.items() if value is not None})
    if dict(section) == before:
        return False
    content = io.BytesIO()
    config.write(content)
    _write(path, content.getvalue())
    return True


def _drop_embedded_keys(places: Places, section: dict[str, Any]) -> None:
    """Settings of DVC beat the environment: our keys must not be sent to another store. The user's own stay."""
    ours = _load(places).get("access_key")
    if ours and section.get("access_key_id") == ours:
        del section["access_key_id"]
        section.pop("secret_access_key", None)


# --- settings -------------------------------------------------------------------------------------------------------


def _completed(settings: dict[str, Any], port: int | None) -> dict[str, Any]:
    """Settings with keys where there are none yet, and S3 on `port` if one is given."""
    keys = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_urlsafe(30)}
    chosen = settings.get("ports", {}) | ({} if port is None else {"s3": port})
    return keys | settings | {"ports": chosen}


def _load(places: Places) -> dict[str, Any]:
    try:
        return dict(json.loads(places.settings.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        mend = "Mend it, or delete it to get new keys and ports; the data stays"
        raise SetupError(str(places.settings), f"cannot be read: {error}", mend) from error


def _endpoint(settings: Mapping[str, Any]) -> Endpoint:
    url = f"http://{HOST}:{settings['ports']['s3']}"
    return Endpoint(url, settings["access_key"], settings["secret_key"], REGION, embedded=True)


def _write(path: Path, content: bytes) -> None:
    """Write a file that nobody else may read, at no moment."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with explained(path):
        beside.unlink(missing_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        beside.replace(path)


@contextmanager
def _locked(places: Places) -> Iterator[None]:
    """One process at a time starts or stops the store."""
    from filelock import FileLock

    with explained(places.folder):
        places.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        places.data.mkdir(exist_ok=True, mode=0o700)
        lock = FileLock(places.folder / "lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# --- ports ----------------------------------------------------------------------------------------------------------


def _choose_ports(chosen: dict[str, int]) -> None:
    """Keep the remembered port of S3 or refuse; choose others anew where one is taken: nobody else knows them."""
    s3 = chosen.get("s3")
    # A server that was just killed loses its command line, by which we know it, a moment before its ports.
    if s3 is not None and not _within(2.0, lambda: ports.is_free(s3)):
        mend = f"End that process, or move the store: `resflow store start --port {ports.find_free(1)[0]}`"
        raise SetupError(f"port {s3}", f"the embedded store's port is taken by {ports.holder(s3)}", mend)
    wanted = [name for name in SERVICES if name not in chosen or not (name == "s3" or _is_free(name, chosen[name]))]
    found = ports.find_free(len(wanted), besides=[*chosen.values()], offset=GRPC_OFFSET)
    chosen.update(zip(wanted, found, strict=True))


def _is_free(name: str, port: int) -> bool:
    return ports.is_free(port) and (name != "admin" or ports.is_free(port + GRPC_OFFSET))


# --- the process ----------------------------------------------------------------------------------------------------


def _spawn(places: Places, settings: Mapping[str, Any]) -> None:
    """Start the server in a session of its own, so that it outlives this process and its terminal."""
    if "," in str(places.data):
        mend = "Move the project to a folder without a comma in its path"
        raise SetupError(str(places.root), "SeaweedFS takes a comma in a path for the end of it", mend)
    places.ready.unlink(missing_ok=True)
    command = [_weed(), "-logtostderr=true", "mini", f"-dir={places.data}", f"-ip={HOST}", f"-ip.bind={HOST}", *OPTIONS]
    command += [_port_option(name, port) for name, port in settings["ports"].items()]
    command.append(f"-admin.port.grpc={settings['ports']['admin'] + GRPC_OFFSET}")
    environment = {
        "AWS_ACCESS_KEY_ID": settings["access_key"],
        "AWS_SECRET_ACCESS_KEY": settings["secret_key"],
        **{f"WEED_JWT_{name}": secrets.token_hex(32) for name in TOKENS},
        "HOME": str(places.folder),  # else it would read settings of another SeaweedFS of this user
        "PATH": os.defpath,
        "TMPDIR": str(places.folder),
    }
    log = os.open(places.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:  # the shell ends at once: the server is nobody's child, so nobody has to wait for it when it ends
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=places.folder,
            start_new_session=True,
            check=True,
        )
    finally:
        os.close(log)


def _end(places: Places) -> bool:
    """End the server and wait until all it held is free: its command line is gone a moment before its ports are."""
    pid = _pid(places)
    if pid is None:
        return False
    places.ready.unlink(missing_ok=True)
    try:
        process = os.pidfd_open(pid)  # stands for this process, even if another gets its number
    except ProcessLookupError:  # it ended by itself
        return True
    ended = select.poll()
    ended.register(process, select.POLLIN)
    try:
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5.0)):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)
            if ended.poll(seconds * 1000):
                _remove_sockets(_load(places))
                return True
    finally:
        os.close(process)
    raise SetupError("embedded store", f"process {pid} does not end", "Look what holds it (`ps`, the disk) and end it")


def _port_option(name: str, port: int) -> str:
    service, _, kind = name.partition(".")
    return f"-{service}.port{'.' + kind if kind else ''}={port}"


def _weed() -> str:
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        mend = "Install resflow's dependencies (`make install`), or name another store in AWS_ENDPOINT_URL_S3"
        raise SetupError("weed", "the embedded store's program is missing", mend)
    return found


def _pid(places: Places) -> int | None:
    """The running server."""
    found = (int(process.name) for process in Path("/proc").glob("[0-9]*") if _serves(process, places))
    return next(found, None)


def _serves(process: Path, places: Places) -> bool:
    """Whether this process has our data folder on its command line.

    That is empty for a moment while the shell becomes the server, which then is known by the folder it starts in. It
    is empty for a moment at the end too, when there is no program any more: such a one counts as gone.
    """
    try:
        words = (process / "cmdline").read_bytes()
        if not words:
            (process / "exe").readlink()  # fails for one that ends
            return (process / "cwd").readlink() == places.folder
        return f"-dir={places.data}".encode() in words.split(b"\0")
    except OSError:  # it ended meanwhile, or is another user's
        return False


def _has_volumes(master: int) -> bool:
    """Whether the part that holds the data has joined: S3 may answer seconds before, and then reads and writes fail."""
    connection = http.client.HTTPConnection(HOST, master, timeout=2)
    try:
        connection.request("GET", "/dir/status")
        return bool(json.loads(connection.getresponse().read())["Topology"]["Max"])
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False
    finally:
        connection.close()


def _is_ready(places: Places, pid: int) -> bool:
    try:
        return places.ready.read_text() == f"{pid}\n"
    except OSError:
        return False


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _remove_sockets(settings: Mapping[str, Any]) -> None:
    """The server leaves Unix sockets under /tmp whose names end in its ports."""
    used = settings.get("ports", {})
    numbers = {str(port) for port in (*used.values(), used.get("admin", 0) + GRPC_OFFSET)}
    for path in Path("/tmp").glob("seaweedfs-*.sock"):
        if path.stem.rpartition("-")[2] in numbers:
            with suppress(OSError):  # another user's
                path.unlink()


def _last_line(log: Path) -> str:
    """The last thing the server said; where it gave up, that, for stacks may follow."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.exists() else []
    said = [line for line in lines if re.match(r"[EF]\d{4} ", line)] or [line for line in lines if line]
    return said[-1] if said else "its log is empty"


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512 if path.is_file() else 0
        except OSError:  # the server deletes files while we count
            continue
    return total
