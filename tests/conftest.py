"""What all tests share: an isolated HOME, and small projects in which the real commands run in seconds.

A project is a copy of this repository with a git history of its own and synthetic digits in the place of MNIST: each
class is a bright bar at its own height, so that one epoch of a small network learns it.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from resflow import store

# Two workers share the cores, and threads that wait for each other spin. Before torch is loaded, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell ignores Ctrl-C for what it runs in the background, and so would all that tests start and stop by it.
signal.signal(signal.SIGINT, signal.default_int_handler)
REPOSITORY = Path(__file__).parents[1]
CLASSES = 10


@dataclass(frozen=True)
class Project:
    """A small project; `run` runs a command in it."""

    root: Path
    home: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *command: str, code: int | None = 0, timeout: float = 240, **environment: str) -> Done:
        """Run a command with this project's code; fails the test unless it exits with `code` (None: any)."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.env(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if code is not None:
            assert done.returncode == code, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Done(done.returncode, done.stdout, done.stderr)

    def env(self, **environment: str) -> dict[str, str]:
        """The environment of every command: an isolated HOME, the project's own code, nothing of the user's."""
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("AWS_", "PREFECT_", "RAY_", "DVC_", "GIT_"))
            and key not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")  # the last would cost each process
        }
        mine = {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.root / 'src'}{os.pathsep}{self.root}",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "COLUMNS": "200",
        }
        return {**inherited, **mine, **self.environment, **environment}

    def edit(self, **changes: Any) -> None:
        """Set parameters in params.yaml, by dotted names with two underscores for each dot, keeping its comments."""
        edit_params(self.root, {key.replace("__", "."): value for key, value in changes.items()})

    def stream_digits(self) -> None:
        """Prepare 4,800 digits anew, to be streamed from three files."""
        digits = digits_params(self.root.parent / "more", train=4800)
        edit_params(self.root, {**digits, "data.loader": "stream", "data.file_mib": 1, "data.shuffle_mib": 1})
        self.run("resflow", "stage", "fetch")
        self.run("resflow", "stage", "prepare")

    def digest(self) -> str:
        """SHA-256 of the trained network."""
        return sha256((self.root / "models" / "model.safetensors").read_bytes()).hexdigest()

    def git(self, *arguments: str) -> str:
        """Output of a git command in the project."""
        return self.run("git", *arguments).out.strip()


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def edit_params(root: Path, changes: Mapping[str, Any]) -> None:
    """Set dotted keys of root/params.yaml."""
    yaml, text = YAML(), io.StringIO()
    tree = yaml.load(root / "params.yaml")
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        node = tree
        for key in parents:
            node = node[key]
        node[last] = value
    yaml.dump(tree, text)
    (root / "params.yaml").write_text(text.getvalue())


def write_digits(folder: Path, train: int = 400, test: int = 100) -> dict[str, tuple[str, str]]:
    """Four IDX files of synthetic digits; returns each role's file name and SHA-256."""
    from resflow.data import idx

    folder.mkdir(parents=True, exist_ok=True)
    names = {
        "train_images": "train-images-idx3-ubyte",
        "train_labels": "train-labels-idx1-ubyte",
        "test_images": "t10k-images-idx3-ubyte",
        "test_labels": "t10k-labels-idx1-ubyte",
    }
    draw = np.random.default_rng(0)
    for role, count in (("train", train), ("test", test)):
        labels = (np.arange(count) % CLASSES).astype(np.uint8)
        images = draw.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 + 2 * label : 4 + 2 * label, 4:24] = 255
        idx.write(folder / names[f"{role}_images"], images)
        idx.write(folder / names[f"{role}_labels"], labels)
    return {role: (name, sha256((folder / name).read_bytes()).hexdigest()) for role, name in names.items()}


def digits_params(folder: Path, train: int = 400) -> dict[str, Any]:
    """Write digits into `folder`; returns the parameters that name them."""
    files = write_digits(folder, train)
    return {
        "data.sources": [str(folder)],
        "data.files": {role: {"name": name, "sha256": digest} for role, (name, digest) in files.items()},
    }


def make_project(root: Path, home: Path, environment: Mapping[str, str] | None = None) -> Project:
    """A copy of the repository's files under `root`, committed, with small data and small limits."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    results = ("metrics/", "plots/", "data/", "dvc.lock")
    for name in filter(None, listed):
        if not name.startswith(results) and (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)
    edit_params(
        root,
        {
            **digits_params(root.parent / "digits"),
            "prepare.validation_fraction": 0.2,
            "net.name": "resnet8_avg",
            "train.epochs": 2,
            "train.batch_size": 40,
            "train.lr": 0.1,
            "train.threads": 1,
            "evaluate.mistakes": 4,
            "robustness.images": 50,
            "robustness.corruptions": [],  # else each of the many runs would load torch once more
            "robustness.epsilons": [],
            "analyze.seconds": 0.0,
            "gate.min_accuracy": 0.2,
            "gate.max_ece": 1.0,
        },
    )
    project = Project(root, home, environment or {})
    project.run("git", "init", "-q", "-b", "main")
    project.run("git", "config", "user.name", "Ada")
    project.run("git", "config", "user.email", "ada@example.org")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", "Start")
    return project


RELEASED = ("bad_input", "commands", "dvc", "prefect", "registry_flow", "search", "study")
"""Of integration, the files whose tests begin with `released`: one of the workers takes them all, and makes it once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first: what is left at the end is short, so that two workers end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("integration") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes a file at a time, as `--dist loadfile` has it, but for those of `RELEASED`."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "released" if Path(file).stem.removeprefix("test_") in RELEASED else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty HOME for the whole session, so that nothing of the user's is read or changed."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Project]:
    """A small project in which `resflow run` has released a version. Leave it as it is: `copied` gives your own."""
    made = make_project(tmp_path_factory.mktemp("released") / "project", home)
    done = made.run("resflow", "run")
    (made.root.parent / "first-run.txt").write_text(done.out)
    yield made
    stop_store(made)


@pytest.fixture
def copied(released: Project, tmp_path: Path) -> Iterator[Project]:
    """A copy of `released` to change at will: same git history and DVC cache, a store of its own."""
    shutil.copytree(released.root, tmp_path / "project", ignore=shutil.ignore_patterns(".resflow"), symlinks=True)
    made = Project(tmp_path / "project", released.home)
    yield made
    stop_store(made)


def stop_store(project: Project) -> None:
    """End the project's store, if it has one."""
    store.stop(project.root)
