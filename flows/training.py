"""The main job: bring the stages of dvc.yaml up to date, then judge, register and publish the model.

By hand it is `resflow run`; on a schedule, `resflow schedule` or the deployment in prefect.yaml.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow

from resflow import params, pipeline, registry, storage, store
from resflow.params import Params
from resflow.stages.paths import METRICS
from tasks import release as acts
from tasks.stages import meeting_place, run_stage
from tasks.summary import Release, Summary, show

__all__ = ["training_pipeline", "with_overrides"]


@flow(name="training-pipeline", description=__doc__, persist_result=False)
def training_pipeline(overrides: dict[str, Any] | None = None, release: bool = True) -> Summary:
    """From raw data to a registered, published network.

    Args:
        overrides: Parameters for this run alone, by their dotted names in params.yaml, such as `{"train.lr": 0.02}`.
            Such a run happens in a work tree of its own, so that your files stay as they are.
        release: Whether to judge, register and publish the model once it is evaluated.
    """
    root = pipeline.find_root(Path.cwd())
    registry.check(root)
    endpoint = _store(root, release)
    with _place(root, overrides or {}) as place:
        settings = params.load(place / "params.yaml")
        env = meeting_place(settings, endpoint) if endpoint else {}
        if place != root:
            env["PYTHONPATH"] = str(place / "src")
        stages = [run_stage(place, name, env) for name in pipeline.stage_names(place)]
        summary = Summary(
            accuracy=_metric(place, "evaluate", "accuracy"),
            parameters=_metric(place, "train", "parameters"),
            stages=stages,
            release=_release(place, settings, endpoint) if release and endpoint else None,
        )
        show(place, summary)
    return summary


def _store(root: Path, release: bool) -> store.Endpoint | None:
    """What is not released needs none, unless one was named, in which the workers of a cluster may meet."""
    if not release:
        return store.endpoint(root) if os.environ.get("AWS_ENDPOINT_URL_S3") else None
    endpoint = store.ready(root)
    store.configure_dvc(root, endpoint)  # a work tree takes it over
    return endpoint


def _release(root: Path, settings: Params, endpoint: store.Endpoint) -> Release:
    """Visible last: data, then the bundle, then the stage `prod`, which another data set never takes over by itself."""
    ran = acts.what_ran(root)
    verdict = acts.gate(root, ran, settings.gate)
    storage.ensure_bucket(endpoint, settings.store.bucket)
    registered = acts.register(root, ran)
    pushed = acts.push(root, endpoint)
    published = acts.publish(root, endpoint, settings.store.bucket, registered.version)
    withheld = settings.registry.auto_promote and verdict.incomparable
    promoted = settings.registry.auto_promote and not withheld and acts.promote(root, registered.version)
    return Release(registered=registered, pushed=pushed, published=published, promoted=promoted, withheld=withheld)


def with_overrides(root: Path, overrides: dict[str, Any]) -> str:
    """The text of params.yaml with some of its values replaced, comments kept. Raises `ParamsError`."""
    text = params.edited(root / "params.yaml", overrides, "overrides")
    params.parse(params.value(text, "overrides"), "overrides")
    return text


@contextmanager
def _place(root: Path, overrides: dict[str, Any]) -> Iterator[Path]:
    """Where the stages run: the project itself, or a work tree with the overridden parameters."""
    if not overrides:
        yield root
        return
    text = with_overrides(root, overrides)
    pipeline.mend(root)  # else a dvc.lock that a kill left half written would go into the snapshot
    commit = registry.snapshot(root, pipeline.recorded_files(root)).commit
    with pipeline.worktree(root, commit, text) as folder:
        yield folder


def _metric(root: Path, name: str, key: str) -> Any:
    return json.loads((root / METRICS / f"{name}.json").read_text())[key]
