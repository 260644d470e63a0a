"""The commands that infra's files and README.md tell others to run: each exists, with the options given to it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TOOLS = {"make", "prefect", "ray", "resflow", "weed"}
ENDS = {"&&", "||", ";", "|", "&", "(", ")", "#"}


def words_of(text):
    """The words of one shell line; what holds several commands apart is a word of its own."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    return list(lexer)


def commands_in(words):
    """The calls of our tools in a list of words, also inside `bash -c '...'`."""
    words = list(words)
    for at, word in enumerate(words):
        if word in ("bash", "sh") and words[at + 1 : at + 2] == ["-c"]:
            yield from commands_in(words_of(words[at + 2]))
    for start in (at for at, word in enumerate(words) if word in TOOLS and not is_value(words, at)):
        end = next((at for at in range(start, len(words)) if words[at] in ENDS), len(words))
        yield tuple(words[start:end])


def is_value(words, at):
    """Whether the word is no command but a value, as in `--pool resflow`."""
    return at > 0 and words[at - 1].startswith("-") and words[at - 1] != "--"


def fenced(path):
    """The lines of the Markdown file's bash blocks, continued ones joined."""
    for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line and not line.startswith("#"))


def headers(path):
    """The lines of a file's first comment that are commands."""
    text = path.read_text().split("\n\n")[0].replace("\\\n#", " ")
    yield from re.findall(r"^#   (?:\d\. )?((?:ray|docker|kubectl|cp) .*)$", text, re.MULTILINE)


def everything(infra, instructions):
    compose = yaml.safe_load((infra / "compose.yaml").read_text())
    for service in compose["services"].values():
        yield service.get("command", [])
        yield service.get("healthcheck", {}).get("test", [])
    for thing in yaml.safe_load_all((infra / "raycluster.yaml").read_text()):
        yield from lists_under(thing, "command")
    for key, value in yaml.safe_load((infra / "ray-cluster.yaml").read_text()).items():
        if key.endswith("_commands"):
            yield from map(words_of, value)
    for word, rest in instructions:
        if word == "RUN":
            yield words_of(re.sub(r"apt-get install [^&]*", "", rest))  # names of packages, not commands
        if word == "CMD":
            yield yaml.safe_load(rest)
    for path in infra.iterdir():
        if path.suffix == ".md":
            yield from map(words_of, fenced(path))
        elif path.is_file():
            yield from map(words_of, headers(path))


def lists_under(thing, name):
    if isinstance(thing, dict):
        for key, value in thing.items():
            if key == name and isinstance(value, list):
                yield value
            else:
                yield from lists_under(value, name)
    elif isinstance(thing, list):
        for item in thing:
            yield from lists_under(item, name)


@pytest.fixture(scope="module")
def commands(infra, instructions):
    return sorted({command for words in everything(infra, instructions) for command in commands_in(words)})


def of(commands, tool):
    found = [list(command[1:]) for command in commands if command[0] == tool]
    assert found, f"no command of {tool} was found"
    return found


def check_click(root, arguments):
    """Follow the words through a tree of click commands; fail on an unknown command or option."""
    command, path = root, []
    words = iter(arguments)
    for word in words:
        options = {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}
        if word == "--help":
            continue
        if word.startswith("-"):
            name, _, value = word.partition("=")
            assert name in options, f"{' '.join(path)} has no option {name}"
            if not value and not options[name].is_flag:
                next(words)
        elif hasattr(command, "commands"):
            assert word in command.commands, f"{' '.join(path)} has no command {word}"
            command, path = command.commands[word], [*path, word]


def test_the_commands_of_ray_exist(commands):
    from ray.scripts.scripts import cli

    for arguments in of(commands, "ray"):
        check_click(cli, arguments)


def test_the_commands_of_prefect_exist(commands):
    import prefect.cli  # noqa: F401  # registers the commands
    from prefect.cli._app import _app

    for arguments in of(commands, "prefect"):
        _app.parse_args(arguments, print_error=False, exit_on_error=False)


def test_the_commands_of_resflow_exist(commands):
    from typer.main import get_command

    from resflow import cli

    for arguments in of(commands, "resflow"):
        check_click(get_command(cli.app), arguments)


def test_the_flags_of_weed_exist(commands):
    weed = Path(sys.executable).with_name("weed")
    for name, *flags in of(commands, "weed"):
        told = subprocess.run([weed, name, "-h"], capture_output=True, text=True, check=False)
        known = set(re.findall(r"^  (-[\w.]+)", told.stdout + told.stderr, re.MULTILINE))
        assert {flag.partition("=")[0] for flag in flags} <= known


def test_the_targets_of_make_exist(root, commands):
    targets = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.MULTILINE))
    for arguments in of(commands, "make"):
        assert {word for word in arguments if "=" not in word} <= targets


def test_the_work_pool_is_that_of_the_deployment(root, commands):
    deployments = root / "prefect.yaml"
    if not deployments.exists():
        pytest.skip("there is no prefect.yaml")
    pools = {deployment["work_pool"]["name"] for deployment in yaml.safe_load(deployments.read_text())["deployments"]}
    served = {
        arguments[arguments.index("--pool") + 1] for arguments in of(commands, "prefect") if "--pool" in arguments
    }
    assert served == pools


def test_python_snippets_compile(infra):
    compose = yaml.safe_load((infra / "compose.yaml").read_text())
    for service in compose["services"].values():
        for words in (service.get("command", []), service.get("healthcheck", {}).get("test", [])):
            if "python" in words:
                compile(words[words.index("-c") + 1], "snippet", "exec")


def test_shell_lines_are_valid(infra):
    for line in [*fenced(infra / "README.md"), *(line for path in infra.glob("*.yaml") for line in headers(path))]:
        subprocess.run(["bash", "-n", "-c", line], check=True)


@pytest.mark.parametrize(
    "line",
    [
        "ray start --heady",
        "docker compose exec prefect-worker ray strat --head",
        "bash -c 'true && ray start --adress=x'",
        "ulimit -n 65536; ray start --addres=x:1",
    ],
)
def test_a_command_that_does_not_exist_is_found(line):
    from ray.scripts.scripts import cli

    (command,) = commands_in(words_of(line))
    with pytest.raises(AssertionError, match="has no"):
        check_click(cli, command[1:])
