"""What dvc.yaml declares, and what dvc.lock says was run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from resflow.errors import SetupError

__all__ = ["dependency", "differing", "find_root", "recorded", "recorded_files", "stage_names"]

OUTPUTS = ("outs", "metrics", "plots")
"""Where dvc.yaml names what a stage writes; dvc.lock has it all as `outs`."""


def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` that holds dvc.yaml and params.yaml. Raises `SetupError`."""
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return folder
    problem = "is not in a resflow project: no dvc.yaml here or above"
    raise SetupError(str(start), problem, "Change into a clone of the project")


def stage_names(root: Path) -> list[str]:
    """The stages of dvc.yaml, each after those whose outputs it depends on."""
    stages = _declared(root)
    makers = {path: name for name, stage in stages.items() for path in _paths(stage, *OUTPUTS)}

    def makers_of(dep: str) -> list[str]:
        above = (dep, *map(str, PurePosixPath(dep).parents))  # a stage may depend on a part of another's output
        return [makers[path] for path in above if path in makers]

    needs = {
        name: [maker for dep in stage.get("deps", []) for maker in makers_of(dep)] for name, stage in stages.items()
    }
    return list(TopologicalSorter(needs).static_order())


def recorded_files(root: Path) -> list[str]:
    """What a commit must hold beside tracked files to be what ran: definition, parameters, code and small outputs."""
    stages = _declared(root).values()
    named = {path for stage in stages for path in _paths(stage, "deps", *OUTPUTS)}
    return sorted({"dvc.yaml", "dvc.lock", "params.yaml", *named})


def differing(definition: bytes, lock: bytes, contents: Mapping[str, bytes], places: Sequence[str]) -> list[str]:
    """Stages' inputs and outputs at or below `places` whose `contents` are not what the stages read and wrote.

    That is, whose hash is not the one that `lock`, the text of a dvc.lock, has wherever it names them; `definition` is
    that of the dvc.yaml beside it. A lock that was caught half written names nothing, or too little.
    """
    stages, ran = yaml.safe_load(definition)["stages"], recorded(lock)
    hashes: dict[str, set[str | None]] = {path: set() for one in stages.values() for path in _paths(one, *OUTPUTS)}
    for name in stages:
        for path, digest in (item for key in ("deps", "outs") for item in ran.get((name, key), {}).items()):
            hashes.setdefault(path, set()).add(digest)
    looked_at = [path for path in hashes if any(PurePosixPath(path).is_relative_to(place) for place in places)]
    return sorted(path for path in looked_at if hashes[path] != {_digest(path, contents)})


def dependency(lock: bytes, stage: str, path: str) -> str | None:
    """The hash of what a stage read at `path`, by the text of a dvc.lock; None where it names none, or is damaged."""
    return recorded(lock).get((stage, "deps"), {}).get(path)


def recorded(lock: bytes) -> dict[tuple[str, str], dict[str, str | None]]:
    """By the text of a dvc.lock, paths and hashes of each stage's `deps` and `outs`; nothing where it is damaged."""
    try:
        return {
            (name, key): {entry["path"]: entry.get("md5") for entry in stage.get(key, [])}
            for name, stage in yaml.safe_load(lock)["stages"].items()
            for key in ("deps", "outs")
        }
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}


def _digest(path: str, contents: Mapping[str, bytes]) -> str:
    """DVC's hash of a file, or of the folder with all that lies below it."""

    def md5(content: bytes) -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    if path in contents:
        return md5(contents[path])
    below = sorted(name for name in contents if name.startswith(f"{path}/"))
    files = [{"md5": md5(contents[name]), "relpath": name.removeprefix(f"{path}/")} for name in below]
    return md5(json.dumps(files).encode()) + ".dir"  # the text that DVC keeps of a folder


def _declared(root: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load((root / "dvc.yaml").read_text())["stages"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise SetupError(str(root / "dvc.yaml"), f"cannot be read ({reason})", "Run `git checkout dvc.yaml`") from error


def _paths(stage: Mapping[str, Any], *keys: str) -> list[str]:
    entries = [entry for key in keys for entry in stage.get(key, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
