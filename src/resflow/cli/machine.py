"""`resflow store` and `resflow doctor`: the store that runs on this machine, and what the machine lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resflow import terminal
from resflow.cli.common import examples, parameters, project

__all__ = ["commands", "group"]

commands = typer.Typer()
group = typer.Typer(
    help="The embedded S3-compatible store of this project.",
    epilog=examples("resflow store start", "resflow store status"),
    no_args_is_help=True,
)


@group.command(epilog=examples("resflow store start", "resflow store start --port 9000"))
def start(
    port: Annotated[
        int | None,
        typer.Option(help="Port of the S3 interface; remembered.", min=1, max=65535, show_default="a free one"),
    ] = None,
) -> None:
    """Start the store in the background and make its bucket."""
    from resflow import storage, store

    root = project()
    bucket = parameters(root).store.bucket
    endpoint = store.start(root, port)
    storage.ensure_bucket(endpoint, bucket)
    store.configure_dvc(root, endpoint)
    typer.echo(f"The store answers at {endpoint.url}; `resflow store stop` ends it")


@group.command(epilog=examples("resflow store stop"))
def stop() -> None:
    """Stop the store; its objects stay."""
    from resflow import store

    typer.echo("The store has stopped" if store.stop(project()) else "The store was not running")


@group.command(epilog=examples("resflow store status"))
def status() -> None:
    """Whether the store runs, where, and how much it holds. Exit code 3 where it does not run."""
    from resflow import store

    found = store.status(project())
    if not found.running:
        typer.echo("The store is not running; `resflow store start` starts it")
        raise typer.Exit(3)
    typer.echo(
        f"The store answers at {found.url} (process {found.pid}); {found.bytes_used / 1e6:.1f} MB in {found.data}"
    )


@group.command(epilog=examples("resflow store env"))
def env() -> None:
    """Print the variables that make other programs and other clones use this store. They hold its keys.

    `eval "$(resflow store env)"` sets them in a shell, where `dvc pull` in another clone or `aws s3 ls` find it then.
    """
    import shlex

    from resflow import store

    for name, value in store.ready(project()).environment().items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@commands.command(epilog=examples("resflow doctor"))
def doctor() -> None:
    """Check what the pipeline needs on this machine, and say how to mend what is wrong.

    A note is about something that the pipeline runs without.
    """
    from resflow.doctor import examine

    findings = examine(Path.cwd())
    rows = [
        ("ok" if one.ok else "note" if one.optional else "bad", one.what, one.finding, one.mend) for one in findings
    ]
    terminal.table(rows, "", "what", "finding", "how to mend it")
    if any(not one.ok and not one.optional for one in findings):
        raise typer.Exit(1)
