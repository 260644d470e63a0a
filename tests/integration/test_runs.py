"""Runs and arrays in a bucket: one process at a time trains a run, and what is given up is removed."""

from __future__ import annotations

import os
import resource
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resflow import storage
from resflow import store as server
from resflow.errors import SetupError, StoreError, StoreUnavailable, TrainingError
from resflow.stages import runs
from resflow.stages.runs import Lease
from resflow.storage import READ_SECONDS
from resflow.study import plan as plans
from resflow.training import checkpoint
from resflow.training.checkpoint import Keeper, latest
from resflow.training.loop import State
from resflow.training.remote import Arrays, Bucket, BucketFolder, mark
from tests.unit.study.searched import plan, record

pytestmark = pytest.mark.integration

NEVER = 3600.0
HOLD = """
import sys, time
from pathlib import Path
from resflow.stages import runs
lease = runs.Lease(runs.place(Path("."), sys.argv[1]), sys.argv[2], renew=0.2)
lease.take()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def bucket(store: tuple[Path, storage.Endpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A prefix of the test's own."""
    made = joined(store[1], tmp_path, monkeypatch)
    yield made
    made.folder("").remove()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A prefix in a store of the test's own, the one that belongs to `tmp_path`."""
    try:
        endpoint = server.start(tmp_path)
        storage.ensure_bucket(endpoint, "resflow")
        yield joined(endpoint, tmp_path, monkeypatch)
    finally:
        server.stop(tmp_path)


def joined(endpoint: storage.Endpoint, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A prefix named like `folder`, with the store's settings in the environment."""
    for name, value in endpoint.environment().items():
        monkeypatch.setenv(name, value)
    made = runs.place(folder, f"s3://resflow/{folder.name}")
    assert isinstance(made, Bucket)
    return made


@pytest.fixture
def holder(bucket: Bucket) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease `url(bucket)`."""
    command = [sys.executable, "-c", HOLD, bucket.url, url(bucket)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def url(bucket: Bucket) -> str:
    return f"{bucket.url}/{'0' * 16}/lock"


def client(bucket: Bucket) -> Any:
    return storage.client(storage.Endpoint(bucket.endpoint, region=bucket.region))


# --- who --------------------------------------------------------------------------------------------------------------


def test_of_several_at_once_one_trains_the_run_and_the_others_are_told_who(bucket: Bucket) -> None:
    leases = [Lease(bucket, url(bucket), renew=0.2) for _ in range(4)]

    def take(lease: Lease) -> str | None:
        try:
            lease.take()
        except TrainingError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(leases)) as pool:
        outcomes = list(pool.map(take, leases))
    (winner,) = [lease for lease, outcome in zip(leases, outcomes, strict=True) if outcome is None]
    told = f"{url(bucket)}: another process trains this run: process {os.getpid()} on {os.uname().nodename}. Wait"
    assert all(outcome.startswith(told) for outcome in outcomes if outcome)
    winner.leave()
    assert storage.look(client(bucket), url(bucket)) is None
    again = Lease(bucket, url(bucket))
    again.take()
    again.leave()


def test_a_lease_is_free_once_its_holder_is_killed_on_this_machine(
    bucket: Bucket, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait()
    lease = Lease(bucket, url(bucket), free=NEVER)
    lease.take()
    lease.leave()


def test_a_lease_of_another_machine_is_free_once_it_is_no_longer_renewed(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    content = b'{"machine": "elsewhere", "host": "elsewhere", "pid": 1, "start": "1"}'
    assert storage.replace(client(bucket), url(bucket), content, None)
    lease = Lease(bucket, url(bucket), free=2)
    lease.take()
    lease.leave()
    assert capsys.readouterr().err == "looking whether process 1 on elsewhere, which trained this run, lives\n"


def test_who_does_not_wait_takes_a_lease_that_was_renewed_of_late_for_one_of_the_living(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    content = b'{"machine": "elsewhere", "host": "elsewhere", "pid": 1, "start": "1"}'
    assert storage.replace(client(bucket), url(bucket), content, None)
    with pytest.raises(TrainingError, match="process 1 on elsewhere"), runs.held(bucket, "0" * 16, wait=0):
        pass
    assert capsys.readouterr().err == ""


def test_a_holder_that_lives_is_waited_for_as_long_as_it_does(bucket: Bucket, holder: subprocess.Popen[str]) -> None:
    command = [sys.executable, "-c", HOLD.replace("take()", "take(wait=float('inf'))"), bucket.url, url(bucket)]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert waiting.stdout is not None
        assert waiting.stderr is not None
        assert waiting.stderr.readline().startswith(f"looking whether process {holder.pid} on")
        assert waiting.stderr.readline().startswith(f"waiting for process {holder.pid} on")
        holder.kill()
        holder.wait()
        assert waiting.stdout.readline() == "held\n"
    finally:
        waiting.kill()
        waiting.communicate()


def test_who_has_lost_the_lease_ends(bucket: Bucket, holder: subprocess.Popen[str]) -> None:
    client(bucket).put_object(Bucket="resflow", Key=url(bucket).removeprefix("s3://resflow/"), Body=b"another's")
    said = holder.communicate(timeout=60)[1]
    assert holder.returncode == -signal.SIGTERM
    assert said == f"{url(bucket)} could not be renewed: another process may train this run now\n"


def test_a_stage_that_has_lost_the_lease_may_be_tried_again(bucket: Bucket) -> None:
    stage = """
import signal, sys, time
from pathlib import Path
from resflow.errors import StoreUnavailable
from resflow.stages import runs
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
try:
    with runs.held(runs.place(Path("."), sys.argv[1]), "0" * 16):
        print("held", flush=True)
        time.sleep(600)
except StoreUnavailable as error:
    print(error, error.retryable)
"""
    command = [sys.executable, "-c", stage, bucket.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        client(bucket).put_object(Bucket="resflow", Key=url(bucket).removeprefix("s3://resflow/"), Body=b"another's")
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
        process.communicate()
    assert said.startswith(f"{url(bucket)}: could not be renewed")
    assert said.endswith("run again to go on True\n")


def test_who_leaves_does_not_wait_for_a_store_that_hangs(own: Bucket, tmp_path: Path) -> None:
    process = server.status(tmp_path).pid
    assert process
    lease = Lease(own, url(own), renew=0.2, lost=NEVER)
    lease.take()
    os.kill(process, signal.SIGSTOP)
    try:
        time.sleep(1)  # a renewal is under way now
        leaving = threading.Thread(target=lease.leave, daemon=True)
        leaving.start()
        leaving.join(READ_SECONDS)
        assert not leaving.is_alive()
    finally:
        os.kill(process, signal.SIGCONT)


def test_a_bucket_that_is_missing_is_told_before_anything_else(bucket: Bucket) -> None:
    wrong = runs.place(Path(), "s3://nowhere/runs")
    with pytest.raises(StoreError, match="cannot be used for checkpoints"), runs.held(wrong, "0" * 16):
        pass


@pytest.mark.parametrize(
    "given",
    [{"secret_key": "wrong"}, {"access_key": "nobody"}, {"access_key": None, "secret_key": None}],
    ids=["secret", "user", "none"],
)
def test_keys_that_the_store_refuses_are_to_be_checked(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, given: dict[str, str | None]
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    told = (
        f"workers at {bucket.endpoint} (.+) Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may list"
    )
    with pytest.raises(StoreError, match=told) as refused:
        replace(bucket, **given).check("0" * 16)  # type: ignore[arg-type]
    assert type(refused.value) is StoreError, "trying again would not help"


@pytest.mark.parametrize("spoil", ["path", "https", "name"])
def test_an_endpoint_at_which_the_store_is_not_is_named(bucket: Bucket, spoil: str) -> None:
    right = str(bucket.endpoint)
    wrong = {"path": f"{right}/s3", "https": right.replace("http", "https"), "name": "http://nowhere.invalid:1"}[spoil]
    with pytest.raises(StoreError, match=f"workers at {wrong} (.+) See that AWS_ENDPOINT_URL_S3 is right"):
        replace(bucket, endpoint=wrong).check("0" * 16)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"])
def test_a_store_that_does_not_answer_may_do_so_later(bucket: Bucket, answer: bytes) -> None:
    class Answers(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        away = replace(bucket, endpoint=f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(StoreUnavailable, match="cannot be used for checkpoints"):
            away.check("0" * 16)
        server.shutdown()


def keep_and_stop(folder: BucketFolder) -> None:
    """As SIGTERM has it: a stop does not wait for a store that is gone, and is told as the stop that it is."""
    with Keeper(folder, device="cpu", steps=0, seconds=0) as keeper:
        keeper.keep(State(step=3))
        sys.exit()


def test_a_checkpoint_is_written_once_a_store_that_is_started_anew_answers(
    own: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own.folder("0" * 16)
    monkeypatch.setattr(checkpoint, "PATIENCE", 60)
    with Keeper(folder, device="cpu", steps=0, seconds=0) as keeper:
        server.stop(tmp_path)
        keeper.keep(State(step=1))
        server.start(tmp_path)
        keeper.keep(State(step=2))
    assert [found.step for found in [latest(folder, "cpu")] if found] == [2]
    assert len([name for name in folder.names() if name.endswith(".pt")]) == 2

    server.stop(tmp_path)
    with pytest.raises(SystemExit):
        keep_and_stop(folder)
    monkeypatch.setattr(checkpoint, "PATIENCE", 0)
    with (
        pytest.raises(StoreUnavailable, match="cannot be used for checkpoints"),
        Keeper(folder, device="cpu", steps=0, seconds=0) as keeper,
    ):
        keeper.keep(State(step=3))


def test_a_run_whose_checkpoints_were_removed_leaves_nothing_and_one_that_was_left_all(bucket: Bucket) -> None:
    for name in ("0" * 16, "1" * 16):
        with runs.held(bucket, name):
            bucket.folder(name).write("000000004-00001.cpu.pt", b"state")
            if name == "0" * 16:
                bucket.folder(name).remove(keep="lock")
    assert bucket.folder("").folders() == ["1" * 16]
    assert bucket.folder("1" * 16).names() == ["000000004-00001.cpu.pt"]


# --- how long ---------------------------------------------------------------------------------------------------------


def arrays(folder: Path, content: bytes) -> Arrays:
    folder.mkdir()
    (folder / "train.npy").write_bytes(content)
    from resflow.files import sha256

    return Arrays(folder=folder, digests={"train.npy": str(sha256(folder / "train.npy"))})


def test_a_node_whose_disk_is_full_is_told_of_its_disk_and_keeps_no_part(bucket: Bucket, tmp_path: Path) -> None:
    """A limit to the size of files stands for the disk."""
    given = arrays(tmp_path / "prepared", bytes(5000))
    bucket.send(given)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(SetupError, match=f"{tmp_path}/cache/.+: cannot be written"):
            bucket.fetch(given, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "cache" / given.key).iterdir()] == ["lock"]
    assert given.whole(bucket.fetch(given, tmp_path / "cache"))


def test_a_lock_of_arrays_that_cannot_be_had_is_one_error(bucket: Bucket, tmp_path: Path) -> None:
    given = arrays(tmp_path / "prepared", b"1")
    bucket.send(given)
    (tmp_path / "cache" / given.key / "lock").mkdir(parents=True)
    with pytest.raises(SetupError, match="Move away the folder"):
        bucket.fetch(given, tmp_path / "cache")


def test_what_was_given_up_is_removed_from_the_bucket_and_what_a_run_needs_is_kept(
    bucket: Bucket, tmp_path: Path
) -> None:
    finished, old, kept, settled, held = (digit * 16 for digit in "01234")
    needed, unneeded = arrays(tmp_path / "needed", b"1"), arrays(tmp_path / "unneeded", b"2")
    for given in (needed, unneeded):
        bucket.send(given)
    for name in (finished, old):
        bucket.folder(name).write("000000001-00000.cpu.pt", b"state")
        bucket.folder(f"{name}/of/ray").write("snapshot.json", b"{}")
    bucket.folder("photographs").write("holiday.jpg", b"")
    time.sleep(6)
    recent = arrays(tmp_path / "recent", b"3")
    bucket.send(recent)
    assert mark(bucket.folder(kept), recent) != (marked := mark(bucket.folder(kept), needed))
    assert bucket.folder(kept).names() == [marked]
    bucket.folder(finished).write("lock", b"")
    for name in (settled, held):
        runs.settle(bucket.folder(name), "its result")
    bucket.folder(held).write("lock", b"")

    bucket.clean(finished, keep="lock", days=4 / 86400)  # the store's times are whole seconds
    assert below(bucket, "") == {finished, kept, held, "arrays", "photographs"}
    assert bucket.folder(finished).names() == ["lock"]
    runs.settle(bucket.folder(finished), "its result")
    bucket.clean(finished, keep="lock")
    assert set(bucket.folder(finished).names()) == {"lock", "done"}
    assert below(bucket, "arrays") == {needed.key, recent.key}
    assert set(bucket.folder(f"arrays/{needed.key}").names()) == {"train.npy", "used"}


def test_a_run_that_is_started_anew_while_another_cleans_up_does_no_harm(bucket: Bucket) -> None:
    class Late(BucketFolder):
        def names(self) -> list[str]:
            return [*super().names(), "run-of-before"]  # it was there a moment ago

    class Raced(Bucket):
        def folder(self, name: str) -> BucketFolder:
            return Late(self, name)

    mine, other = "5" * 16, "6" * 16
    bucket.folder(other).write("000000001-00000.cpu.pt", b"state")
    Raced(**vars(bucket)).clean(mine, keep="lock")
    assert "000000001-00000.cpu.pt" in bucket.folder(other).names()


def below(bucket: Bucket, folder: str) -> set[str]:
    return {name.partition("/")[0] for name in bucket.folder(folder).names()}


def test_a_node_keeps_the_arrays_it_was_asked_for_within_a_week(bucket: Bucket, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, second = arrays(tmp_path / "first", b"1"), arrays(tmp_path / "second", b"2")
    for given in (first, second):
        bucket.send(given)
    folder = bucket.fetch(first, cache)
    assert first.whole(folder)
    (cache / "photographs").mkdir()
    bucket.fetch(second, cache)
    assert first.whole(folder)
    os.utime(folder / "lock", times=(0, 0))
    bucket.fetch(second, cache)
    assert {path.name for path in cache.iterdir()} == {second.key, "photographs"}
    os.utime(cache / second.key / "lock", times=(0, 0))
    bucket.fetch(second, cache)
    assert second.whole(cache / second.key), "what is asked for now is not old"


def test_a_search_sweeps_up_what_workers_that_were_stopped_left_and_asks_for_nothing_else(
    bucket: Bucket, tmp_path: Path
) -> None:
    of = plan(tmp_path)
    asked: list[str] = []

    def held(name: str, **how: float) -> AbstractContextManager[None]:
        asked.append(name)
        return runs.held(bucket, name, **how)

    of = replace(of, base=replace(of.base, runs=bucket), held=held)
    left, empty = record(of, 1), record(of, 2)
    bucket.folder(left.name).write("000000004-00001.cpu.pt", b"state")
    bucket.folder(empty.name).write("lock", b"of one that was killed")
    bucket.folder("e" * 16).write("000000004-00001.cpu.pt", b"of another search")
    plans.sweep(of)
    assert asked == [left.name]
    assert sorted(bucket.folder("").folders()) == sorted([empty.name, "e" * 16])
