"""The tasks that act on the results of the stages: gate, register, push, publish, promote.

Each is idempotent and keyed by what is in dvc.lock, so that a run killed anywhere among them is finished by the next.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from resflow import pipeline, registry, storage
from resflow.errors import GateError, RegistryError
from resflow.evaluation.gate import Verdict, judge
from resflow.params import Gate
from resflow.pipeline import Pushed
from resflow.registry import Version
from resflow.stages.paths import METRICS, MODEL, PLOTS, SHEET
from resflow.storage import Published
from resflow.store import Endpoint
from tasks.stages import can_help, log

__all__ = ["Registered", "gate", "promote", "publish", "push", "register"]


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version and who it was made as."""

    version: Version
    identity: str | None
    """The name it was made under where git has none; None where the version was there already."""


@task(task_run_name="gate", cache_policy=NO_CACHE)
def gate(root: Path, limits: Gate) -> Verdict:
    """Hold the metrics against the limits and against production. Raises `GateError`."""
    name = registry.artifact(root).name
    metrics = json.loads((root / METRICS / "evaluate.json").read_text())
    production = registry.production(root, name)
    theirs = None
    if production and not _is_current(root, production):
        theirs = json.loads(registry.read(root, production.commit, f"{METRICS}/evaluate.json"))
    verdict = judge(metrics, theirs, limits)
    if not verdict.passed:
        mend = "Nothing was registered. Improve the model, or change `gate` in params.yaml knowingly"
        raise GateError("gate", verdict.text, mend)
    log(verdict.text)
    return verdict


@task(task_run_name="register", cache_policy=NO_CACHE)
def register(root: Path) -> Registered:
    """Make what ran a version, unless it is one. Raises `RegistryError`."""
    name = registry.artifact(root).name
    known = registry.find(root, name)
    if known:
        log(f"{name}@{known.version} holds exactly this already: nothing to register")
        return Registered(version=known, identity=None)
    snapshot = registry.snapshot(root, pipeline.recorded_files(root))
    accuracy = json.loads((root / METRICS / "evaluate.json").read_text())["accuracy"]
    version = registry.register(root, name, snapshot, f"test accuracy {accuracy:.2%}")
    log(f"registered {name}@{version.version} at commit {version.commit[:12]}")
    return Registered(version=version, identity=snapshot.identity)


@task(task_run_name="push", retries=2, retry_delay_seconds=2, retry_condition_fn=can_help, cache_policy=NO_CACHE)
def push(root: Path, endpoint: Endpoint) -> Pushed:
    """Send data and models to the DVC remote. Raises `StageError`."""
    return pipeline.push(root, log, endpoint.environment())


@task(task_run_name="publish", retries=2, retry_delay_seconds=2, retry_condition_fn=can_help, cache_policy=NO_CACHE)
def publish(root: Path, endpoint: Endpoint, bucket: str, version: Version) -> Published:
    """Send the bundle of `version` to the store; its manifest, last, makes it visible. Raises `StoreError`."""
    prefix = f"models/{version.name}/{version.version}"
    extra = {"name": version.name, "version": version.version, "commit": version.commit}
    published = storage.publish(endpoint, bucket, prefix, _bundle(root, version), extra)
    log(f"published {published.url}" if published.created else f"{published.url} is there already: nothing to upload")
    return published


@task(task_run_name="promote", cache_policy=NO_CACHE)
def promote(root: Path, version: Version) -> bool:
    """Give the version the stage `prod`; False where it has it. Raises `RegistryError`."""
    return registry.promote(root, version.name, version.version)


def _is_current(root: Path, version: Version) -> bool:
    known = registry.find(root, version.name)
    return known is not None and known.version == version.version


def _bundle(root: Path, version: Version) -> dict[str, Path | bytes]:
    """Everything from the version's commit, so that it is what ran even if a file was edited since."""
    names = [Path("params.yaml"), Path("dvc.lock"), SHEET]
    names += [path.relative_to(root) for folder in (METRICS, PLOTS) for path in sorted((root / folder).rglob("*.*"))]
    bundle: dict[str, Path | bytes] = {MODEL.name: root / MODEL}
    for name in names:
        try:
            bundle[name.name if name == SHEET else str(name)] = registry.read(root, version.commit, str(name))
        except RegistryError:
            continue  # a file of the user's own among the plots
    return bundle
