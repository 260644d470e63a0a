"""Training on a Ray cluster of two nodes, which are processes of this machine, and what goes wrong on the way there."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.processes import (
    START_SECONDS,
    command_line,
    descendants,
    end,
    train_workers,
    wait_until_started,
)
from resflow import ports
from resflow.processes import cores
from tests.conftest import Project, make_project
from tests.drills.drill import RECIPE, newest, wait_until_step

pytestmark = pytest.mark.integration

EPOCHS = 6
STEPS = EPOCHS * 320 // int(RECIPE["train__batch_size"])
STOPS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
"""Signals and the exit codes of a driver that gets them."""


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[dict[str, str]]:
    """A head and a node with a CPU each, and what Ray takes for a GPU; the environment of whoever joins."""
    (port,) = ports.find_free(1)
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets' paths must be short
    joining = {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    settings = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "OMP_WAIT_POLICY": "PASSIVE"}
    environment = {**Project(folder, home).env(**settings), **joining}
    environment.pop("PYTHONPATH")
    del environment["RAY_ADDRESS"]
    common = ("--block", "--num-cpus=1", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000")
    head = ("--head", f"--port={port}", "--include-dashboard=false", "--num-gpus=1", *common)  # so it is told
    node = (f"--address=127.0.0.1:{port}", *common)
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for name, arguments in (("h", head), ("n", node)):
            with (folder / f"{name}.log").open("wb") as log:
                nodes.append(
                    subprocess.Popen(
                        ["ray", "start", *arguments, f"--temp-dir={folder / name}"],
                        env=environment,
                        cwd=folder,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            wait_until_started(nodes[-1], folder / f"{name}.log")
        yield {**joining, "OMP_WAIT_POLICY": "PASSIVE"}
    finally:
        for process in reversed(nodes):
            end(process)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Project:
    """A project with prepared data and two workers."""
    made = make_project(tmp_path_factory.mktemp("cluster") / "project", home)
    made.edit(**{**RECIPE, "train__epochs": EPOCHS}, train__num_workers=2, train__shards=2)
    made.run("resflow", "stage", "fetch")
    made.run("resflow", "stage", "prepare")
    return made


def epoch_lines(text: str) -> list[str]:
    """The epochs that ended; on a busy machine some are told within, too."""
    return [line.split()[1] for line in text.splitlines() if re.match("epoch .+ validation accuracy ", line)]


@pytest.fixture(scope="module")
def undisturbed(prepared: Project) -> str:
    """The bits of one worker with the same shards, which are those of two."""
    prepared.edit(train__num_workers=1)
    prepared.run("resflow", "stage", "train")
    prepared.edit(train__num_workers=2)
    return prepared.digest()


def start(project: Project, cluster: dict[str, str], *command: str) -> subprocess.Popen[str]:
    """A driver that trains there, or another one, its two outputs as one."""
    return subprocess.Popen(
        command or ["resflow", "stage", "train"],
        cwd=project.root,
        env=project.env(**cluster),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_driver_that_is_stopped_leaves_the_cluster_free_and_the_next_goes_on_to_the_bits_of_one_worker(
    prepared: Project, undisturbed: str, cluster: dict[str, str]
) -> None:
    for turn, (number, code) in enumerate(STOPS.items(), 1):
        if turn == len(STOPS):
            max((prepared.root / ".resflow" / "runs").glob("*/*.pt")).write_bytes(b"damaged")
        driver = start(prepared, cluster)
        try:
            assert wait_until_step(prepared, driver, turn * STEPS // (len(STOPS) + 1)), driver.communicate()[0]
            driver.send_signal(number)
            time.sleep(0.2)
            driver.send_signal(number)  # as the impatient do
            said = driver.communicate(timeout=20)[0]
        finally:
            driver.kill()
            driver.wait()
        assert driver.returncode == code, said
        assert ("going on from step " in said) == (turn > 1)
        assert (".pt is damaged" in said) == (turn == len(STOPS))
        if number is not signal.SIGKILL:
            kept, last = said.splitlines()[-2:]
            assert kept == f"step {newest(prepared)} is kept, to go on from"
            assert last == f"train: stopped by {number.name}; run it again to go on"
        assert "Traceback" not in said
        assert (
            "2 workers need a GPU each and Ray has 1: training on CPUs, as train.device auto has it. With cuda" in said
        )
    # groups of the drivers before it would have kept it from training
    assert left(prepared, cluster) == [], "actors or placement groups"
    last = prepared.run("resflow", "stage", "train", **cluster)
    assert last.out.startswith("going on from step ")
    assert epoch_lines(last.out)[-1] == f"{EPOCHS}/{EPOCHS}"
    assert "Traceback" not in last.out + last.err
    assert prepared.digest() == undisturbed


def stopped_while_ray_starts(project: Project) -> tuple[int, str]:
    """The exit code and last line of a driver that is told to end before it has trained."""
    driver = start(project, {})
    try:
        deadline = time.monotonic() + START_SECONDS
        while not any(b"raylet" in command_line(pid) for pid in descendants(driver.pid)):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        driver.send_signal(signal.SIGTERM)
        said = driver.communicate(timeout=60)[0]
    finally:
        driver.kill()
        driver.wait()
    return driver.returncode, said.splitlines()[-1]


@pytest.fixture
def crowded(prepared: Project) -> Iterator[Project]:
    """Two workers, each with as many threads as there are cores, in a run of no other test."""
    file = prepared.root / "params.yaml"
    given = file.read_text()
    prepared.edit(train__threads=cores(), train__epochs=EPOCHS + 1)
    yield prepared
    file.write_text(given)


def test_workers_with_more_threads_than_cores_do_not_spin_and_sigterm_to_all_processes_at_once_loses_nothing(
    crowded: Project,
) -> None:
    """The latter as `timeout` and systemd send it."""
    driver = start(crowded, {})
    try:
        assert wait_until_step(crowded, driver, STEPS // 2), driver.communicate()[0]
        variables = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in train_workers(driver.pid)]
        for pid in (driver.pid, *descendants(driver.pid)):
            os.kill(pid, signal.SIGTERM)
        said = driver.communicate(timeout=20)[0]
    finally:
        driver.kill()
        driver.wait()
    assert [b"OMP_WAIT_POLICY=PASSIVE" in each for each in variables] == [True, True]
    assert re.search(r"2 workers of \d+ threads each share \d+ cores: train.threads \d+ is faster", said)
    assert driver.returncode == STOPS[signal.SIGTERM], said
    assert said.splitlines()[-2:] == [
        f"step {newest(crowded)} is kept, to go on from",
        "train: stopped by SIGTERM; run it again to go on",
    ]


def test_a_local_ray_without_enough_cpus_is_one_error_also_by_its_name(prepared: Project) -> None:
    prepared.edit(train__num_workers=320, train__shards=0, train__batch_size=320)
    last = prepared.run("resflow", "stage", "train", code=1, RAY_ADDRESS="local").err.splitlines()[-1]
    prepared.edit(train__num_workers=2, train__shards=2, train__batch_size=RECIPE["train__batch_size"])
    assert last.startswith("train: train.num_workers: ")


def test_sigterm_while_a_local_ray_starts_is_told_and_a_folder_that_the_only_worker_does_not_see_is_one_error(
    prepared: Project, cluster: dict[str, str]
) -> None:
    """The driver has a disk of its own where the project keeps checkpoints, and the worker an earlier start's file."""
    prepared.edit(train__device="cpu")  # else the one worker would take what is no GPU
    stopped = stopped_while_ray_starts(prepared)
    assert stopped == (STOPS[signal.SIGTERM], "train: stopped by SIGTERM; run it again to go on")
    prepared.edit(train__num_workers=1)  # with shards it is the same run
    own = f"mount -t tmpfs none {prepared.root}/.resflow && exec resflow stage train"
    last = prepared.run(*in_own_mounts(own), code=1, **cluster).err.splitlines()[-1]
    prepared.edit(train__num_workers=2, train__device="auto")
    name = re.match(rf"train: {prepared.root}/\.resflow/runs/(\w+): ", last)
    assert name
    assert [*(prepared.root / ".resflow/runs" / name[1]).glob("run-*")], "the worker sees nothing of its own"
    assert re.search(r"is not seen by the worker on node [\d.]+\. Name a shared folder", last)


def test_arrays_that_a_node_lacks_are_one_error_which_is_not_tried_again(
    prepared: Project, cluster: dict[str, str], tmp_path: Path
) -> None:
    """The driver has others than the workers see, each of which would begin anew 1000 times after a failure."""
    shutil.copytree(prepared.root / "data" / "prepared", tmp_path / "prepared")
    with (tmp_path / "prepared" / "train" / "labels.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    prepared.edit(train__max_failures=1000)
    own = f"mount --bind {tmp_path / 'prepared'} {prepared.root}/data/prepared && exec resflow stage train"
    last = prepared.run(*in_own_mounts(own), code=1, **cluster).err.splitlines()[-1]
    prepared.edit(train__max_failures=3)
    problem = r"are not, or not the same, on node [\d.]+ of the cluster"
    assert re.match(rf"train: {prepared.root}/data/prepared: {problem}", last)


def in_own_mounts(command: str) -> tuple[str, ...]:
    """A command of the shell that may mount what nobody else sees."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount (root)")
    return ("unshare", "-m", "sh", "-c", command)


def left(project: Project, cluster: dict[str, str]) -> list[str]:
    """Actors that live and placement groups that hold CPUs of the cluster some seconds after their drivers ended."""
    look = (
        "import json, ray, time\n"
        "from ray._private.state import actors\n"
        "from ray.util import placement_group_table as table\n"
        f"ray.init(address='{cluster['RAY_ADDRESS']}', log_to_driver=False, logging_level='ERROR')\n"
        "def left():\n"
        "    groups = ['a group' for one in table().values() if one['state'] != 'REMOVED']\n"
        "    live = [one['ActorClassName'] for one in actors().values() if one['State'] != 'DEAD']\n"
        "    return groups + [one for one in live if one != '_AutoscalingCoordinatorActor']  # the cluster's own\n"
        "deadline = time.monotonic() + 20\n"
        "while left() and time.monotonic() < deadline: time.sleep(0.2)\n"
        "print(json.dumps(left()))\n"
    )
    joining = {**cluster, "RAY_AUTH_MODE": "token"}
    return json.loads(project.run("python", "-c", look, **joining).out.splitlines()[-1])  # type: ignore[no-any-return]


def test_a_wrong_token_is_one_error_that_says_where_the_token_goes(prepared: Project, cluster: dict[str, str]) -> None:
    done = prepared.run("resflow", "stage", "train", code=1, **{**cluster, "RAY_AUTH_TOKEN": "0" * 32})
    last = done.err.splitlines()[-1]
    assert last.startswith("train: RAY_ADDRESS=127.0.0.1:")
    assert "token" in last
    assert "docs/cluster.md" in last
    assert "Traceback" not in done.err


def test_a_home_that_ray_cannot_write_to_is_one_error(prepared: Project) -> None:
    home = prepared.root / "README.md"
    last = prepared.run("resflow", "stage", "train", code=1, HOME=str(home)).err.splitlines()[-1]
    assert last.startswith(f"train: {home}/.ray: Ray cannot write it (")
    assert last.endswith("Set HOME to a folder that can be written to")


def test_who_waits_for_gpus_that_the_cluster_has_not_is_told(prepared: Project, cluster: dict[str, str]) -> None:
    prepared.edit(train__device="cuda")
    driver = start(prepared, cluster)
    try:
        assert driver.stdout
        said = "2 workers need a GPU each and Ray has 1: waiting until nodes join. Ctrl-C ends it.\n"
        assert said in iter(driver.stdout.readline, "")
        driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=30)
    finally:
        driver.kill()
        driver.wait()
        prepared.edit(train__device="auto")
    assert driver.returncode == STOPS[signal.SIGINT]


def test_who_waits_for_what_others_use_is_told(prepared: Project, cluster: dict[str, str]) -> None:
    take = (
        "import ray, time\n"
        f"ray.init(address='{cluster['RAY_ADDRESS']}', log_to_driver=False, logging_level='ERROR')\n"
        "assert ray.util.placement_group([{'CPU': 1}]).wait(60)\n"
        "print('taken', flush=True)\n"
        "time.sleep(600)\n"
    )
    other = start(prepared, {**cluster, "RAY_AUTH_MODE": "token"}, "python", "-c", take)
    driver = None
    try:
        assert other.stdout
        assert "taken\n" in iter(other.stdout.readline, "")
        driver = start(prepared, cluster)
        assert driver.stdout
        said = "2 workers need a CPU each and 1 of Ray's 2 are free: waiting until others are done. Ctrl-C ends it.\n"
        assert said in iter(driver.stdout.readline, "")
        other.kill()
        assert f"epoch {EPOCHS}/{EPOCHS}" in driver.communicate(timeout=120)[0]
    finally:
        for process in filter(None, (other, driver)):
            process.kill()
            process.communicate()
    assert driver.returncode == 0
