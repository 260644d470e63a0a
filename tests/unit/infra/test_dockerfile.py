"""infra/Dockerfile and .dockerignore: what a builder would be told. No engine is asked."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

import pytest
from docker.utils.build import exclude_paths

KNOWN = {"ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "USER", "WORKDIR"}


def of(instructions, word):
    return [rest for name, rest in instructions if name == word]


def sources(instructions):
    """The paths that COPY takes from the build context."""
    for copied in of(instructions, "COPY"):
        *paths, _ = [part for part in shlex.split(copied) if not part.startswith("--")]
        yield from paths


def test_only_known_instructions_are_used_and_the_base_comes_first(instructions):
    assert {word for word, _ in instructions} <= KNOWN
    assert instructions[0][0] == "FROM"
    assert len(of(instructions, "FROM")) == 1


def test_the_base_is_pinned_to_a_python_that_the_project_supports(instructions, project):
    name, version = re.fullmatch(r"(\w+):(\d+\.\d+)-slim-bookworm", of(instructions, "FROM")[0]).groups()
    assert name == "python"
    assert project["requires-python"] == f">={version}"


def test_the_image_runs_as_a_user_that_it_made_and_not_as_root(instructions):
    *_, user = of(instructions, "USER")
    assert user == "resflow"
    assert any(re.search(rf"useradd .*{user}\b", command) for command in of(instructions, "RUN"))
    assert instructions.index(("USER", user)) < min(i for i, (word, _) in enumerate(instructions) if word == "COPY")


def test_the_environment_is_installed_by_the_make_target_from_the_lock_file(root, instructions, tmp_path):
    command = next(command for command in of(instructions, "RUN") if "make" in command and "apt-get" not in command)
    assert command.endswith("make install BIN=/opt/venv/bin")
    copied = of(instructions, "COPY")[0]
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "README.md"):
        assert name in copied.split()
        (tmp_path / name).write_bytes((root / name).read_bytes())
    plan = subprocess.run(
        ["make", "--dry-run", "install", "BIN=/opt/venv/bin"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    installs = [line for line in plan.splitlines() if " pip install " in line]
    assert all(line.startswith("/opt/venv/bin/python -m pip install ") for line in installs)
    assert "--require-hashes" in installs[0]
    assert "torch==" in installs[1]
    assert "--editable ." in installs[2]


def test_what_the_makefile_writes_to_in_the_image_exists(instructions):
    command = next(command for command in of(instructions, "RUN") if "make install" in command)
    assert "mkdir .venv" in command  # `make install` keeps its notes there, wherever BIN is
    assert "python -m venv /opt/venv" in command


def test_commands_are_found_by_login_shells_too(instructions):
    assert any(command.startswith("PATH=/opt/venv/bin:") for command in of(instructions, "ENV"))
    assert any("/opt/venv/bin" in command and "/etc/profile.d/" in command for command in of(instructions, "RUN"))


def test_there_is_no_entry_point_that_would_swallow_the_commands_of_others(instructions):
    assert "ENTRYPOINT" not in {word for word, _ in instructions}
    assert json.loads(of(instructions, "CMD")[0])[0] == "resflow"


def test_the_commands_are_valid_shell(instructions):
    for command in of(instructions, "RUN"):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_packages_leave_no_lists_behind(instructions):
    installs = [command for command in of(instructions, "RUN") if "apt-get install" in command]
    assert installs
    for command in installs:
        assert "--no-install-recommends" in command
        assert "rm -rf /var/lib/apt/lists/*" in command
        assert {"git", "make", "rsync"} <= set(command.split())


@pytest.fixture
def context(root, tmp_path):
    """What would be sent to the builder, of a tree like ours with everything in it that a clone may hold."""
    paths = [
        *(
            "Makefile",
            "pyproject.toml",
            "requirements.lock",
            "README.md",
            "LICENSE",
            "params.yaml",
            "dvc.yaml",
            "dvc.lock",
        ),
        *("src/resflow/params.py", "src/resflow/nets/file.py", "flows/training.py", "tasks/stages.py"),
        *("experiments/article.yaml", "prefect.yaml", "infra/.env", "infra/compose.yaml", ".env", "src/resflow/.env"),
        *(
            ".git/config",
            ".venv/bin/python",
            ".resflow/store/keys.json",
            ".dvc/config",
            ".dvc/config.local",
            ".dvc/cache/a",
        ),
        *(
            "data/raw/a",
            "models/model.safetensors",
            "timings/a.json",
            "src/resflow/__pycache__/a.pyc",
            "tests/unit/a.py",
        ),
    ]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    rules = [line for line in (root / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    return {path for path in exclude_paths(str(tmp_path), rules) if (tmp_path / path).is_file()}


def test_the_builder_gets_code_and_neither_secrets_nor_history_nor_data(context):
    assert {path for path in context if path.endswith((".env", ".local", ".pyc"))} == set()
    assert {path.split("/")[0] for path in context} & {
        ".git",
        ".venv",
        ".resflow",
        ".dvc",
        "data",
        "models",
        "infra",
    } == set()
    assert {"src/resflow/nets/file.py", "flows/training.py", "tasks/stages.py", "params.yaml", "dvc.yaml"} <= context


def test_what_is_copied_by_name_is_sent_to_the_builder(instructions, context):
    assert {path for path in sources(instructions) if path != "."} <= context
