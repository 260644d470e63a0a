"""The repository's papers: what they promise is so."""

from __future__ import annotations

import configparser
import hashlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def layers():
    """The rooms of .importlinter, highest first; those in one line stand side by side."""
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter")
    return [re.findall(r"[\w.]+", line) for line in rules["importlinter:contract:rooms"]["layers"].split("\n") if line]


def test_every_module_of_resflow_has_a_room():
    rooms = {room for layer in layers() for room in layer}
    modules = {
        path.stem
        for path in (ROOT / "src/resflow").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert {f"resflow.{name}" for name in modules - {"__init__"}} <= rooms


def test_the_map_shows_every_room_that_exists():
    page = (ROOT / "docs/architecture.md").read_text()
    diagram = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL).group(1)
    shown = set(re.findall(r'\["([\w.]+)<br>', diagram))
    rooms = {room for layer in layers() for room in layer}
    assert shown <= rooms
    assert {room for room in rooms - shown if list((ROOT / "src").glob(room.replace(".", "/") + "*"))} == set()


def test_the_arrows_of_the_map_point_downwards():
    diagram = re.search(r"```mermaid\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL).group(1)
    names = dict(re.findall(r'(\w+)\["([\w.]+)<br>', diagram))
    depth = {room: level for level, layer in enumerate(layers()) for room in layer}
    arrows = re.findall(r"^\s*(\w+)(?:\[[^\]]*\])? --> (\w+)", diagram, re.MULTILINE)
    assert len(arrows) > 10
    assert all(depth[names[upper]] < depth[names[lower]] for upper, lower in arrows)


def test_the_hooks_are_valid_and_run_what_make_lint_runs():
    clientlib = pytest.importorskip("pre_commit.clientlib")
    hooks = [
        hook for repo in clientlib.load_config(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
    ]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    tools = {words.split("/")[-1] for words in re.findall(r"\$\(BIN\)/\S+(?= |$)", lint, re.MULTILINE)}
    assert tools
    assert tools <= {Path(hook["entry"].split()[0]).name for hook in hooks}


def test_the_hooks_download_nothing():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    assert {hook["language"] for hook in config["repos"][0]["hooks"]} <= {"system", "pygrep", "fail"}


def test_the_license_is_the_whole_of_apache_2():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_changelog_begins_with_what_is_not_released():
    titles = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[0] == "Unreleased"


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not page.parent.joinpath(target).exists()] == []


def test_the_make_targets_that_contributors_are_told_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)\b", (ROOT / "CONTRIBUTING.md").read_text())) <= targets
