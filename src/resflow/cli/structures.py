"""`resflow nets`, `analyze` and `study`: which structures there are, what they cost, how they compare; and `schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resflow import terminal
from resflow.cli.common import Json, ParamsFile, Settings, examples, overrides_of, parameters, print_json, project

__all__ = ["commands"]

commands = typer.Typer()


@commands.command(
    epilog=examples("resflow schema > docs/params.schema.json", "resflow schema --markdown > docs/parameters.md")
)
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a page for people instead.")] = False,
) -> None:
    """Print the JSON schema of params.yaml, which gives editors completion."""
    from resflow import params, reference

    if markdown:
        typer.echo(reference.markdown(), nl=False)
    else:
        print_json(params.schema())


@commands.command(
    name="nets", epilog=examples("resflow nets", "resflow nets resnet20 preact_resnet20", "resflow nets --markdown")
)
def networks(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="These alone.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/networks.md.")] = False,
) -> None:
    """List the structures that `net.name` can be, with their parameters and multiply-accumulates for one image."""
    from resflow import reference

    rows = list(reference.networks(names or ()))
    if markdown:
        typer.echo(reference.networks_markdown(rows), nl=False)
    else:
        terminal.table(rows, *reference.COLUMNS)


@commands.command(
    epilog=examples(
        "resflow analyze",
        "resflow analyze resnet20 preact_resnet20 --layers --no-measure",
        "resflow analyze resnet18 resnet50 --image 224x224x3 --classes 1000 --batch-sizes 1,8",
        "resflow analyze resnet8_max article_cnn --to analysis",
    )
)
def analyze(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STRUCTURE]...", help="Names of structures.", show_default="that of params.yaml"),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTHxCHANNELS", help="Images to analyse for.", show_default="those of the prepared data"
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Classes to tell apart.", min=2, show_default="those of the data")
    ] = None,
    batch_sizes: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Images per forward pass to measure.", show_default="analyze.batch_sizes"),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show each layer too.")] = False,
    measure: Annotated[bool, typer.Option(help="Measure on this machine, beside what is exact.")] = True,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write tables (CSV, JSON) and pictures (PNG) there too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what structures cost: parameters, operations, memory, speed here, and where the time goes.

    Nothing is trained and no data is read. docs/analyze.md explains each figure.
    """
    from resflow import nets

    shape, counts = _numbers(image, "x", "--image", 3), _numbers(batch_sizes, ",", "--batch-sizes")
    for name in names or ():
        if name not in nets.names():
            nets.find(name)  # which refuses it, before torch is imported
    root = project()
    settings = parameters(root)
    from resflow.study import analysis, tables

    changes = ({"batch_sizes": counts} if counts else {}) | ({} if measure else {"seconds": 0.0})
    cards = _cards(root, settings, names or [], shape, classes)
    report = analysis.analyse(cards, settings.train, settings.analyze.model_copy(update=changes))
    if to:
        from resflow.study.folder import save

        save(to, report)
    if as_json:
        print_json(report.json(with_layers=layers))
        return
    for title, (columns, rows) in tables.shown(report, with_layers=layers):
        typer.echo(f"{title}:")
        terminal.table([[str(cell) for cell in row] for row in rows], *columns)
        typer.echo("")


@commands.command(
    name="study",
    epilog=examples(
        "resflow study",
        "resflow study --params experiments/study-quick.yaml --to docs/study/quick",
        "resflow study --only depth --only front",
        "resflow study --report",
    ),
)
def run_study(
    settings: Settings = None,
    params_file: ParamsFile = None,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Where results and report lie.")] = Path("docs/study"),
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="One question alone; repeatable.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write the report from what is recorded; run nothing.")
    ] = False,
) -> None:
    """Compare structures: depth, gradients, accuracy for its price, one factor at a time, speed; and write a report.

    Says beforehand what it takes. Stopped, it goes on when run again: results are recorded one by one. It needs the
    prepared data, which `dvc repro prepare` makes.
    """
    from resflow.study import campaign
    from resflow.study.experiments import chosen

    root, overrides = project(), overrides_of(settings or [], params_file)
    experiments = chosen(parameters(root, overrides), only or [])
    shown = ["resflow", "study", *(["--params", str(params_file)] if params_file else [])]
    shown += [part for setting in settings or [] for part in ("-S", setting)]
    shown += ["--to", str(to)] if to != Path("docs/study") else []
    try:
        page = campaign.study(root, root / to, experiments, shown, report_only=report, say=_say)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on, and with --report shows what there is", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"The report is {page}")


def _numbers(text: str | None, separator: str, option: str, count: int | None = None) -> tuple[int, ...]:
    """Whole numbers from 1 up, so many if `count` says; none where the option was not given."""
    if text is None:
        return ()
    parts = text.split(separator)
    if not all(part.strip().isdecimal() and int(part) for part in parts) or len(parts) != (count or len(parts)):
        example = separator.join(("28", "28", "1") if count else ("8", "64"))
        wanted = f"{count or 'some'} whole numbers from 1 up"
        raise typer.BadParameter(f"{option} is {text!r}, but should be {wanted}, such as {example}")
    return tuple(int(part) for part in parts)


def _cards(root: Path, settings: Any, names: list[str], shape: tuple[int, ...], classes: int | None) -> dict[str, Any]:
    """What to analyse by name, for the images of the data unless others are asked for."""
    from dataclasses import replace

    from resflow.nets import altered
    from resflow.nets.file import ModelCard
    from resflow.stages.card import called, card

    labels = tuple(map(str, range(classes))) if classes else settings.prepare.classes
    if shape:
        height, width, channels = shape
        own = ModelCard(
            structure=altered(settings.net.name, settings.net.changes),
            image_shape=(height, width, channels),
            classes=labels,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
        )
    else:
        own = card(root, settings.net)
        own = replace(own, classes=labels if classes else own.classes)
    if names:
        return {name: replace(own, structure=name) for name in names}
    return {called(settings.net.name, own): own}


def _say(line: str) -> None:
    """A line of progress, shown at once."""
    print(line, flush=True)
