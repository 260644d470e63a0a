"""The command line: help for everything, nothing heavy loaded for it, plain output on pipes, one list of exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer

import resflow
from resflow import cli, terminal
from resflow.cli import models, pipeline
from resflow.errors import StageError
from resflow.pipeline import environment, run_stage
from resflow.registry import Version

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "ray", "prefect", "dvc", "gto", "boto3", "pydantic", "numpy", "matplotlib", "httpx"}


def commands(node: Any = None, path: tuple[str, ...] = ("resflow",)) -> dict[tuple[str, ...], Any]:
    """Every command and group by its words."""
    node = node or typer.main.get_command(cli.app)
    found = {path: node}
    for name, inner in getattr(node, "commands", {}).items():
        found |= commands(inner, (*path, name))
    return found


ALL = commands()


def named(words: tuple[str, ...]) -> str:
    return " ".join(words)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its output on pipes."""
    environment = {**os.environ, "PYTHONPATH": str(Path(resflow.__file__).parents[1])}
    command = [sys.executable, "-m", "resflow", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", ALL, ids=named)
def test_every_command_and_every_option_has_help(words: tuple[str, ...]) -> None:
    command = ALL[words]
    assert (command.help or "").strip().endswith(".")
    bare = [option.name for option in command.params if option.name != "help" and not getattr(option, "help", None)]
    assert bare == []


@pytest.mark.parametrize("words", ALL, ids=named)
def test_every_command_has_examples_that_parse(words: tuple[str, ...]) -> None:
    """Parsed by the command itself, so that an option that was renamed is found."""
    examples = re.findall(r"`(resflow [^`]+)`", (ALL[words].epilog or "").partition("**Exit codes**")[0])
    assert examples
    for example in examples:
        given = shlex.split(example.partition(" > ")[0])
        at = max(len(known) for known in ALL if tuple(given[: len(known)]) == known)
        assert tuple(given[:at])[: len(words)] == words
        with ALL[tuple(given[:at])].make_context(given[at - 1], given[at:]):
            pass


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, resflow.cli; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(resflow.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_help_lists_the_commands_without_colours_on_a_pipe() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert all(f"│ {words[1]} " in done.stdout for words in ALL if len(words) == 2)


@pytest.mark.parametrize("arguments", [["nonsense"], ["run", "--nonsense"], ["models", "pull"], ["stage", "nonsense"]])
def test_wrong_usage_ends_with_code_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_the_page_of_commands_names_every_command_and_exit_code() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    missing = [named(words) for words in ALL if not hasattr(ALL[words], "commands") and f"`{named(words)}" not in page]
    assert missing == []
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == set(cli.EXIT_CODES)


@pytest.mark.parametrize(
    ("version", "apart", "said", "unsaid"),
    [
        ("m@v0.1.0", False, ["models list", "resflow predict IMAGE  ", "dvc metrics show"], ["--model", "no-release"]),
        (None, False, ["resflow predict IMAGE  ", "Nothing was released"], ["models list"]),
        ("m@v0.1.0", True, ["models show m@v0.1.0", "predict IMAGE --model m@v0.1.0"], ["dvc metrics show"]),
        (None, True, ["Nothing of this run stays", "Without --no-release"], ["Next:", "predict"]),
    ],
)
def test_after_a_run_only_commands_that_show_its_model_are_named(
    version: str | None, apart: bool, said: list[str], unsaid: list[str]
) -> None:
    text = "\n".join(pipeline._next(version, apart))
    assert [words for words in said if words not in text] == []
    assert [words for words in unsaid if words in text] == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "resflow run: stopped with Ctrl-C; the same command goes on\n"),
        (SystemExit(143), "resflow run: ended by SIGTERM; the same command goes on\n"),
        (SystemExit(1), ""),
        (StageError("train", "lr is 9", "Lower it"), ""),
    ],
    ids=repr,
)
def test_a_run_that_is_stopped_says_in_one_line_how_to_go_on(
    error: BaseException, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)), pipeline._end_told(tmp_path, embedded=True):
        raise error
    assert capfd.readouterr() == ("", said), "no store runs there, of which it would have to tell"


RUNS = """
import os, signal, sys
from pathlib import Path
from resflow import __main__, cli
from resflow.cli import pipeline

folder, name = sys.argv.pop(), sys.argv.pop()

@cli.app.command()
def held() -> None:
    print("epoch 1/2")
    with pipeline._end_told(Path(folder), embedded=False):
        os.kill(os.getpid(), getattr(signal, name))

__main__.main()
"""


STARTS = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "resflow.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
from resflow.__main__ import main
main()
"""


@pytest.mark.parametrize(("ignored", "code"), [(False, -signal.SIGINT), (True, 0)])
def test_ctrl_c_while_the_command_is_loaded_ends_it_without_a_traceback_unless_it_is_ignored(
    ignored: bool, code: int
) -> None:
    """A shell has it ignored in what it does not wait for."""

    def ignore() -> None:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    command = [sys.executable, "-c", STARTS, "--help"]
    done = subprocess.run(command, preexec_fn=ignore, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr == ""
    assert ("Usage" in done.stdout) == ignored


BUILDS = """
import os, signal
from resflow import __main__, cli

@cli.app.command()
def another(number: "os.kill(os.getpid(), signal.SIGINT) or int" = 0) -> None:
    pass

__main__.main()
"""


def test_ctrl_c_while_the_commands_are_put_together_is_no_traceback_either() -> None:
    done = subprocess.run([sys.executable, "-c", BUILDS, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_run_that_is_stopped_ends_with_its_code_though_nobody_reads_along(
    name: str, code: int, tmp_path: Path
) -> None:
    """As in `resflow run 2>&1 | tee log`, where Ctrl-C ends the reader too."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", RUNS, "held", name, str(tmp_path)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, env=buffered, stdout=writer, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == code


def test_a_line_that_nobody_reads_is_no_traceback() -> None:
    """As in `resflow run | head`."""
    tells = (
        "import logging, os; from resflow.cli import server; server.show_tasks()\n"
        "logger = logging.getLogger('prefect.task_runs'); logger.setLevel('INFO')\n"
        "logger.info('epoch 1/3', extra={'resflow': True}); os._exit(0)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", tells], stdout=writer, stderr=subprocess.PIPE, text=True, check=True)
    os.close(writer)
    assert done.stderr == ""


def test_the_files_of_a_version_are_got_from_any_folder_also_below_that_of_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "Ada's work"
    root = top / "below"
    root.mkdir(parents=True)
    (root / "dvc.yaml").write_text(json.dumps({"stages": {"a": {"cmd": "echo made > out", "outs": ["out"]}}}))
    (root / "params.yaml").write_text("seed: 0\n")
    monkeypatch.setenv("PYTHONPATH", str(Path(resflow.__file__).parents[1]))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")  # there is a store to use: none is started
    git, dvc = ("git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org"), (sys.executable, "-m", "dvc")

    def command(*words: str, place: Path = root) -> str:
        done = subprocess.run(words, cwd=place, env=environment(), check=True, capture_output=True, text=True)
        return done.stdout.strip()

    command("git", "init", "-q", place=top)
    command(*dvc, "init", "-q", "--subdir")
    command(*dvc, "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    run_stage(root, "a", lambda line: None)
    command(*dvc, "push", "-q")
    command(*git, "add", "-A")
    command(*git, "commit", "-qm", "Start")
    made = datetime.now(UTC)
    version = Version(
        name="m", version="v0.1.0", commit=command("git", "rev-parse", "HEAD"), stages=(), created_at=made, message=""
    )
    command("bash", "-ec", models._recipe(root, version), place=tmp_path)
    assert (tmp_path / "m-v0.1.0" / "below" / "out").read_text() == "made\n"


def test_an_error_is_one_plain_line_after_all_other_output(capfd: pytest.CaptureFixture[str]) -> None:
    terminal.error(str(StageError("train", "git said:\nfatal: [red]no[/]", "Mend it")))
    assert capfd.readouterr().err == "error: train: git said: fatal: [red]no[/]. Mend it\n"


SAYS = """
import logging
from resflow.cli.server import show_tasks
show_tasks()
logger = logging.getLogger("prefect.task_runs")
logger.setLevel(logging.INFO)
for line, passing in (("starts", False), ("a third " + "." * 100, True), ("two thirds", True), ("done", False)):
    logger.info(line, extra={"resflow": True, "passing": passing})
logger.info("what Prefect says itself")
"""


def test_on_a_terminal_a_line_takes_the_place_of_one_that_is_passing() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "20"}
    subprocess.run([sys.executable, "-c", SAYS], env=environment, stdin=theirs, stdout=theirs, check=True)
    said = os.read(ours, 1000).decode()
    os.close(theirs)
    os.close(ours)
    erased = "\x1b[1A\x1b[2K"
    assert said == f"starts\r\na third ...........\r\n{erased}two thirds\r\n{erased}done\r\n"


def test_on_a_pipe_every_line_stays() -> None:
    done = subprocess.run([sys.executable, "-c", SAYS], capture_output=True, text=True, check=True)
    assert done.stdout == f"starts\na third {'.' * 100}\ntwo thirds\ndone\n"


def test_a_table_on_a_pipe_is_aligned_and_never_cut(capfd: pytest.CaptureFixture[str]) -> None:
    long = "s3://bucket/" + "x" * 300
    terminal.table([("a", "[bold]1[/]", ""), ("bcd", long, "two\nlines")], "name", "value", "")
    out = capfd.readouterr().out
    assert out.splitlines() == [
        "name  value",
        "a     [bold]1[/]",
        f"bcd   {long}  two lines",
    ]
    assert "\x1b" not in out


def test_an_image_that_does_not_exist_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    model, image = tmp_path / "model.safetensors", tmp_path / "none.png"
    script = (
        "import sys\nfrom resflow.cli import main\n"
        f"sys.argv = ['resflow', 'predict', {str(image)!r}, '--model', {str(model)!r}]\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {image}: does not exist. Give a PNG or JPEG file\n"
    assert done.stdout == "False\n"
