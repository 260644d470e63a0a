"""The flow on a real Prefect server: deployed to a work pool, overridden, served on a schedule, failed, stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from resflow import ports
from tests.conftest import Project, stop_store
from tests.drills.drill import newest

pytestmark = pytest.mark.integration

NIGHTLY = "training-pipeline/nightly"
STAGES = ["fetch", "prepare", "analyze", "train", "evaluate", "robustness"]
LAX = {"gate.min_accuracy": 0.0, "gate.max_accuracy_drop": 1.0}
WHO = "ada:lovelace"
"""The user and password that the server asks for."""
PATIENCE = 60
"""Seconds until a process that was told to end must have: far more than it takes, for machines that are busy."""


class Patient(httpx.BaseTransport):
    """Asks again where the server says that its database is busy, as Prefect's own client does."""

    def __init__(self) -> None:
        self.inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(20):
            answer = self.inner.handle_request(request)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            answer.close()
            time.sleep(1)
        return answer


client = httpx.Client(auth=httpx.BasicAuth(*WHO.split(":")), timeout=60, transport=Patient())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[str]:
    """The address of a Prefect server of these tests' own, which asks for a password."""
    folder = tmp_path_factory.mktemp("prefect")
    own = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    project = Project(folder, home, {**own, "PREFECT_SERVER_API_AUTH_STRING": WHO})
    (port,) = ports.find_free(1)
    url = f"http://127.0.0.1:{port}/api"
    with running(project, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)) as process:
        wait_for(lambda: answers(f"{url}/health"), "the server to answer")
        yield url
        os.killpg(process.pid, signal.SIGKILL)  # it would take 13 s to end in peace, and nobody needs its data


def knows(server: str) -> dict[str, str]:
    """The environment of a user who knows the server and its password."""
    return {"PREFECT_API_URL": server, "PREFECT_API_AUTH_STRING": WHO}


@pytest.fixture(scope="module")
def deployed(released: Project, server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A copy of `released` with a Prefect server."""
    root = tmp_path_factory.mktemp("deployed") / "project"
    shutil.copytree(released.root, root, ignore=shutil.ignore_patterns(".resflow"), symlinks=True)
    home = tmp_path_factory.mktemp("prefect-home")
    made = replace(released, root=root, environment={**knows(server), "PREFECT_HOME": str(home)})
    yield made
    stop_store(made)


@contextmanager
def running(project: Project, *command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a session of its own, which is ended by id; its output goes to a file beside the project."""
    log = project.root.parent / f"{command[0]}-{time.monotonic_ns()}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=project.root,
            env=project.env(**environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    process.said = log.read_text  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)


def answers(url: str) -> bool:
    try:
        return client.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


def wait_for(done: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """The first true answer of `done`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := done():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s for {what}")


def ask(server: str, what: str, **query: Any) -> Any:
    return client.post(f"{server}/{what}/filter", json=query).raise_for_status().json()


def deployment(server: str, name: str) -> Any:
    answer = client.get(f"{server}/deployments/name/{name}")
    return answer.json() if answer.is_success else None


def trigger(server: str, name: str, **parameters: Any) -> str:
    """Start a run of a deployment as the UI does; returns its id."""
    made = deployment(server, name)
    body = {"parameters": {**made["parameters"], **parameters}, "state": {"type": "SCHEDULED"}}
    answer = client.post(f"{server}/deployments/{made['id']}/create_flow_run", json=body)
    return str(answer.raise_for_status().json()["id"])


def state(server: str, run: str) -> str:
    return str(client.get(f"{server}/flow_runs/{run}").json()["state_type"])


def ended(server: str, run: str) -> str:
    final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    return str(wait_for(lambda: (now := state(server, run)) in final and now, "the run to end"))


def latest_run(server: str) -> Any:
    """The run that started last; not those that a schedule has planned."""
    started = {"start_time": {"is_null_": False}}
    (run,) = ask(server, "flow_runs", flow_runs=started, sort="START_TIME_DESC", limit=1)
    return run


def planned(server: str, deployment: str) -> Any:
    """Runs that the server has put down for later by itself, as the schedule says."""
    of_schedule = {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
    return [run for run in ask(server, "flow_runs", flow_runs=of_schedule) if run["auto_scheduled"]]


def logs(server: str, run: str) -> list[str]:
    of_run = {"flow_run_id": {"any_": [run]}}
    return [line["message"] for line in ask(server, "logs", logs=of_run, sort="TIMESTAMP_ASC")]


def progress(server: str, run: str) -> float:
    """Percent of the training of a run, as its artifact tells; 0 where there is none yet."""
    made = ask(server, "artifacts", artifacts={"flow_run_id": {"any_": [run]}, "key": {"like_": "train-progress"}})
    return float(made[-1]["data"]) if made else 0.0


def work_of(project: Project) -> list[str]:
    """Command lines of living processes of flow runs and stages that work in the project, found by their folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            folder, words = (process / "cwd").readlink(), (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        line = b" ".join(words).decode(errors="replace")
        if folder.is_relative_to(project.root) and "weed" not in line and line:
            found.append(line)
    return found


def nobody_works(project: Project) -> None:
    wait_for(lambda: not work_of(project), f"these to end: {work_of(project)}", PATIENCE)


def snapshot(project: Project) -> tuple[str, ...]:
    """What a run with overrides must leave alone."""
    texts = [(project.root / name).read_text() for name in ("params.yaml", "dvc.lock", "metrics/evaluate.json")]
    git = [["branch", "--show-current"], ["rev-parse", "HEAD"], ["status", "--porcelain"], ["ls-files", "--stage"]]
    return (*texts, *(project.git(*words) for words in git))


# --- deployments -----------------------------------------------------------------------------------------------------


def test_a_worker_runs_the_declared_deployment_with_a_parameter_of_its_own(deployed: Project, server: str) -> None:
    before, tags = snapshot(deployed), deployed.git("tag")
    with running(deployed, "prefect", "worker", "start", "--pool", "resflow", "--type", "process"):
        wait_for(lambda: ask(server, "work_pools"), "the worker to make its pool")
        done = deployed.run("prefect", "--no-prompt", "deploy", "--all")
        assert "successfully" in done.out
        made = deployment(server, NIGHTLY)
        assert made["work_pool_name"] == "resflow"
        assert [one["schedule"]["cron"] for one in made["schedules"]] == ["0 2 * * *"]
        assert made["global_concurrency_limit"]["limit"] == 1
        run = trigger(server, NIGHTLY, overrides={"train.epochs": 1, **LAX})
        assert ended(server, run) == "COMPLETED", "\n".join(logs(server, run))

    tasks = ask(server, "task_runs", flow_runs={"id": {"any_": [run]}}, sort="EXPECTED_START_TIME_ASC")
    assert [task["name"] for task in tasks] == [*STAGES, "gate", "register", "push", "publish", "promote"]
    assert {task["state_type"] for task in tasks} == {"COMPLETED"}
    said = logs(server, run)
    assert any(line.startswith("epoch 1/1  loss ") for line in said)
    assert any(line.startswith("test accuracy ") for line in said)
    assert not [line for line in said if "git add" in line or "lock file" in line or line.startswith("> ")]
    made = {one["key"]: one for one in ask(server, "artifacts", artifacts={"flow_run_id": {"any_": [run]}})}
    assert set(made) == {"train-progress", "summary", "metrics", "bundle"}
    assert made["train-progress"]["type"] == "progress"
    assert made["train-progress"]["data"] == 100
    assert re.fullmatch(r"epoch 1 of 1: loss .+ images/s", made["train-progress"]["description"])
    assert "| test accuracy |" in made["summary"]["data"]
    assert [row["class"] for row in json.loads(made["metrics"]["data"])] == [str(digit) for digit in range(10)]
    assert "s3://resflow/models/mnist-resnet/v0.1.1/" in made["bundle"]["data"]

    assert snapshot(deployed) == before
    (tag,) = set(deployed.git("tag").split()) - set(tags.split()) - {"mnist-resnet#prod#2"}
    assert yaml.safe_load(deployed.git("show", f"{tag}:params.yaml"))["train"]["epochs"] == 1
    assert deployed.git("worktree", "list").count("\n") == 0


def test_a_schedule_runs_what_is_triggered_and_ends_with_its_run_when_told(deployed: Project, server: str) -> None:
    with running(
        deployed, "resflow", "schedule", "--cron", "30 4 * * 1", "-S", "gate.max_accuracy_drop=1.0"
    ) as process:
        made = wait_for(lambda: deployment(server, "training-pipeline/scheduled"), "the deployment")
        assert [one["schedule"]["cron"] for one in made["schedules"]] == ["30 4 * * 1"]
        assert made["parameters"] == {"overrides": {"gate.max_accuracy_drop": 1.0}}
        wait_for(lambda: planned(server, made["id"]), "the server to plan the runs of the schedule")
        run = trigger(server, "training-pipeline/scheduled", overrides=None, release=False)
        assert ended(server, run) == "COMPLETED", "\n".join(logs(server, run))
        long = trigger(server, "training-pipeline/scheduled", overrides={"train.epochs": 900})
        wait_for(lambda: any("epoch 1/900" in line for line in work_lines(process)), "training to begin")
        wait_for(lambda: 0 < progress(server, long) < 100, "the progress to be shown")
        begun = progress(server, long)
        wait_for(lambda: begun < progress(server, long) < 100, "the progress to move while it trains")
        os.kill(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)
    assert process.returncode == 0
    assert state(server, long) == "CANCELLED"
    nobody_works(deployed)
    assert deployment(server, "training-pipeline/scheduled")["paused"]


def test_an_interval_is_served_until_ctrl_c(deployed: Project, server: str) -> None:
    with running(deployed, "resflow", "schedule", "--interval", "3600", "--name", "hourly") as process:
        made = wait_for(lambda: deployment(server, "training-pipeline/hourly"), "the deployment")
        assert [one["schedule"]["interval"] for one in made["schedules"]] == [3600.0]
        wait_for(lambda: "Ctrl-C" in process.said(), "the command to say how to stop it")  # type: ignore[attr-defined]
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in process.said()  # type: ignore[attr-defined]
    nobody_works(deployed)


def work_lines(process: Any) -> list[str]:
    return str(process.said()).splitlines()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cron", "0 2 *"], "error: --cron '0 2 *': is no cron schedule"),
        (["--interval", "60", "-S", "train.epoch=3"], "Did you mean 'train.epochs'?"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_at_once(deployed: Project, options: list[str], said: str) -> None:
    done = deployed.run("resflow", "schedule", *options, code=1)
    assert said in done.err
    assert done.err.count("\n") == 1


# --- no server, a dead one -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["run"], ["schedule", "--interval", "60"]])
def test_a_server_that_does_not_answer_is_one_error(released: Project, command: list[str]) -> None:
    url = f"http://127.0.0.1:{ports.find_free(1)[0]}/api"
    done = released.run("resflow", *command, code=1, PREFECT_API_URL=url)
    assert done.err.startswith(f"error: PREFECT_API_URL={url}: no Prefect server answers there")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("password", "path", "said"),
    [
        (None, "/api", "the Prefect server asks for a user and a password. Set PREFECT_API_AUTH_STRING"),
        ("ada:wrong", "/api", "the Prefect server refuses the user and password. Set PREFECT_API_AUTH_STRING"),
        (WHO, "", "no Prefect server answers there (404 Not Found). Its address ends in /api: PREFECT_API_URL=http://"),
    ],
)
def test_a_server_that_refuses_is_one_error_that_says_what_it_wants(
    released: Project, server: str, password: str | None, path: str, said: str
) -> None:
    address = server.removesuffix("/api") + path
    given = {"PREFECT_API_AUTH_STRING": password} if password else {}
    done = released.run("resflow", "run", code=1, PREFECT_API_URL=address, **given)
    assert done.err.startswith(f"error: PREFECT_API_URL={address}: {said}")
    assert done.err.count("\n") == 1


def test_settings_that_prefect_refuses_are_named_last(released: Project) -> None:
    done = released.run("resflow", "run", code=1, PREFECT_API_URL="http://[::1")
    assert "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith("error: settings of Prefect: Value error, Invalid IPv6 URL. Check")


def test_a_schedule_without_a_server_says_how_to_start_one(released: Project) -> None:
    below = replace(released, root=released.root / "docs", environment={"PYTHONPATH": released.env()["PYTHONPATH"]})
    done = below.run("resflow", "schedule", "--interval", "60", "--params", "../experiments/article.yaml", code=1)
    assert done.err.startswith(
        "error: PREFECT_API_URL: is not set, and a schedule needs a Prefect server. Start one with"
    )
    assert done.err.count("\n") == 1


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failed_gate_and_a_failed_stage_are_one_line_and_release_nothing(deployed: Project, server: str) -> None:
    """Also after a kill while DVC wrote what it keeps: no experiment is made of a lock that is half written."""
    tags, published = deployed.git("tag"), bundles(deployed)
    lock, kept = deployed.root / "dvc.lock", deployed.root / ".resflow" / "dvc.lock"
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(lock.read_bytes())
    for written in (lock, deployed.root / ".dvc" / "tmp" / "rwlock"):
        written.write_bytes(b"")
    done = deployed.run("resflow", "run", "-S", "gate.max_ece=0.0", code=1)
    assert done.err.count("\n") == 1
    assert done.err.startswith("error: gate: ")
    assert "Running stage" not in done.out, "a limit of the gate is no reason to train again"
    assert "Nothing was registered" in done.err
    assert done.out.splitlines()[-1].startswith("The store stays up"), "it was started for a release"
    failed = latest_run(server)
    assert failed["state_type"] == "FAILED"

    done = deployed.run("resflow", "run", "-S", "prepare.classes=['0', '1']", code=1)
    assert done.err.startswith("error: prepare: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.out
    assert latest_run(server)["id"] != failed["id"]
    assert latest_run(server)["state_type"] == "FAILED"
    assert (deployed.git("tag"), bundles(deployed)) == (tags, published)


def bundles(project: Project) -> set[str]:
    """Versions that can be pulled."""
    listed = json.loads(project.run("resflow", "models", "list", "--json").out)
    return {one["version"] for one in listed}


# --- stopped and killed ----------------------------------------------------------------------------------------------


def test_a_run_that_is_stopped_leaves_no_process_and_the_next_goes_on_to_the_same_bits(
    copied: Project, server: str
) -> None:
    project = replace(copied, environment=knows(server))
    project.edit(train__epochs=60, train__shards=2)
    # of a release the store stays up, and what is not released needs none; SIGKILL is what drills try
    stops = (
        (signal.SIGINT, 130, "stopped with Ctrl-C", "--no-release"),
        (signal.SIGTERM, 143, "ended by SIGTERM", "--release"),
    )
    for workers, (number, code, how, release) in enumerate(stops, 1):
        project.edit(train__num_workers=workers)
        with running(project, "resflow", "run", release) as process:
            wait_for(lambda: "\n".join(work_lines(process)).count("\nepoch ") >= 2, "training to go on")
            (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
            process.wait(PATIENCE)
        said = "\n".join(work_lines(process))
        assert process.returncode == code, said
        assert said.splitlines()[-1] == f"resflow run: {how}; the same command goes on"
        assert ("The store stays up" in said.splitlines()[-2]) == (release == "--release")
        assert (project.root / ".resflow" / "store").exists() == (release == "--release")
        assert "Traceback" not in said
        kept = re.findall(r"step (\d+) is kept, to go on from", said)
        assert kept == [str(newest(project))]
        assert ("epoch 1/60" in said) == (number is signal.SIGINT), "every later one goes on from a checkpoint"
        nobody_works(project)
    project.edit(train__num_workers=1)
    done = project.run("dvc", "repro", "train")  # whichever door, it is the same run
    assert "epoch 1/60" not in done.out
    assert "epoch 60/60" in done.out
    stopped = lock(project)
    assert "epoch 1/60" in project.run("dvc", "repro", "--force", "--single-item", "train").out
    assert lock(project) == stopped


def test_a_killed_run_with_a_parameter_of_its_own_leaves_no_process_and_the_next_goes_on(
    copied: Project, server: str
) -> None:
    shutil.copy(copied.root / "models/model.safetensors", copied.root / "start.safetensors")  # unknown to git
    start = ("train.init_from=start.safetensors", f"train.init_sha256={copied.digest()}")
    command = ("resflow", "run", "-S", "train.epochs=60", "-S", start[0], "-S", start[1], "--no-release")
    with running(copied, *command) as process:  # with a server of its own
        wait_for(lambda: "\n".join(work_lines(process)).count("\nepoch ") >= 2, "training to go on")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
    nobody_works(copied)
    (left,) = copied.git("worktree", "list").splitlines()[1:]
    done = copied.run(*command, **knows(server))
    assert "going on from step" in done.out
    assert "epoch 1/60" not in done.out
    assert "epoch 60/60" in done.out
    assert "Nothing of this run stays in the project" in done.out
    assert copied.git("worktree", "list").count("\n") == 0, left
    (run,) = (copied.root / ".resflow" / "runs").iterdir()
    assert (run / "done").exists(), "only the last finished run stays"


def lock(project: Project) -> Any:
    return yaml.safe_load((project.root / "dvc.lock").read_text())
