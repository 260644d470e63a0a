"""The embedded S3 server: one process per project, found again, on loopback, with keys that only the user can read."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from stat import S_IMODE

import pytest

import resflow
from resflow import storage
from resflow import store as server
from resflow.errors import SetupError, StoreUnavailable
from resflow.storage import Endpoint

pytestmark = pytest.mark.integration

Store = tuple[Path, Endpoint]
START = "import sys; from pathlib import Path; from resflow import store; print(store.start(Path(sys.argv[1])).url)"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A project whose store is stopped in the end, however it was started."""
    yield tmp_path
    server.stop(tmp_path)


def settings(root: Path) -> Path:
    return root / ".resflow" / "store.json"


def ports(root: Path) -> dict[str, int]:
    return {str(name): int(port) for name, port in server._load(server.Places(root))["ports"].items()}


def running_pid(root: Path) -> int:
    pid = server.status(root).pid
    assert pid is not None
    return pid


def put(endpoint: Endpoint, key: str, body: bytes) -> None:
    storage.client(endpoint).put_object(Bucket="resflow", Key=key, Body=body)


def get(endpoint: Endpoint, key: str) -> bytes:
    return bytes(storage.client(endpoint).get_object(Bucket="resflow", Key=key)["Body"].read())


def ports_of_sockets() -> set[int]:
    """The ports in the names of the Unix sockets that servers have under /tmp."""
    return {int(path.stem.rpartition("-")[2]) for path in Path("/tmp").glob("seaweedfs-*.sock")}


def listening_addresses(pid: int) -> list[tuple[str, int]]:
    """Address (hexadecimal, as the kernel writes it) and port of every TCP socket that the process listens on."""
    links = [os.readlink(fd) for fd in Path("/proc", str(pid), "fd").iterdir()]  # noqa: PTH115
    inodes = {link.removeprefix("socket:[").rstrip("]") for link in links}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.append((address, int(port, 16)))
    return found


def test_a_second_start_finds_the_running_store(store: Store) -> None:
    root, endpoint = store
    before = server.status(root)

    assert server.start(root) == endpoint
    assert server.wait_ready(root) == endpoint

    assert before.running
    assert server.status(root).pid == before.pid


def test_every_port_is_on_loopback_and_remembered(store: Store) -> None:
    root, _ = store
    remembered = ports(root)
    wanted = {("0100007F", port) for port in (*remembered.values(), remembered["admin"] + 10_000)}  # 127.0.0.1
    deadline = time.monotonic() + 60
    while len(listening_addresses(running_pid(root))) < len(wanted) and time.monotonic() < deadline:
        time.sleep(0.1)  # the admin's ports open seconds after the store is ready

    assert set(listening_addresses(running_pid(root))) == wanted


def test_telemetry_and_unused_services_are_off(store: Store) -> None:
    root, _ = store
    arguments = Path("/proc", str(running_pid(root)), "cmdline").read_text().split("\0")

    assert {"-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.autoCreateBucket=false"} <= {*arguments}


def test_the_server_is_told_nothing_but_what_it_needs(store: Store) -> None:
    root, _ = store

    variables = Path("/proc", str(running_pid(root)), "environ").read_text().rstrip("\0").split("\0")
    names = {variable.partition("=")[0] for variable in variables} - {"PWD", "OLDPWD", "SHLVL", "_"}  # the shell's own

    tokens = {f"WEED_JWT_{name}" for name in server.TOKENS}
    assert names == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HOME", "PATH", "TMPDIR", *tokens}


def test_keys_can_be_read_by_the_user_only(store: Store) -> None:
    root, endpoint = store
    folder = root / ".resflow" / "store"

    assert S_IMODE(settings(root).stat().st_mode) == 0o600
    assert S_IMODE(folder.stat().st_mode) == 0o700
    assert str(endpoint.secret_key) not in (folder / "log").read_text()
    assert str(endpoint.secret_key) not in repr(endpoint)


def test_keys_cannot_be_read_by_others_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(str(tmp_path)) and isinstance(arguments[2], int):
            modes.extend([arguments[2]] if arguments[2] & os.O_CREAT else [])
        if event == "os.rename" and str(arguments[0]).startswith(str(tmp_path)):
            modes.append(S_IMODE(Path(str(arguments[0])).stat().st_mode))

    watched = [True]
    sys.addaudithook(lambda event, arguments: note(event, arguments) if watched else None)
    mask = os.umask(0)
    try:
        server._write(tmp_path / "store.json", b"{}")
    finally:
        os.umask(mask)
        watched.clear()

    assert modes[-1] == 0o600
    assert S_IMODE((tmp_path / "store.json").stat().st_mode) == 0o600


def test_what_lies_behind_s3_answers_nobody_without_keys(store: Store) -> None:
    root, endpoint = store
    put(endpoint, "secret", b"x")

    for method in ("GET", "PUT", "DELETE"):
        url = f"http://127.0.0.1:{ports(root)['filer']}/buckets/resflow/secret"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10)

    assert get(endpoint, "secret") == b"x"


def test_a_store_that_was_stopped_killed_or_crowded_out_keeps_its_objects(root: Path) -> None:
    endpoint = server.start(root)
    storage.ensure_bucket(endpoint, "resflow")
    put(endpoint, "first", b"1" * 100_000)
    assert server.stop(root)
    assert not server.status(root).running
    assert server.status(root).bytes_used > 100_000

    with socket.create_server(("127.0.0.1", ports(root)["filer"])) as intruder:  # an inner port: may move
        assert server.start(root) == endpoint
        assert ports(root)["filer"] != intruder.getsockname()[1]
    assert get(endpoint, "first") == b"1" * 100_000
    put(endpoint, "second", b"2")

    pid = running_pid(root)
    os.kill(pid, signal.SIGKILL)
    while server.status(root).pid == pid:
        pass
    assert server.start(root) == endpoint
    assert get(endpoint, "second") == b"2"

    used = {*ports(root).values()}
    server.stop(root)
    assert not used & ports_of_sockets()


def test_two_processes_that_start_it_at_once_get_one_store_that_outlives_them(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(resflow.__file__).parents[1])}
    command = [sys.executable, "-c", START, str(root)]
    starters = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    urls = [starter.communicate(timeout=60)[0].strip() for starter in starters]

    assert [starter.returncode for starter in starters] == [0, 0]
    assert urls == [server.status(root).url] * 2
    storage.answers(server.endpoint(root))


def test_a_server_is_known_from_its_first_moment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has no command line for a moment while it becomes another program; some are met then.

    Not `weed` itself: of what it can do, all that takes a folder ends by itself at once or opens ports.
    """
    places = server.Places(root)
    places.data.mkdir(parents=True)
    monkeypatch.chdir(places.folder)
    words = [sys.executable, "-c", "import signal; signal.pause()", f"-dir={places.data}"]
    for _ in range(400):
        pid = os.posix_spawn(sys.executable, words, os.environ)
        try:
            assert server._serves(Path("/proc", str(pid)), places)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_store_whose_settings_were_deleted_starts_again_with_new_ones(root: Path) -> None:
    before = server.start(root, wait=False)
    settings(root).unlink()

    after = server.start(root)

    assert after.secret_key != before.secret_key
    storage.answers(after)


def test_a_port_that_is_taken_is_named_with_its_holder_and_a_way_out(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as intruder:
        port = intruder.getsockname()[1]
        with pytest.raises(
            SetupError, match=rf"port {port}: .*process {os.getpid()}.*store start --port \d+"
        ) as caught:
            server.start(root, port)

    other = int(caught.value.mend.rpartition(" ")[2].rstrip("`"))
    assert server.start(root, other).url == f"http://127.0.0.1:{other}"
    with pytest.raises(SetupError, match="runs already"):
        server.start(root, port)


def test_a_server_whose_port_was_taken_while_it_started_gets_another(root: Path) -> None:
    endpoint = server.start(root)
    server.stop(root)
    places, before = server.Places(root), ports(root)
    with socket.create_server(("127.0.0.1", before["volume"])):
        server._spawn(places, server._load(places))  # as if the port had been free when we looked
        assert server.wait_ready(root) == endpoint
        after = ports(root)
        assert (after["s3"], after["volume"] != before["volume"]) == (before["s3"], True)
        storage.ensure_bucket(endpoint, "resflow")


def test_a_server_that_cannot_start_says_why(root: Path) -> None:
    data = root / ".resflow" / "store" / "data"
    data.mkdir(parents=True)
    (data / "filerldb2").write_text("in the way")

    with pytest.raises(SetupError, match="Not a valid folder"):
        server.start(root)
    assert not {*ports(root).values()} & ports_of_sockets()


def test_a_comma_in_the_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="comma"):
        server.start(tmp_path / "a,b")


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(SetupError, match="weed"):
        server.start(tmp_path)


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    settings(tmp_path).parent.mkdir()
    settings(tmp_path).write_text("{")

    with pytest.raises(SetupError, match=r"store\.json"):
        server.start(tmp_path)


def test_a_store_that_never_ran_is_not_there(tmp_path: Path) -> None:
    assert not server.stop(tmp_path)
    assert not server.status(tmp_path).running
    with pytest.raises(StoreUnavailable, match="resflow store start"):
        server.endpoint(tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_environment_names_another_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    root, embedded = store
    assert server.endpoint(root) == embedded

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example.org")
    assert server.endpoint(root) == Endpoint("https://s3.example.org", region="us-east-1")

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", str(embedded.url))  # as our own subprocesses see it
    assert server.endpoint(root) == embedded


def test_other_programs_reach_the_store_with_its_environment(store: Store) -> None:
    script = "import boto3; print([bucket['Name'] for bucket in boto3.client('s3').list_buckets()['Buckets']])"
    hostile = {
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "AWS_SESSION_TOKEN": "of another",
    }
    environment = {**os.environ, **hostile, **store[1].environment()}

    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)

    assert "resflow" in done.stdout


def test_dvc_pushes_and_pulls_with_what_is_written_for_it(store: Store, tmp_path: Path) -> None:
    _, endpoint = store
    dvc = shutil.which("dvc", path=str(Path(sys.executable).parent))
    assert dvc is not None
    digest = hashlib.md5(b"data", usedforsecurity=False).hexdigest()
    cached = tmp_path / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"data")
    config = "[core]\n    no_scm = true\n    remote = store\n['remote \"store\"']\n    url = s3://resflow/dvc\n"
    (tmp_path / ".dvc" / "config").write_text(config)
    (tmp_path / "data.dvc").write_text(f"outs:\n- md5: {digest}\n  size: 4\n  hash: md5\n  path: data\n")

    assert server.configure_dvc(tmp_path, endpoint)
    subprocess.run([dvc, "push", "-q"], cwd=tmp_path, check=True, timeout=60)
    shutil.rmtree(tmp_path / ".dvc" / "cache")
    subprocess.run([dvc, "pull", "-q"], cwd=tmp_path, check=True, timeout=60)

    assert (tmp_path / "data").read_text() == "data"


def test_settings_of_dvc_are_written_once_and_the_users_own_stay(store: Store, tmp_path: Path) -> None:
    _, endpoint = store
    path = tmp_path / ".dvc" / "config.local"
    assert not server.configure_dvc(tmp_path, endpoint)
    path.parent.mkdir()
    path.write_text("[core")
    with pytest.raises(SetupError, match=r"config\.local"):
        server.configure_dvc(tmp_path, endpoint)
    path.write_text("['remote \"store\"']\n    jobs = 3\n# mine\n[core]\n    autostage = true\n")

    assert server.configure_dvc(tmp_path, endpoint)
    inode = path.stat().st_ino
    assert not server.configure_dvc(tmp_path, endpoint)

    text = path.read_text()
    assert path.stat().st_ino == inode
    assert S_IMODE(path.stat().st_mode) == 0o600
    for line in ("jobs = 3", "# mine", "autostage = true", f"endpointurl = {endpoint.url}"):
        assert line in text


def test_dvc_sends_the_keys_of_the_embedded_store_to_no_other(store: Store, tmp_path: Path) -> None:
    root, endpoint = store
    path = tmp_path / ".dvc" / "config.local"
    path.parent.mkdir()
    shutil.copytree(root / ".resflow", tmp_path / ".resflow", ignore=shutil.ignore_patterns("store"))
    server.configure_dvc(tmp_path, endpoint)

    assert server.configure_dvc(tmp_path, Endpoint("https://s3.example.org", region="eu-west-1"))

    text = path.read_text()
    assert "https://s3.example.org" in text
    assert "eu-west-1" in text
    assert "access_key" not in text
