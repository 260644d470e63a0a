"""The tasks that act on the results of the stages: gate, register, push, publish, promote.

Each is idempotent and keyed by what is in dvc.lock, so that a run killed anywhere among them is finished by the next.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from resflow import pipeline, registry, storage
from resflow.errors import GateError, RegistryError
from resflow.evaluation.gate import Verdict, judge
from resflow.params import Gate
from resflow.registry import Snapshot, Version
from resflow.stages.paths import METRICS, MODEL, PLOTS, PREPARED, SHEET
from resflow.storage import Published
from resflow.store import Endpoint
from tasks.stages import can_help, log

__all__ = ["Registered", "bundle", "gate", "promote", "publish", "push", "register", "what_ran"]


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version and who it was made as."""

    version: Version
    identity: str | None
    """The name it was made under where git has none; None where the version was there already."""


def what_ran(root: Path) -> Version | Snapshot:
    """The version that the work tree holds, or else a commit to be one: what is judged, registered and published.

    From here on nothing that another command writes counts. Raises `RegistryError` where one has come between stages,
    or an edit.
    """
    ran = registry.find(root, registry.artifact(root).name) or registry.snapshot(root, pipeline.recorded_files(root))
    bundle(root, ran.commit)
    if edited := pipeline.edited(root):
        problem = "was edited after a stage had run with what was there before, so that no commit holds what ran"
        raise RegistryError(", ".join(edited), problem, "Run `resflow run` again")
    return ran


@task(task_run_name="gate", cache_policy=NO_CACHE)
def gate(root: Path, ran: Version | Snapshot, limits: Gate) -> Verdict:
    """Hold the metrics against the limits and, on the same test data, against production. Raises `GateError`."""
    production = registry.production(root, registry.artifact(root).name)
    theirs, incomparable = None, False
    if production and not (isinstance(ran, Version) and ran.version == production.version):
        incomparable = _test_data(root, ran.commit) != _test_data(root, production.commit)
        theirs = None if incomparable else _evaluation(root, production.commit)
    verdict = judge(_evaluation(root, ran.commit), theirs, limits, incomparable=incomparable)
    if not verdict.passed:
        mend = "Nothing was registered. Improve the model, or change `gate` in params.yaml knowingly"
        raise GateError("gate", verdict.text, mend)
    log(verdict.text)
    return verdict


@task(task_run_name="register", cache_policy=NO_CACHE)
def register(root: Path, ran: Version | Snapshot) -> Registered:
    """Make what ran a version, unless it is one. Raises `RegistryError`."""
    if isinstance(ran, Version):
        log(f"{ran} holds exactly this already: nothing to register")
        return Registered(version=ran, identity=None)
    name, accuracy = registry.artifact(root).name, _evaluation(root, ran.commit)["accuracy"]
    version = registry.register(root, name, ran, f"test accuracy {accuracy:.2%}")
    log(f"registered {version} at commit {version.commit[:12]}")
    return Registered(version=version, identity=ran.identity)


@task(task_run_name="push", retries=2, retry_delay_seconds=2, retry_condition_fn=can_help, cache_policy=NO_CACHE)
def push(root: Path, endpoint: Endpoint) -> int:
    """Send data and models to the DVC remote; returns how many files it lacked. Raises `StageError`."""
    return pipeline.push(root, log, endpoint.environment())


@task(task_run_name="publish", retries=2, retry_delay_seconds=2, retry_condition_fn=can_help, cache_policy=NO_CACHE)
def publish(root: Path, endpoint: Endpoint, bucket: str, version: Version) -> Published:
    """Send the bundle of `version` to the store; its manifest, last, makes it visible. Raises `StoreError`.

    Raises `RegistryError` where the model is another one by now.
    """
    extra = {"name": version.name, "version": version.version, "commit": version.commit}
    published = storage.publish(endpoint, bucket, version.prefix, bundle(root, version.commit), extra)
    log(f"published {published.url}" if published.created else f"{published.url} is there already: nothing to upload")
    return published


@task(task_run_name="promote", cache_policy=NO_CACHE)
def promote(root: Path, version: Version) -> bool:
    """Give the version the stage `prod`; False where it has it. Raises `RegistryError`."""
    return registry.promote(root, version.name, version.version)


def bundle(root: Path, commit: str) -> dict[str, bytes]:
    """What is published of a commit: files that it holds, whatever became of them since, and the model, as a file.

    All are held against the hashes in that commit's dvc.lock, and returned as contents: a file could be swapped between
    this and its upload. Raises `RegistryError` where something else has come into the place of what ran.
    """
    names = [Path("params.yaml"), Path("dvc.lock"), SHEET]
    names += [path.relative_to(root) for folder in (METRICS, PLOTS) for path in sorted((root / folder).rglob("*.*"))]
    contents: dict[str, bytes] = {}
    for name in map(str, names):
        with suppress(RegistryError):  # a file of the user's own among the plots
            contents[name] = registry.read(root, commit, name)
    with suppress(OSError):  # another command that trains has removed it, which is told below
        contents[str(MODEL)] = (root / MODEL).read_bytes()
    definition, lock = (registry.read(root, commit, name) for name in ("dvc.yaml", "dvc.lock"))
    wrong = pipeline.differing(definition, lock, contents, [str(place) for place in (MODEL, SHEET, METRICS, PLOTS)])
    if wrong:
        problem = f"not what dvc.lock of commit {commit[:12]} names: another command has changed it since that ran"
        raise RegistryError(", ".join(wrong), problem, "Run `resflow run` again, and no `dvc repro` beside it")
    flat = {str(path): path.name for path in (MODEL, SHEET)}
    return {flat.get(name, name): content for name, content in contents.items()}


def _evaluation(root: Path, commit: str) -> dict[str, Any]:
    return dict(json.loads(registry.read(root, commit, f"{METRICS}/evaluate.json")))


def _test_data(root: Path, commit: str) -> str | None:
    """The hash of the images and labels that the model of a commit was measured on.

    None where no dvc.lock that can be read says so, as of a version that was tagged by hand.
    """
    try:
        lock = registry.read(root, commit, "dvc.lock")
    except RegistryError:
        return None
    return pipeline.dependency(lock, "evaluate", f"{PREPARED}/test")
