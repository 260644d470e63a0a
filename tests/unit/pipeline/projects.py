"""Small projects of DVC's: `repository(tmp_path, {"a": {"cmd": "true"}})`."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from resflow import pipeline


def declare(root: Path, stages: object) -> Path:
    """Write dvc.yaml; returns `root`."""
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return root


def command(root: Path, *words: str) -> None:
    """Run one in `root`; it must succeed."""
    subprocess.run(words, cwd=root, env=pipeline.environment(), check=True, capture_output=True)


def repository(root: Path, stages: str | dict[str, Any], lock: str | None = None) -> Path:
    """Some stages, or one, of a command; returns the path of its dvc.lock."""
    declare(root, {"a": {"cmd": stages}} if isinstance(stages, str) else stages)
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    if lock is not None:
        (root / "dvc.lock").write_text(lock)
    return root / "dvc.lock"
