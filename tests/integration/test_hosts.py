"""Training across hosts that share no file system: three network namespaces, each with its own address and disk.

The head has the project, the store and the driver; two workers have the installed packages and nothing of the project:
code and data come to them by way of Ray and the store.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.processes import end, train_workers, wait_until_started
from resflow import store
from resflow.data import shards
from tests.conftest import REPOSITORY, Project, make_project
from tests.integration import hosts
from tests.integration.hosts import Host

pytestmark = pytest.mark.integration

RAY_PORT = 6379
EPOCHS = 60
"""Enough that the lost host is back before the end; on a machine where it is not, the test says so."""
KEYS = {"AWS_ACCESS_KEY_ID": "resflow", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16), "AWS_REGION": "us-east-1"}
TOKEN = secrets.token_hex(16)
SOON = {f"RAY_health_check_{name}_ms": "1000" for name in ("initial_delay", "period", "timeout")}
SOON["RAY_health_check_failure_threshold"] = "3"
"""A host is given up after seconds, where Ray's defaults take a minute."""


@dataclass
class Cluster:
    """A head and two workers."""

    head: Host
    workers: list[Host]
    folder: Path
    project: Project
    ports: dict[str, int] = field(default_factory=dict)
    """Of the store, whose sockets in /tmp, which all hosts see, bear them."""
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://{self.head.address}:{self.ports['s3']}"

    @property
    def env(self) -> dict[str, str]:
        mine = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
        mine["OMP_WAIT_POLICY"] = "PASSIVE"  # else threads spin on cores that others need
        inherited = self.project.env(**mine, **SOON)
        del inherited["PYTHONPATH"]
        return inherited

    def join(self, host: Host, *arguments: str) -> None:
        """Start Ray on a host, which but for the head sees neither the project nor this repository's code."""
        log = self.folder / f"{host.name}.log"
        log.unlink(missing_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="n", dir=self.folder))
        home = temporary / "home"
        home.mkdir()
        hides = () if host is self.head else (self.project.root.parent, REPOSITORY / "src")
        command = ["ray", "start", "--block", f"--node-ip-address={host.address}", "--object-store-memory=100000000"]
        self.nodes[host.name] = host.start(
            [*command, f"--temp-dir={temporary / 'r'}", *arguments],
            log=log,
            env={**self.env, "HOME": str(home)},
            hides=hides,
            cwd=self.folder,
        )
        wait_until_started(self.nodes[host.name], log)

    def leave(self, host: Host) -> None:
        if process := self.nodes.pop(host.name, None):
            end(process)

    @contextmanager
    def held_back(self, host: Host) -> Iterator[None]:
        """Meanwhile, training gets a tenth of the time on a host that is alive in all else."""
        trains = train_workers(self.nodes[host.name].pid)
        assert trains, f"nothing trains on {host.name}"
        over = threading.Event()

        def hold() -> None:
            while not over.wait(0.05):
                tell(signal.SIGSTOP)
                over.wait(0.45)
                tell(signal.SIGCONT)

        def tell(number: signal.Signals) -> None:
            for pid in trains:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def train(self, project: Project, log: Path) -> subprocess.Popen[bytes]:
        """The driver, on the head."""
        mine = {
            "RAY_ADDRESS": f"{self.head.address}:{RAY_PORT}",
            "RESFLOW_STORAGE": "s3://training/runs",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "PYTHONPATH": project.env()["PYTHONPATH"],
        }
        command = ["resflow", "stage", "train"]
        return self.head.start(command, log=log, env={**self.env, **KEYS, **mine}, cwd=project.root)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Cluster]:
    if reason := hosts.why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="rf", dir="/tmp"))  # sockets' paths must be short
    made = make_project(tmp_path_factory.mktemp("hosts") / "project", home)
    made.edit(train__num_workers=[1, 2], train__shards=2, checkpoint__seconds=0.5, train__epochs=EPOCHS)
    made.run("resflow", "stage", "fetch")
    made.run("resflow", "stage", "prepare")
    with hosts.network(3) as (head, *workers):
        given = Cluster(head, workers, folder, made)
        server = start_store(given)
        try:
            given.join(head, "--head", f"--port={RAY_PORT}", "--include-dashboard=false", "--num-cpus=0")
            for worker in workers:
                given.join(worker, f"--address={head.address}:{RAY_PORT}", "--num-cpus=1")
            yield given
        finally:
            for process in [*reversed(given.nodes.values()), server]:
                end(process)
            store._remove_sockets({"ports": given.ports})
            shutil.rmtree(folder, ignore_errors=True)


def start_store(cluster: Cluster) -> subprocess.Popen[bytes]:
    """SeaweedFS with the bucket `training`, on the head."""
    data, address = cluster.folder / "s3", cluster.head.address
    data.mkdir()
    options = ("-webdav=false", "-admin.ui=false", "-s3.port.lance=0", "-s3.autoCreateBucket=false")
    store._choose_ports(cluster.ports)
    listening = [store._port_option(name, port) for name, port in cluster.ports.items()]
    listening += [
        f"-admin.port.grpc={cluster.ports['admin'] + store.GRPC_OFFSET}",
        f"-ip={address}",
        f"-ip.bind={address}",
    ]
    process = cluster.head.start(
        ["weed", "-logtostderr=true", "mini", f"-dir={data}", *listening, *options],
        log=cluster.folder / "weed.log",
        env={**cluster.env, **KEYS},
        cwd=cluster.folder,
    )
    make = (
        "import boto3, botocore.exceptions as errors, time\n"
        f"s3 = boto3.client('s3', endpoint_url='{cluster.endpoint}')\n"
        "for attempt in range(100):\n"
        "    try:\n"
        "        if not s3.list_buckets()['Buckets']: s3.create_bucket(Bucket='training')\n"
        "        s3.put_object(Bucket='training', Key='ready', Body=b''); break\n"  # it answers before it can write
        "    except (errors.BotoCoreError, errors.ClientError):\n"
        "        time.sleep(0.2)\n"
        "else:\n"
        "    raise SystemExit('the store does not answer')\n"
    )
    try:
        subprocess.run(cluster.head.command(["python", "-c", make]), env={**cluster.env, **KEYS}, check=True)
    except BaseException:
        end(process)
        raise
    return process


def test_hosts_without_a_shared_disk_train_and_one_that_is_lost_and_comes_back_changes_no_bit(
    cluster: Cluster, tmp_path: Path
) -> None:
    alone = Project(tmp_path / "alone", cluster.project.home)
    shutil.copytree(cluster.project.root, alone.root, ignore=shutil.ignore_patterns(".resflow"))
    alone.edit(train__num_workers=1)
    log, command = cluster.folder / "driver.log", ["resflow", "stage", "train"]
    undisturbed = subprocess.Popen(command, cwd=alone.root, env=alone.env(), stdout=subprocess.DEVNULL)
    driver = cluster.train(cluster.project, log)
    try:
        wait_for(lambda: "epoch 2/" in log.read_text(), driver, log)
        lost = cluster.workers[1]
        lost.cut()
        wait_for(lambda: " with 1 worker\n" in log.read_text(), driver, log)
        with cluster.held_back(cluster.workers[0]):  # else it might be done before
            lost.mend()
            cluster.leave(lost)
            cluster.join(lost, f"--address={cluster.head.address}:{RAY_PORT}", "--num-cpus=1")
            back = " with 2 workers\n"
            wait_for(lambda: back in log.read_text(), driver, log, ended="before the host was back: raise EPOCHS")
        assert driver.wait(timeout=300) == 0, log.read_text()
        assert undisturbed.wait(timeout=300) == 0
    finally:
        for process in (driver, undisturbed):
            if process.poll() is None:
                end(process)
    told = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("epoch ")]
    assert told[-1] == f"{EPOCHS}/{EPOCHS}"
    assert set(told) == {f"{number}/{EPOCHS}" for number in range(1, EPOCHS + 1)}
    assert cluster.project.digest() == alone.digest()


def test_hosts_with_room_for_all_workers_take_one_each_stream_from_the_store_and_end_in_the_bits_of_one_machine(
    cluster: Cluster,
) -> None:
    for worker in cluster.workers:
        cluster.leave(worker)
        cluster.join(worker, f"--address={cluster.head.address}:{RAY_PORT}", "--num-cpus=2")
    streamed = Project(cluster.project.root.parent / "streamed", cluster.project.home)  # not seen by the workers
    shutil.copytree(cluster.project.root, streamed.root, ignore=shutil.ignore_patterns(".resflow", "models"))
    streamed.edit(train__epochs=2, train__num_workers=2)
    streamed.stream_digits()
    assert len(shards.load(streamed.root / "data/prepared/train").shards) == 3
    log = cluster.folder / "streaming.log"
    driver = cluster.train(streamed, log)
    try:
        pids = [cluster.nodes[worker.name].pid for worker in cluster.workers]
        wait_for(lambda: all(map(train_workers, pids)), driver, log, ended="before each host trained")
        assert driver.wait(timeout=180) == 0, log.read_text()
    finally:
        if driver.poll() is None:
            end(driver)
    together = streamed.digest()
    (streamed.root / "models" / "model.safetensors").unlink()
    streamed.edit(train__num_workers=1)
    streamed.run("resflow", "stage", "train")
    assert streamed.digest() == together


def wait_for(
    condition: Callable[[], bool],
    process: subprocess.Popen[bytes],
    log: Path,
    seconds: float = 180,
    ended: str = "too early",
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"{log.read_text()}\nit ended {ended}"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
