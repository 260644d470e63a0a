"""Bad input, as a user meets it: one clear error as the last line, an exit code, nothing lost, nothing half-written."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from resflow.data import idx
from resflow.storage import Endpoint
from tests.conftest import Project, make_project, stop_store

pytestmark = pytest.mark.integration

NOBODY = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Project:
    """A project with its raw and prepared data; leave it as it is."""
    made = make_project(tmp_path_factory.mktemp("bad") / "project", home)
    made.run("resflow", "stage", "fetch")
    made.run("resflow", "stage", "prepare")
    return made


@pytest.fixture
def project(fetched: Project, tmp_path: Path) -> Iterator[Project]:
    """A copy of `fetched` to spoil."""
    shutil.copytree(fetched.root, tmp_path / "project", symlinks=True)
    made = Project(tmp_path / "project", fetched.home)
    yield made
    stop_store(made)


def files(root: Path) -> dict[str, str]:
    """Every file of the project and a digest of it; not git's own, nor where locks and logs of servers lie."""
    found = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    held = {path.relative_to(root): path for path in found}
    return {
        str(name): sha256(path.read_bytes()).hexdigest()
        for name, path in held.items()
        if name.parts[0] not in (".git", ".resflow")
    }


def refuse(project: Project, *command: str, code: int = 1, by: str = "error", **environment: str) -> str:
    """The one error of a command that must fail and leave every file as it was."""
    before = files(project.root)
    done = project.run(*command, code=code, **environment)
    assert "Traceback" not in done.out + done.err
    assert files(project.root) == before
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith(f"{by}: ")] == lines[-1:]
    return lines[-1]


# --- params.yaml ----------------------------------------------------------------------------------------------------

SPOILED = {
    "misspelt": (
        "\n  lr: ",
        "\n  learning_rate: ",
        "unknown parameter 'train.learning_rate'. Did you mean 'train.lr'?",
    ),
    "type": ("\n  epochs: 2", "\n  epochs: two", "parameter 'train.epochs' is 'two', but should be a whole number"),
    "range": ("\n  lr: 0.1", "\n  lr: -0.1", "parameter 'train.lr' is -0.1, but should be greater than 0"),
    "structure": ("name: resnet8_avg", "name: resnet8_agv", "Did you mean 'resnet8_avg'?"),
    "yaml": ("\ntrain:", "\ntrain: [", "is not valid YAML"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_bad_parameters_are_refused_before_anything_starts(project: Project, kind: str) -> None:
    before, after, said = SPOILED[kind]
    path = project.root / "params.yaml"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    error = refuse(project, "resflow", "run")
    assert error.startswith(f"error: {path}")
    assert said in error
    assert not (project.root / ".resflow" / "store.json").exists()


def test_a_stage_refuses_bad_parameters_too(project: Project) -> None:
    project.edit(prepare__classes=["a", "b", "a"])
    error = refuse(project, "resflow", "stage", "train", by="train")
    assert "parameter 'prepare.classes' names 'a' more than once" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-S", "train.learning_rate=1"], "unknown parameter 'train.learning_rate'. Did you mean 'train.lr'?"),
        (["-S", "train.lr=fast"], "parameter 'train.lr' is 'fast', but should be a number"),
        (["-S", "train.lr=["], "--set train.lr=[: is not valid YAML"),
        (["-S", "net.norm=none"], "net.init: is he, which does not train without norms. Set net.init to fixup or"),
        (["-S", "train.lr"], "--set train.lr: is not KEY=VALUE"),
        (["--params", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file or directory"),
    ],
)
def test_bad_overrides_are_refused_before_anything_starts(fetched: Project, arguments: list[str], said: str) -> None:
    assert said in refuse(fetched, "resflow", "run", *arguments)


def test_a_batch_that_leaves_batch_norm_one_value_is_one_error(project: Project) -> None:
    project.edit(net__name="resnet18", train__batch_size=1)
    error = refuse(project, "resflow", "stage", "train", by="train")
    assert error.startswith("train: train.batch_size: a part of the batch is one image")


# --- data -----------------------------------------------------------------------------------------------------------


def truncate(images: Path, labels: Path) -> None:
    images.write_bytes(images.read_bytes()[:-1])


def swap(images: Path, labels: Path) -> None:
    content = images.read_bytes()
    images.write_bytes(labels.read_bytes())
    labels.write_bytes(content)


def mislabel(images: Path, labels: Path) -> None:
    idx.write(labels, np.full(400, 10, np.uint8))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(truncate, "is truncated"), (swap, "labels, where 0x00000803, images, is expected"), (mislabel, "label 0 is 10")],
    ids=["truncated", "swapped", "label"],
)
def test_bad_raw_files_are_refused_and_what_was_prepared_stays(
    project: Project, spoil: Callable[[Path, Path], None], said: str
) -> None:
    raw = project.root / "data" / "raw"
    spoil(raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte")
    assert said in refuse(project, "resflow", "stage", "prepare", by="prepare")


def test_when_all_sources_are_down_the_last_line_names_each_and_the_code_says_that_it_may_pass(
    project: Project,
) -> None:
    shutil.rmtree(project.root / "data")
    project.edit(data__sources=["/nowhere", f"{NOBODY}/mnist", "s3://nowhere/mnist"])
    keys = {"AWS_ENDPOINT_URL_S3": NOBODY, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    error = refuse(project, "resflow", "stage", "fetch", code=75, by="fetch", **keys)
    assert all(source in error for source in ("/nowhere", f"{NOBODY}/mnist", "s3://nowhere/mnist"))


def test_a_stage_that_fails_within_a_run_is_told_once_at_the_end(project: Project) -> None:
    project.edit(prepare__classes=["0", "1"])
    before = files(project.root / "data" / "raw")
    done = project.run("resflow", "run", code=1)
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert lines[-1].startswith("error: prepare: ")
    assert "label 2 is 2, but 2 classes allow 0 to 1. Name every class in prepare.classes of params.yaml" in lines[-1]
    assert "Traceback" not in done.out + done.err
    assert files(project.root / "data" / "raw") == before
    assert list((project.root / "data").rglob("*.partial")) == []
    assert project.git("tag") == ""


# --- the machine ----------------------------------------------------------------------------------------------------


def test_a_read_only_folder_is_one_error(project: Project) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount (root)")
    bind = f"mount --bind {project.root} {project.root} && mount -o remount,ro,bind {project.root} && cd {project.root}"
    error = refuse(project, "unshare", "-m", "bash", "-c", f"{bind} && exec resflow run")
    assert "Read-only file system. Make the folder writable" in error


def test_a_home_that_cannot_be_written_is_told_before_prefect_waits_for_it(project: Project) -> None:
    home = project.root / "README.md"
    error = refuse(project, "resflow", "run", HOME=str(home))
    assert error.startswith(f"error: {home}/.prefect: Prefect cannot keep its state there (Not a directory). ")
    assert "set PREFECT_HOME" in error


@pytest.mark.parametrize("command", [["run"], ["models", "list"]], ids=" ".join)
def test_outside_a_git_repository_it_says_how_to_make_one(project: Project, command: list[str]) -> None:
    shutil.rmtree(project.root / ".git")
    assert "is not in a git repository. Clone the project with git" in refuse(project, "resflow", *command)


def test_outside_a_project_it_says_where_to_go(tmp_path: Path, home: Path, fetched: Project) -> None:
    elsewhere = Project(tmp_path, home, {"PYTHONPATH": fetched.env()["PYTHONPATH"]})
    for command in (["run"], ["models", "list"], ["predict", "a.png"], ["predict", "a.png", "--model", "a@prod"]):
        assert "is not in a resflow project" in refuse(elsewhere, "resflow", *command)


def test_a_port_that_is_taken_is_named_with_another_and_not_remembered(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = refuse(project, "resflow", "store", "start", "--port", str(port))
    assert f"port {port}: " in error
    assert "resflow store start --port" in error
    assert not (project.root / ".resflow" / "store.json").exists()
    project.run("resflow", "store", "status", code=3)


# --- another store --------------------------------------------------------------------------------------------------


def test_a_store_that_is_down_is_told_before_anything_is_trained(fetched: Project) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    error = refuse(fetched, "resflow", "run", AWS_ENDPOINT_URL_S3=NOBODY, **keys)
    assert "the store does not answer" in error
    assert NOBODY in error


def test_without_keys_it_says_which_variables_to_set(fetched: Project) -> None:
    error = refuse(fetched, "resflow", "run", AWS_ENDPOINT_URL_S3=NOBODY, AWS_EC2_METADATA_DISABLED="true")
    assert "no usable keys" in error
    assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in error


def test_wrong_keys_are_told_before_anything_is_trained(fetched: Project, store: tuple[Path, Endpoint]) -> None:
    given = store[1].environment() | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    assert "the store refuses the keys" in refuse(fetched, "resflow", "run", **given)


def test_a_bucket_of_another_store_is_never_made(project: Project, store: tuple[Path, Endpoint]) -> None:
    project.edit(store__bucket="reslfow")
    given = store[1].environment()
    assert "s3://reslfow: there is no such bucket" in refuse(project, "resflow", "run", **given)
    # without a release too, where the workers of a cluster are to meet in it
    on_cluster = refuse(project, "resflow", "run", "--no-release", RAY_ADDRESS=NOBODY.removeprefix("http://"), **given)
    assert on_cluster.startswith("error: s3://reslfow: there is no such bucket")


def test_a_place_of_checkpoints_that_is_none_is_told_before_anything_is_trained(project: Project) -> None:
    error = refuse(project, "resflow", "run", RESFLOW_STORAGE="gs://bucket/runs")
    assert error.startswith("error: RESFLOW_STORAGE=gs://bucket/runs: is neither a folder nor s3://BUCKET/PREFIX. ")


def test_a_pull_that_fails_leaves_nothing(released: Project, tmp_path: Path) -> None:
    keys = {"AWS_ENDPOINT_URL_S3": NOBODY, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    to = tmp_path / "bundle"
    error = refuse(released, "resflow", "models", "pull", "mnist-resnet", "--to", str(to), **keys)
    assert "the store does not answer" in error
    assert list(tmp_path.iterdir()) == []


# --- models and images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("mnist-resnet@v9.9.9", "mnist-resnet@v9.9.9: there is no such version. "),
        ("mnist-resnet@prd", "Did you mean prod?"),
        ("mnist-renset@prod", "model 'mnist-renset' has no versions here. Did you mean mnist-resnet?"),
    ],
)
def test_a_version_that_does_not_exist_is_answered_with_those_that_do(
    released: Project, reference: str, said: str
) -> None:
    assert said in refuse(released, "resflow", "models", "show", reference)
    assert said in refuse(released, "resflow", "predict", "a.png", "--model", reference)


def test_an_image_that_is_no_image_is_named_and_nothing_is_printed_of_the_others(released: Project) -> None:
    picture = released.root / "plots" / "evaluate" / "mistakes.png"
    error = refuse(released, "resflow", "predict", str(picture), "params.yaml", "--json")
    assert error == "error: params.yaml: is no image in a format that is read here. Give a PNG or JPEG file"


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_a_model_that_is_no_model_is_named(fetched: Project, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    error = refuse(fetched, "resflow", "predict", "params.yaml", "--model", str(path))
    assert error.startswith(f"error: {path}: is not a whole safetensors file")


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["stage", "fetch"], ["models", "pull", "mnist-resnet", "--to", "bundle"]])
def test_ctrl_c_ends_with_code_130_and_no_traceback(released: Project, tmp_path: Path, command: list[str]) -> None:
    """While it waits for a server that has accepted and says nothing."""
    shutil.copytree(
        released.root, tmp_path / "project", ignore=shutil.ignore_patterns(".resflow", "raw"), symlinks=True
    )
    project = Project(tmp_path / "project", released.home)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(60)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        project.edit(data__sources=[url])
        environment = project.env(AWS_ENDPOINT_URL_S3=url, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
        process = subprocess.Popen(
            ["resflow", *command], cwd=project.root, env=environment, stderr=subprocess.PIPE, text=True
        )
        try:
            connection, _ = silent.accept()
            with connection:  # a connection that is closed would be an answer
                connection.recv(1)
                os.kill(process.pid, signal.SIGINT)
                _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not (project.root / "bundle").exists()


@pytest.mark.parametrize(
    ("stage", "where"), [("prepare", "> /dev/full"), ("prepare", ">&-"), ("prepare", "| true"), ("train", "| true")]
)
def test_a_stage_ends_as_ever_where_nobody_reads_its_output(project: Project, stage: str, where: str) -> None:
    done = project.run("bash", "-c", f"set -o pipefail; resflow stage {stage} {where}")
    assert done.err == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_that_is_stopped_while_it_loads_stops(project: Project, number: signal.Signals, code: int) -> None:
    """Modules that are loaded may swallow what is raised in them."""
    module = project.root / "src/resflow/stages/fetch.py"
    swallow = f"""
import os, time
try:
    os.kill(os.getpid(), {int(number)})
    time.sleep(1)
except BaseException:
    pass
"""
    module.write_text(module.read_text().replace("__all__ =", f"{swallow}\n__all__ =", 1))
    done = project.run("resflow", "stage", "fetch", code=code)
    assert done.err == f"fetch: stopped by {number.name}; run it again to go on\n"
