"""The project as a DVC user meets it: what makes a stage run again, same bits, killed runs, reports, experiments."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Project
from tests.integration.ray_nodes import gone, is_alive

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
PROBE = '''
"""Run a stage as its command does, and write down which files and which parameters it reads."""

import json
import os
import sys

opened = set()


def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike) and arguments[1] in ("r", "rb", None):
        opened.add(os.path.abspath(os.fsdecode(arguments[0])))


sys.addaudithook(note)
report, name = sys.argv[1:]

from resflow import params
from resflow.__main__ import main

read = set()
load = params.load


def load_and_watch(path):
    """The parameters themselves, of a class that writes down what is read of them."""
    loaded = load(path)
    places = {}

    def place(section, prefix):
        places[id(section)] = prefix
        for key in type(section).model_fields:
            if isinstance(value := getattr(section, key), params.Section):
                place(value, f"{prefix}{key}.")

    def watch(section, key):
        if id(section) in places and key in type(section).model_fields:
            read.add(places[id(section)] + key)
        return object.__getattribute__(section, key)

    place(loaded, "")
    params.Section.__getattribute__ = watch
    return loaded


params.load = load_and_watch

import safetensors  # reads files without Python's open

safe_open = safetensors.safe_open


def note_and_open(path, *arguments, **options):
    opened.add(os.path.abspath(path))
    return safe_open(path, *arguments, **options)


safetensors.safe_open = note_and_open
sys.argv = ["resflow", "stage", name]
try:
    main()
except SystemExit as end:
    code = end.code
opened |= {os.path.abspath(module.__file__) for module in sys.modules.values() if getattr(module, "__file__", None)}
with open(report, "w") as file:
    json.dump({"code": code, "files": sorted(opened), "params": sorted(read)}, file)
'''


CHANGES_NO_RESULT = ("checkpoint.steps", "checkpoint.seconds")
"""Parameters that a stage reads and dvc.yaml leaves out on purpose: how often a run is kept changes nothing of what it
ends in, and asking for it more often must not train anew."""


def paths(entries: list[Any]) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def lock(root: Path) -> dict[str, Any]:
    return yaml.safe_load((root / "dvc.lock").read_text())["stages"]  # type: ignore[no-any-return]


def status(project: Project) -> set[str]:
    """The stages that `dvc repro` would run, with what changed directly."""
    return set(json.loads(project.run("dvc", "status", "--json").out))


def clone(project: Project, into: Path, revision: str) -> Project:
    """A clone of what a version holds, with the same sources of data, and neither cache nor store."""
    subprocess.run(["git", "clone", "-q", str(project.root), str(into)], check=True, capture_output=True)
    made = replace(project, root=into)
    made.run("git", "checkout", "-q", revision)
    return made


# --- what each stage depends on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_reads_what_dvc_yaml_declares_and_nothing_else(name: str, copied: Project, tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    copied.edit(robustness__corruptions=["fog"], robustness__epsilons=[0.1])  # with none it loads nothing
    copied.edit(analyze__seconds=0.01)  # else `analyze` measures nothing
    done = copied.run("python", str(tmp_path / "probe.py"), str(tmp_path / "read.json"), name)
    read = json.loads((tmp_path / "read.json").read_text())
    assert read["code"] == 0, done.err

    root, stage = copied.root.resolve(), STAGES[name]
    own = paths(stage.get("outs", []) + stage.get("metrics", []) + stage.get("plots", []))
    own |= {".resflow", "timings", "params.yaml"}  # state of this machine and times; parameters are compared below
    own |= {".dvc", ".dvcignore", ".git", ".gitignore"}  # DVCLive asks what is ignored, of which no result knows
    files = [Path(path).relative_to(root) for path in read["files"] if Path(path).is_relative_to(root)]
    files = [path.parent.parent / f"{path.name.split('.')[0]}.py" if path.suffix == ".pyc" else path for path in files]
    files = [path for path in files if (root / path).is_file()]
    foreign = {str(path) for path in files if not own & {str(path), *map(str, path.parents)}}
    declared = set(stage["deps"])
    folders = {dep for dep in declared if (root / dep).is_dir()}
    within = {str(path.relative_to(root)) for dep in folders for path in (root / dep).rglob("*") if path.is_file()}
    wanted = declared - folders | {path for path in within if not path.endswith(".pyc")}
    reads_sources = foreign & {str(path.relative_to(root)) for path in (root / "src").rglob("*.py")}
    assert len(reads_sources) > 5, "the probe saw no code: it is broken"
    assert foreign - wanted == set(), f"{name} reads these, but dvc.yaml does not declare them"
    assert wanted - foreign == set(), f"dvc.yaml declares these, but {name} does not read them"

    loads_compiler = any("/torch/_dynamo/" in path for path in read["files"])
    assert loads_compiler <= (name == "analyze"), "it loads torch's compiler, which takes longer than its own work"

    leaves = {key for key in read["params"] if not any(other.startswith(f"{key}.") for other in read["params"])}
    leaves -= set(CHANGES_NO_RESULT)
    known = stage["params"]
    covers = {key: {leaf for leaf in leaves if leaf == key or leaf.startswith(f"{key}.")} for key in known}
    assert leaves - set().union(*covers.values()) == set(), f"{name} reads these parameters without declaring them"
    assert [key for key, read in covers.items() if not read] == [], f"{name} declares these parameters and reads none"


def test_a_change_reruns_the_stages_that_it_concerns_and_no_others(copied: Project) -> None:
    assert status(copied) == set()
    for path in (
        "README.md",
        "src/resflow/cli/structures.py",
        "src/resflow/pipeline/run.py",
        "flows/training.py",
        "pyproject.toml",
    ):
        with (copied.root / path).open("a") as file:
            file.write("# changed\n")
    text = (copied.root / "params.yaml").read_text()
    (copied.root / "params.yaml").write_text(f"# a comment\n{text}\n# another\n")
    copied.edit(gate__min_accuracy=0.3, registry__auto_promote=False, store__bucket="other", gate__max_ece=0.5)
    copied.edit(checkpoint__steps=1, checkpoint__seconds=0.5)
    assert status(copied) == set()

    before = (copied.root / "params.yaml").read_text()
    for changes, stages in (
        ({"train__lr": 0.05}, {"train"}),
        ({"train__threads": 2}, {"train", "evaluate", "robustness", "analyze"}),
        ({"seed": 1}, {"prepare", "train", "robustness"}),
    ):
        copied.edit(**changes)
        assert status(copied) == stages, changes
        (copied.root / "params.yaml").write_text(before)
    with (copied.root / "src/resflow/training/loop.py").open("a") as file:
        file.write("# changed\n")
    assert status(copied) == {"train"}


# --- the same bits ----------------------------------------------------------------------------------------------------


def test_a_fresh_clone_makes_the_same_hashes(released: Project, tmp_path: Path) -> None:
    fresh = clone(released, tmp_path / "clone", "mnist-resnet@v0.1.0")
    assert not (fresh.root / "data/prepared").exists()
    wanted = lock(released.root)
    (fresh.root / "dvc.lock").unlink()
    said = fresh.run("dvc", "repro").out
    assert lock(fresh.root) == wanted
    assert all(f"resflow stage {name}" in said for name in STAGES)
    assert "fetched from" in said
    assert "validation accuracy" in said
    assert fresh.git("status", "--porcelain") == "", "the clone's own files differ from the version's"
    assert status(fresh) == set()


# --- reports and experiments ------------------------------------------------------------------------------------------


def test_the_reports_of_dvc_work_after_a_run_and_in_a_clean_clone(released: Project, tmp_path: Path) -> None:
    assert "up to date" in released.run("dvc", "status").out
    fresh = clone(released, tmp_path / "clone", "mnist-resnet@v0.1.0")
    metrics = json.loads(fresh.run("dvc", "metrics", "show", "--json").out)[""]["data"]
    assert 0.2 < metrics["metrics/evaluate.json"]["data"]["accuracy"] <= 1
    assert metrics["metrics/train.json"]["data"]["parameters"] == 77_866
    analysed = metrics["metrics/analyze.json"]["data"]
    assert analysed["parameters"] == 77_866
    assert analysed["file_bytes"] == (released.root / "models/model.safetensors").stat().st_size
    assert "accuracy" in fresh.run("dvc", "metrics", "show", "--md").out
    dag = fresh.run("dvc", "dag", "--mermaid").out
    assert all(name in dag for name in STAGES)
    fresh.edit(train__lr=0.05)
    (row,) = json.loads(fresh.run("dvc", "params", "diff", "--json").out)["params.yaml"].items()
    assert (row[0], row[1]["old"], row[1]["new"]) == ("train.lr", 0.1, 0.05)


def test_the_plots_of_dvc_show_every_figure(copied: Project) -> None:
    copied.edit(robustness__corruptions=["fog", "shear"], robustness__epsilons=[0.1, 0.3])
    copied.run("resflow", "stage", "robustness")
    copied.edit(analyze__seconds=0.01, analyze__batch_sizes=[2, 4])
    copied.run("resflow", "stage", "analyze")
    copied.run("dvc", "plots", "show")
    page = (copied.root / "dvc_plots/index.html").read_text()
    shown = {spec["title"]["text"]: spec for spec in specs(page)}
    assert len(shown) == 14

    def values(title: str) -> list[dict[str, str]]:
        return shown[title]["data"]["values"]  # type: ignore[no-any-return]

    def column(path: str, *keys: str) -> list[tuple[str, ...]]:
        with (copied.root / path).open() as file:
            return [tuple(row[key] for key in keys) for row in csv.DictReader(file)]

    curves = column("plots/train/curves.csv", "train_loss", "validation_loss")
    loss = {(row["field"], row["dvc_inferred_y_value"]) for row in values("Loss by epoch")}
    assert loss == {
        (field, value) for row in curves for field, value in zip(("train_loss", "validation_loss"), row, strict=True)
    }
    assert len(values("Accuracy by epoch")) == 2 * len(curves)
    for figure in ("Loss", "Accuracy"):
        live = values(f"{figure} by epoch, while it trains (not hashed)")
        assert sorted({int(row["step"]) for row in live}) == list(range(1, len(curves) + 1))
        assert len(live) == 2 * len(curves)
    for title, path, keys in (
        ("Learning rate at the end of each epoch", "plots/train/curves.csv", ("epoch", "learning_rate")),
        ("Confusion on the test split", "plots/evaluate/confusion.csv", ("actual", "predicted")),
        ("Accuracy by confidence on the test split", "plots/evaluate/calibration.csv", ("confidence", "accuracy")),
        ("Multiply-accumulates by layer", "plots/analyze/layers.csv", ("layer", "macs")),
        ("Kept for the backward pass by layer", "plots/analyze/layers.csv", ("layer", "kept_bytes")),
        (
            "Images per second in inference, by size of batch (not hashed)",
            "timings/analyze/throughput.csv",
            ("batch_size", "images_per_second"),
        ),
        (
            "Where a training step's time goes (not hashed)",
            "timings/analyze/parts.csv",
            ("phase", "kind", "milliseconds"),
        ),
        ("Training images per second (not hashed)", "timings/train.csv", ("epoch", "images_per_second")),
    ):
        assert [tuple(row[key] for key in keys) for row in values(title)] == column(path, *keys), title
    for title, name, figures in (
        ("Accuracy by severity, over the corruptions", "severities.csv", ("mean", "lowest", "highest")),
        ("Accuracy under attack", "attacks.csv", ("fgsm", "pgd")),
    ):
        drawn = {(row["field"], row["dvc_inferred_y_value"]) for row in values(title)}
        measured = {(figure, value) for figure in figures for (value,) in column(f"plots/robustness/{name}", figure)}
        assert drawn == measured, title
    for name in ("evaluate/mistakes.png", "robustness/corruptions.png"):
        (image,) = re.findall(rf'<img[^>]*src="([^"]+{Path(name).name})"', page)
        assert (copied.root / "dvc_plots" / image).read_bytes() == (copied.root / "plots" / name).read_bytes()


def specs(page: str) -> Iterator[dict[str, Any]]:
    """The Vega-Lite specifications of a page of plots."""
    for found in re.finditer(r"var spec = ", page):
        yield json.JSONDecoder().raw_decode(page[found.end() :].lstrip())[0]


def test_an_experiment_runs_with_its_own_parameter_and_is_compared(copied: Project) -> None:
    copied.git("add", "-A")
    copied.git("commit", "-qm", "What ran")
    branch, before = copied.git("rev-parse", "HEAD"), lock(copied.root)
    said = copied.run("dvc", "exp", "run", "--name", "slower", "-S", "train.lr=0.05").out
    assert all(f"Stage '{name}' didn't change, skipping" in said for name in ("fetch", "prepare"))
    assert copied.git("rev-parse", "HEAD") == branch
    assert copied.git("diff", "--numstat", "HEAD", "--", "params.yaml").split() == ["1", "1", "params.yaml"]
    after = lock(copied.root)
    assert after["train"]["params"]["params.yaml"]["train"]["lr"] == 0.05
    assert after["train"]["outs"] != before["train"]["outs"]
    table = list(csv.DictReader(copied.run("dvc", "exp", "show", "--csv").out.splitlines()))
    rows = {row["Experiment"] or row["rev"]: row for row in table}
    assert (rows["main"]["train.lr"], rows["slower"]["train.lr"]) == ("0.1", "0.05")
    assert rows["slower"]["nll"] != rows["main"]["nll"]
    changed = json.loads(copied.run("dvc", "metrics", "diff", "--json").out)["metrics/evaluate.json"]
    assert changed["nll"]["diff"] == pytest.approx(changed["nll"]["new"] - changed["nll"]["old"])
    assert status(copied) == set()


def test_training_starts_from_the_weights_of_a_file_and_refuses_any_other(copied: Project) -> None:
    start, curves = copied.root / "start.safetensors", copied.root / "plots/train/curves.csv"

    def first_loss() -> float:
        with curves.open() as file:
            return float(next(csv.DictReader(file))["train_loss"])

    shutil.copy(copied.root / "models/model.safetensors", start)
    drawn = first_loss()
    copied.edit(train__init_from="start.safetensors", train__init_sha256=sha256(start.read_bytes()).hexdigest())
    assert status(copied) == {"train"}
    copied.run("resflow", "stage", "train")
    assert first_loss() < 0.8 * drawn
    start.write_bytes(b"another")
    refused = copied.run("resflow", "stage", "train", code=1)
    assert "start.safetensors: is not the file of train.init_sha256" in refused.err
    assert refused.err.count("\n") == 1


# --- killed, stopped, met twice ---------------------------------------------------------------------------------------


def start(project: Project, *command: str) -> subprocess.Popen[str]:
    """Start a command in its own process group, with the shell that cron has, and read until an epoch has ended.

    Its checkpoint is written meanwhile, by a thread of its own; wait for that too.
    """
    runs = project.root / ".resflow/runs"
    before = set(runs.glob("*/*.pt"))
    process = subprocess.Popen(
        command,
        cwd=project.root,
        env=project.env(PYTHONUNBUFFERED="1", SHELL="/bin/sh"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if re.match("epoch .+ validation accuracy ", line):
            deadline = time.monotonic() + 20
            while not set(runs.glob("*/*.pt")) - before and time.monotonic() < deadline:
                time.sleep(0.02)
            return process
    raise AssertionError("it ended before an epoch was done:\n" + "".join(seen))


def first_epoch(output: str) -> int:
    found = re.search(r"^epoch (\d+)/", output, re.MULTILINE)
    assert found, output
    return int(found[1])


def kill(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    os.kill(process.pid, number)
    process.wait(60)


def end(process: subprocess.Popen[str]) -> None:
    """With its group, where a test has left it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def test_a_killed_training_goes_on_to_the_bits_of_an_undisturbed_one(copied: Project) -> None:
    copied.edit(train__epochs=16)
    model, runs = copied.root / "models/model.safetensors", copied.root / ".resflow/runs"
    started: list[subprocess.Popen[str]] = []
    try:
        # dvc killed: its stage dies with it, and leaves a checkpoint
        started.append(start(copied, "dvc", "repro", "--single-item", "train"))
        stage = int((copied.root / ".resflow/train.lock").read_text())
        assert is_alive(stage)
        assert stage != started[-1].pid
        kill(started[-1])
        assert gone(stage, 60), "the stage trains on without its dvc repro"
        (kept,) = runs.iterdir()

        # damaged checkpoints are worth a line each, and the run begins anew: this is the undisturbed one
        for path in kept.glob("*.pt"):
            path.write_bytes(b"nonsense")
        whole = copied.run("resflow", "stage", "train")
        assert first_epoch(whole.out) == 1
        assert ".pt is damaged" in whole.err
        assert not runs.exists(), "a finished run leaves no checkpoints"
        undisturbed, curves = model.read_bytes(), (copied.root / "plots/train/curves.csv").read_bytes()

        # a second process is refused while the first one trains; SIGTERM ends that within seconds, without a traceback
        started.append(start(copied, "python", "-m", "resflow", "stage", "train"))  # is the same run
        os.kill(started[-1].pid, signal.SIGSTOP)
        with subprocess.Popen(
            ["resflow", "stage", "train"], cwd=copied.root, env=copied.env(), stderr=subprocess.PIPE, text=True
        ) as second:
            assert second.stderr is not None
            said = second.stderr.readline()
            second.kill()
        assert said == f"waiting for process {started[-1].pid}, which trains here\n"
        os.kill(started[-1].pid, signal.SIGTERM)
        os.kill(started[-1].pid, signal.SIGCONT)
        said = started[-1].communicate(timeout=60)[0]
        assert started[-1].returncode == 143
        last_step = max(int(path.name.split("-")[0]) for path in kept.glob("*.pt"))
        assert said.splitlines()[-2:] == [
            f"step {last_step} is kept, to go on from",
            "train: stopped by SIGTERM; run it again to go on",
        ]
        assert "Traceback" not in said

        # other inputs are another run
        text = (copied.root / "params.yaml").read_text()
        copied.edit(train__lr=0.09)
        started.append(start(copied, "resflow", "stage", "train"))
        kill(started[-1])
        (other,) = set(runs.iterdir()) - {kept}
        (copied.root / "params.yaml").write_text(text)

        # back to the first inputs, by way of dvc: it goes on, and ends in the bits of the undisturbed run
        resumed = copied.run("dvc", "repro", "--single-item", "train").out
        assert 1 < first_epoch(resumed) <= 16
        assert model.read_bytes() == undisturbed
        assert (copied.root / "plots/train/curves.csv").read_bytes() == curves
        assert {*runs.iterdir()} == {kept, other}, "a run that was left a moment ago can be taken up again"
        with (copied.root / "timings/live/plots/metrics/train/loss.tsv").open() as file:
            steps = [int(row["step"]) for row in csv.DictReader(file, delimiter="\t")]
        assert steps == list(range(1, 17)), "what is shown of a run begins with its first epoch"
    finally:
        for process in started:
            end(process)


def test_what_is_edited_while_a_stage_runs_is_not_recorded_as_what_ran(copied: Project) -> None:
    copied.edit(train__epochs=16)
    recorded = (copied.root / "dvc.lock").read_bytes()
    process = start(copied, "dvc", "repro", "--single-item", "train")
    try:
        copied.edit(train__lr=0.09)
        said = process.communicate(timeout=120)[0]
    finally:
        end(process)
    assert process.returncode != 0
    assert "train: params.yaml: train: was edited while the stage ran" in said
    assert "Traceback" not in said
    assert (copied.root / "dvc.lock").read_bytes() == recorded

    # with that undone it is recorded without being trained again; whoever then wants it trained again has it so
    copied.edit(train__lr=0.1)
    again = copied.run("dvc", "repro", "--single-item", "train").out
    assert re.search(r"going on from step (\d+) of \1\n", again)
    assert "epoch" not in again
    assert (copied.root / "dvc.lock").read_bytes() != recorded
    assert "epoch 1/16 " in copied.run("dvc", "repro", "--force", "--single-item", "train").out


def test_a_stage_tells_by_its_exit_code_whether_trying_again_may_help(copied: Project, tmp_path: Path) -> None:
    copied.edit(data__sources=[str(tmp_path / "nowhere")])
    shutil.rmtree(copied.root / "data/raw")
    assert "no source" in copied.run("resflow", "stage", "fetch", code=75).err
    copied.edit(net__name="resnet21")
    refused = copied.run("resflow", "stage", "train", code=1)
    assert refused.err.count("\n") == 1
    assert "Did you mean 'resnet" in refused.err


# --- stopped from above ----------------------------------------------------------------------------------------------

STAGE = """
import pathlib, signal, sys, time

def keep(number, frame):
    time.sleep(1)
    print("kept", flush=True)
    sys.exit(143)

pathlib.Path("begun").touch()
time.sleep(0.3)  # as modules are loaded
signal.signal(signal.SIGTERM, keep)
print("trains", flush=True)
time.sleep(60)
"""
RUNNER = """
from pathlib import Path
from resflow import pipeline

pipeline.run_stage(Path.cwd(), "slow", lambda line: print(line, flush=True))
"""


@pytest.fixture(params=["bash", "dash"])  # the former becomes the stage, the latter waits for it
def slow(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> Iterator[subprocess.Popen[str]]:
    """What runs a stage that takes a second to end when it is told to."""
    shell = shutil.which(request.param)
    if shell is None:
        pytest.skip(f"no {request.param} here")
    project = Project(tmp_path, home, {"PYTHONPATH": str(REPOSITORY / "src"), "SHELL": shell})
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text("stages:\n  slow:\n    cmd: python stage.py\n")
    for folder in (".resflow", ".dvc"):
        (tmp_path / folder).mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    command = [sys.executable, "-c", RUNNER]
    runner = subprocess.Popen(command, cwd=tmp_path, env=project.env(), stdout=subprocess.PIPE, text=True)
    yield runner
    runner.kill()
    runner.wait()


@pytest.mark.parametrize("signals", [1, 2])
def test_a_stage_whose_run_is_stopped_is_heard_out(slow: subprocess.Popen[str], signals: int) -> None:
    assert slow.stdout
    assert "trains\n" in iter(slow.stdout.readline, "")
    for _ in range(signals):
        slow.send_signal(signal.SIGINT)
        time.sleep(0.3)
    said = slow.stdout.read()
    assert slow.wait(5) == -signal.SIGINT  # a KeyboardInterrupt that nobody catches
    assert said == "kept\n"


def test_a_stage_that_is_about_to_begin_when_its_run_is_stopped_does_not(
    slow: subprocess.Popen[str], tmp_path: Path
) -> None:
    while not (tmp_path / "begun").exists():
        assert slow.poll() is None
        time.sleep(0.01)
    slow.send_signal(signal.SIGINT)
    assert slow.stdout
    said = slow.stdout.read()
    assert slow.wait(5) == -signal.SIGINT
    assert "trains" not in said
