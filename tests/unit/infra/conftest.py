from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def infra():
    return ROOT / "infra"


@pytest.fixture(scope="session")
def locked():
    """Name -> version of everything in requirements.lock."""
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))


@pytest.fixture(scope="session")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="session")
def image(project):
    """Name and tag of the image that infra/Dockerfile makes."""
    return f"resflow:{project['version']}"


@pytest.fixture(scope="session")
def compose(infra):
    return yaml.safe_load((infra / "compose.yaml").read_text())


@pytest.fixture(scope="session")
def kubernetes(infra):
    """Kind -> object of infra/raycluster.yaml."""
    return {thing["kind"]: thing for thing in yaml.safe_load_all((infra / "raycluster.yaml").read_text())}


@pytest.fixture(scope="session")
def ray_up(infra):
    return yaml.safe_load((infra / "ray-cluster.yaml").read_text())


@pytest.fixture(scope="session")
def instructions(infra):
    """The instructions of the Dockerfile in order, as (word, rest), continued lines joined."""
    text = "\n".join(line for line in (infra / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(re.sub(r"\s+", " ", line).strip().split(" ", 1)) for line in lines if line.strip()]
