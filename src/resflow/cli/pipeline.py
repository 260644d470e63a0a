"""`resflow run`, `stage` and `schedule`: the pipeline, once, in part, and again and again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from resflow import terminal
from resflow.cli import server
from resflow.cli.common import EXIT_CODES, ParamsFile, Settings, examples, overrides_of, parameters, project
from resflow.errors import ResflowError

__all__ = ["commands"]

commands = typer.Typer()

STAYS = "The store stays up for `dvc pull` and `resflow models pull`; `resflow store stop` ends it."


@commands.command(
    epilog=examples(
        "resflow run",
        "resflow run -S train.lr=0.02 -S train.epochs=5",
        "resflow run --params experiments/article.yaml --no-release",
    )
)
def run(
    settings: Settings = None,
    params_file: ParamsFile = None,
    release: Annotated[bool, typer.Option(help="Judge, register and publish the model.")] = True,
) -> None:
    """Run the whole pipeline: data, training, evaluation, gate, registration, publication.

    What is up to date is not run again. With --set or --params it runs in a work tree of its own, and your files
    stay as they are: what it releases is found by its version, and with --no-release nothing of it is kept.
    """
    from resflow import store

    root = project()
    overrides = overrides_of(settings or [], params_file)
    _check_before(root, overrides, release)
    embedded = release and not os.environ.get("AWS_ENDPOINT_URL_S3")
    with _end_told(root, embedded):
        if embedded:
            store.start(root, wait=False)  # it gets ready while Prefect is imported
        os.chdir(root)
        wait = server.start()
        flow = _flow()
        wait()
        summary = flow(overrides=overrides or None, release=release)
    terminal.table(summary.rows())
    typer.echo("")
    for line in _next(str(summary.release.registered.version) if summary.release else None, bool(overrides)):
        typer.echo(line)
    if embedded:
        typer.echo(STAYS)


@commands.command(epilog=examples("resflow stage train"))
def stage(
    name: Annotated[str, typer.Argument(help="fetch, prepare, analyze, train, evaluate or robustness.")],
) -> None:
    """Run the body of one stage of dvc.yaml, up to date or not. `dvc repro` calls this; you rarely will."""
    from resflow.stages import main as run_stage

    sys.exit(run_stage(name))


@commands.command(
    epilog=examples('resflow schedule --cron "0 2 * * *"', "resflow schedule --interval 3600 -S train.epochs=5")
)
def schedule(
    cron: Annotated[str | None, typer.Option(help='When to run, such as "0 2 * * *" for two at night, in UTC.')] = None,
    interval: Annotated[int | None, typer.Option(help="Seconds from one run to the next.", min=60)] = None,
    settings: Settings = None,
    params_file: ParamsFile = None,
    name: Annotated[str, typer.Option(help="Name of the deployment.")] = "scheduled",
) -> None:
    """Serve the pipeline on a schedule, until stopped with Ctrl-C or SIGTERM.

    Needs a Prefect server: `prefect server start`, and PREFECT_API_URL as it says. One run at a time; parameters
    can be overridden for a run from the server's UI too. docs/scheduling.md tells more.
    """
    if (cron is None) == (interval is None):
        raise typer.BadParameter("give either --cron or --interval")
    root, overrides = project(), overrides_of(settings or [], params_file)
    os.chdir(root)
    server.check(needed=True)
    from flows.schedule import serve

    serve(name, overrides, cron=cron, interval=interval)


def _check_before(root: Path, overrides: dict[str, Any], release: bool) -> None:
    """Refuse within a second what would otherwise fail after minutes of training."""
    from resflow import nets, registry, storage, store
    from resflow.stages import runs

    settings = parameters(root, overrides)
    nets.altered(settings.net.name, settings.net.changes)
    runs.place(root, os.environ.get("RESFLOW_STORAGE"))
    registry.check(root)
    on_cluster = os.environ.get("RAY_ADDRESS") and not os.environ.get("RESFLOW_STORAGE")  # whose workers meet in it
    if (release or on_cluster) and os.environ.get("AWS_ENDPOINT_URL_S3"):
        storage.ensure_bucket(store.endpoint(root), settings.store.bucket)


@contextmanager
def _end_told(root: Path, embedded: bool) -> Iterator[None]:
    """Where the run fails or is stopped, say what it leaves: the store, and how to go on."""
    from resflow import store

    try:
        yield
    except BaseException as error:
        with suppress(OSError, ResflowError):  # nobody reads along any more; the settings of the store are damaged
            if embedded and store.status(root).running:
                typer.echo(STAYS)  # before the error, which is the last line
        with suppress(OSError):  # as above
            if how := _stopped(error):
                typer.echo(f"resflow run: {how}; the same command goes on", err=True)
        _drop_unread()
        raise


def _drop_unread() -> None:
    """Where nobody reads along any more, what is flushed at the very end would fail, and take the exit code's place."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _stopped(error: BaseException) -> str | None:
    """How the user ended the run, where it is that which has ended it."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_CODES[128 + signal.SIGINT]
    ended = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    return EXIT_CODES[128 + signal.SIGTERM] if ended else None


def _next(version: str | None, apart: bool) -> list[str]:
    """What can be done with the model of a run: `version`, if it was released; `apart` in a work tree of its own."""
    figures = "dvc plots show  ·  dvc metrics show"
    if not apart:
        first = "resflow models list  ·  " if version else ""
        line = f"Next:  {first}resflow predict IMAGE  ·  {figures}"
        return [line] if version else [line, "Nothing was released; `resflow run` does that."]
    if not version:
        return [
            "Nothing of this run stays in the project: its work tree is gone, and the figures above are what there is.",
            "Without --no-release its model becomes a version; `dvc exp run --temp -S` keeps an experiment.",
        ]
    return [
        f"Next:  resflow models show {version}  ·  resflow predict IMAGE --model {version}",
        "The model, metrics and plots in this folder are those of before.",
    ]


def _flow() -> Any:
    from flows.training import training_pipeline

    server.show_tasks()
    return training_pipeline
