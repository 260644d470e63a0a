"""`resflow search`: the search for a structure, what it found, and its choice in params.yaml."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from resflow import terminal
from resflow.cli import server
from resflow.cli.common import Json, examples, parameters, print_json, project

__all__ = ["group"]

group = typer.Typer(
    help="Search for a structure: which is best, at what cost. Without a command of its own it runs.",
    epilog=examples("resflow search", "resflow search show", "resflow search apply 2"),
    invoke_without_command=True,
)


@group.callback()
def search(context: typer.Context) -> None:
    """Search for a structure: which is best, at what cost. Without a command of its own it runs."""
    if context.invoked_subcommand is None:
        search_run()


@group.command("run", epilog=examples("resflow search run"))
def search_run() -> None:
    """Search what `search` of params.yaml says, and train the front again with several seeds.

    Stopped or killed, the same command goes on; what was trained is never trained again. docs/search.md tells more.
    """
    from resflow.study import space

    root = project()
    space.check(parameters(root), "params.yaml")
    os.chdir(root)
    wait = server.start()
    from flows.study import structure_search

    server.show_tasks()
    wait()
    _show_front(structure_search())
    typer.echo("")
    typer.echo("Next:  resflow search apply  ·  study/search.png  ·  study/search.csv")


@group.command("show", epilog=examples("resflow search show", "resflow search show --json"))
def search_show(as_json: Json = False) -> None:
    """The front of the last search: accuracies over seeds, and what each point costs."""
    from resflow.study import results

    report = results.load(project())
    if as_json:
        print_json(report)
    else:
        _show_front(report)


@group.command("apply", epilog=examples("resflow search apply", "resflow search apply 2"))
def search_apply(
    point: Annotated[
        int | None, typer.Argument(help="Number of the point in `resflow search show`.", show_default="the first")
    ] = None,
) -> None:
    """Write a point of the front into params.yaml, which keeps its comments. The first is the most accurate."""
    from resflow.study import results
    from resflow.study.apply import apply

    root = project()
    changes = apply(root, results.load(root), point)
    terminal.table([(name, str(value)) for name, value in changes.items()] or [("params.yaml", "has it already")])


def _show_front(report: dict[str, Any]) -> None:
    from resflow.study import results

    terminal.table(results.rows(report), *results.COLUMNS)
    typer.echo(results.ends(report))
