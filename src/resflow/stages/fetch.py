"""Stage `fetch`: the raw files of params.yaml in, verified, from the first source that has them."""

from __future__ import annotations

from pathlib import Path

from resflow import storage
from resflow.data.fetch import fetch
from resflow.params import Params, project_of
from resflow.stages.paths import RAW, STATE

__all__ = ["run"]


def run(root: Path, params: Params) -> None:
    """Fetch under `root`. Raises `SourceError`, or `SetupError` when writing fails."""
    files, home = [file for _, file in params.data.files], project_of(root)
    fetch(files, params.data.sources, root / RAW, root / STATE / "downloads", root=home, s3=storage.download)
