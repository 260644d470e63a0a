"""Where a version came from: its commit, what changed before it, what went into it, and how it measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resflow.registry.repository import Repository, mapping
from resflow.registry.tags import Version, known_versions, order

__all__ = ["Lineage", "lineage"]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where a version came from; paths are below the folder of the project."""

    commit: str
    parent: str | None
    branches: tuple[str, ...]
    """Branches that hold the commit or, where none does, its base."""
    base: str | None
    """The nearest commit before it that a branch holds; the parent may be one that resflow made beside the branch."""
    compared_with: str | None
    """The previous version, or else the base, or else the parent: what `params` is compared with."""
    params: Mapping[str, tuple[Any, Any]]
    """Dotted key to value before and value of this version; None where it is absent."""
    parameters: Mapping[str, Any]
    """Dotted key to value of all that its stages used, from dvc.lock."""
    data: Mapping[str, str]
    """Path to hash of what stages read and wrote, from dvc.lock."""
    code: Mapping[str, str]
    """Path to hash of the files in git that stages depend on, from dvc.lock."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Path of each metrics file to its values by dotted key."""


def lineage(root: Path, version: Version) -> Lineage:
    """Where `version` came from: code, data and parameters, and how it measured. Raises `RegistryError`."""
    repo = Repository(root)
    commit = repo.commit(version.commit)
    parent = repo.try_git("rev-parse", "--verify", "--quiet", f"{commit}^")
    base = repo.on_a_branch(parent) if parent else None
    previous = _previous(repo, version)
    before = previous.commit if previous else base or parent
    code, data = _hashes(repo, commit)
    return Lineage(
        commit=commit,
        parent=parent,
        branches=repo.branches(commit) or (repo.branches(base) if base else ()),
        base=base,
        compared_with=str(previous) if previous else before,
        params=_changes(_flat(repo.tree_of(before, "params.yaml")), _flat(repo.tree_of(commit, "params.yaml"))),
        parameters=_used(repo, commit),
        data=data,
        code=code,
        metrics=_metrics(repo, commit),
    )


def _previous(repo: Repository, version: Version) -> Version | None:
    older = [v for v in known_versions(repo, version.name) if order(v.version) < order(version.version)]
    return older[0] if older else None


def _used(repo: Repository, commit: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage in _ran(repo, commit):
        found |= _flat(mapping(mapping(stage).get("params")).get("params.yaml"))
    return dict(sorted(found.items()))


def _hashes(repo: Repository, commit: str) -> tuple[dict[str, str], dict[str, str]]:
    """Hashes of code and of data in dvc.lock: code is what git holds and no stage wrote."""
    outs, deps = (_listed(_ran(repo, commit), kind) for kind in ("outs", "deps"))
    held = set(repo.git("ls-tree", "-rtz", "--full-tree", "--name-only", commit).split("\0"))
    code = {path: value for path, value in deps.items() if path not in outs and repo.prefix + path in held}
    data = {path: value for path, value in (deps | outs).items() if path not in code}
    return dict(sorted(code.items())), dict(sorted(data.items()))


def _ran(repo: Repository, commit: str) -> list[Any]:
    """What dvc.lock has of each stage."""
    return list(mapping(mapping(repo.tree_of(commit, "dvc.lock")).get("stages")).values())


def _listed(stages: list[Any], kind: str) -> dict[str, str]:
    entries = [entry for stage in stages for entry in mapping(stage).get(kind) or []]
    return {entry["path"]: entry.get(entry.get("hash", "md5"), "") for entry in entries if "path" in mapping(entry)}


def _metrics(repo: Repository, commit: str) -> dict[str, dict[str, Any]]:
    tree = mapping(repo.tree_of(commit, "dvc.yaml"))
    entries = list(tree.get("metrics") or [])
    for stage in mapping(tree.get("stages")).values():
        entries += mapping(stage).get("metrics") or []
    paths = sorted({path for entry in entries for path in (entry if isinstance(entry, dict) else [entry])})
    found = {path: _flat(repo.tree_of(commit, path)) for path in paths}
    return {path: values for path, values in found.items() if values}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping(tree).items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = sorted({*before, *after})
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}
