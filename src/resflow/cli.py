"""The `resflow` command. Each function parses, calls and prints; the work is in the rooms below.

Heavy packages are imported by the command that needs them, so that `resflow --help` answers at once. `resflow stage` is
told here for `--help` alone: `resflow.__main__` runs it without this module. Tables and colours are `resflow.terminal`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from resflow import terminal
from resflow.errors import ResflowError

__all__ = ["app", "main"]

EXIT_CODES = {
    0: "done",
    1: "an error, told in one line on standard error",
    2: "wrong usage",
    3: "`resflow store status`: the store is not running",
    75: "`resflow stage`: an error that may pass by itself, such as sources that do not answer",
    130: "stopped with Ctrl-C",
    143: "ended by SIGTERM",
}


def _examples(*lines: str) -> str:
    return "**Examples**\n\n" + "\n".join(f"- `{line}`" for line in lines)


app = typer.Typer(
    help="Train residual networks, release them, and use them. In a clone of the project, `resflow run` does it all.",
    epilog=_examples("resflow run", "resflow models list", "resflow predict digit.png")
    + "\n\n**Exit codes**\n\n"
    + "\n".join(f"- {code}: {meaning}" for code, meaning in EXIT_CODES.items()),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
models = typer.Typer(
    help="Versions of models: what there is, what runs in production, and where it came from.",
    epilog=_examples("resflow models list", "resflow models show mnist-resnet@prod"),
    no_args_is_help=True,
)
stores = typer.Typer(
    help="The embedded S3-compatible store of this project.",
    epilog=_examples("resflow store start", "resflow store status"),
    no_args_is_help=True,
)
searches = typer.Typer(
    help="Search for a structure: which is best, at what cost. Without a command of its own it runs.",
    epilog=_examples("resflow search", "resflow search show", "resflow search apply 2"),
    invoke_without_command=True,
)
app.add_typer(models, name="models")
app.add_typer(searches, name="search")
app.add_typer(stores, name="store")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Reference = Annotated[
    str, typer.Argument(metavar="NAME@VERSION", help="VERSION is v1.2.3, `latest`, or a stage such as `prod`.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-S", metavar="KEY=VALUE", help="A parameter for this run alone, such as train.lr=0.1; repeatable."
    ),
]
ParamsFile = Annotated[
    Path | None,
    typer.Option(
        "--params", metavar="FILE", help="A YAML file of parameters for this run alone; `experiments/` has some."
    ),
]


def main() -> None:
    """Run the command line: one line for an error the user can mend, a traceback only for a bug."""
    signal.signal(signal.SIGTERM, _end)
    try:
        app()
    except ResflowError as error:
        terminal.error(str(error))
        sys.exit(1)


def _end(number: int, frame: object) -> None:
    """Unwind on SIGTERM, so that stages end and locks are let go. Prefect calls this too, once it has noted the end."""
    sys.exit(128 + number)


@app.command(
    epilog=_examples(
        "resflow run",
        "resflow run -S train.lr=0.1 -S train.epochs=5",
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
    stay as they are.
    """
    from resflow import store

    root = _root()
    overrides = _overrides(settings or [], params_file)
    _check_before(root, overrides, release)
    if not os.environ.get("AWS_ENDPOINT_URL_S3"):
        store.start(root, wait=False)  # it gets ready while Prefect is imported
    os.chdir(root)
    wait = _server()
    flow = _flow()
    wait()
    summary = flow(overrides=overrides or None, release=release)
    terminal.table(summary.rows())
    typer.echo("")
    typer.echo("Next:  resflow models list  ·  resflow predict IMAGE  ·  dvc plots show  ·  dvc metrics show")
    if not os.environ.get("AWS_ENDPOINT_URL_S3"):
        typer.echo("The store stays up for `dvc pull` and `resflow models pull`; `resflow store stop` ends it.")


@app.command(epilog=_examples("resflow stage train"))
def stage(
    name: Annotated[str, typer.Argument(help="fetch, prepare, analyze, train, evaluate or robustness.")],
) -> None:
    """Run the body of one stage of dvc.yaml, up to date or not. `dvc repro` calls this; you rarely will."""
    from resflow.stages import main as run_stage

    sys.exit(run_stage(name))


@app.command(epilog=_examples("resflow predict digit.png", "resflow predict *.jpg --model mnist-resnet@prod --json"))
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="PNG or JPEG files of any size.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="NAME@VERSION, or the path of a .safetensors file.", show_default="the model that was trained last"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify images: class, probability, and the three most probable classes.

    Dark strokes on a light ground are inverted, since the networks learnt light on dark; the output says where.
    """
    from resflow.evaluation import pictures

    path = _model_path(model)  # before torch is imported: a wrong name is told at once
    for image in images:
        pictures.check(image)
    from resflow.evaluation.predict import predict as classify

    predictions = classify(images, path)
    if as_json:
        _print_json([_prediction(one) for one in predictions])
        return
    rows = []
    for one in predictions:
        top = ", ".join(f"{label} {probability:.1%}" for label, probability in one.top)
        note = "inverted: dark on light" if one.inverted else ""
        rows.append((str(one.path), one.label, f"{one.probability:.1%}", top, note))
    terminal.table(rows, "image", "class", "probability", "top 3", "note")


@models.command("list", epilog=_examples("resflow models list", "resflow models list --json"))
def list_models(as_json: Json = False) -> None:
    """Every version, the newest first, and the stages they are in."""
    from resflow import registry

    versions = sorted(registry.versions(_root()), key=lambda version: version.created_at, reverse=True)
    if as_json:
        _print_json([_version(one) for one in versions])
        return
    if not versions:
        typer.echo("No version yet. `resflow run` makes the first.")
        return
    rows = [
        (str(one), ", ".join(one.stages), f"{one.created_at:%Y-%m-%d %H:%M %Z}", one.commit[:12], one.message)
        for one in versions
    ]
    terminal.table(rows, "version", "stages", "made", "commit", "message")


@models.command(epilog=_examples("resflow models show mnist-resnet@prod", "resflow models show mnist-resnet --json"))
def show(reference: Reference, as_json: Json = False) -> None:
    """One version: its metrics, and the commit, parameters, data and code that made it."""
    from dataclasses import asdict

    from resflow import registry

    root = _root()
    version = registry.resolve(root, reference)
    lineage = registry.lineage(root, version)
    if as_json:
        _print_json({**_version(version), "lineage": asdict(lineage)})
        return
    rows = [
        ("version", str(version)),
        ("stages", ", ".join(version.stages) or "none"),
        ("made", f"{version.created_at:%Y-%m-%d %H:%M %Z}"),
        ("commit", f"{version.commit} (get it with `git checkout {version} && dvc pull`)"),
        ("made on", f"{(lineage.parent or 'the first commit')[:12]} {' '.join(lineage.branches)}".strip()),
    ]
    rows += [(f"params {key}", f"{before} -> {after}") for key, (before, after) in lineage.params.items()]
    for kind, entries in (("data", lineage.data), ("code", lineage.code)):
        rows += [(f"{kind} {path}", digest) for path, digest in entries.items()]
    for path, values in lineage.metrics.items():
        figures = {key: value for key, value in values.items() if isinstance(value, int | float) and "." not in key}
        rows.append((path, "  ".join(f"{key} {value}" for key, value in figures.items())))
    terminal.table(rows)


@models.command(epilog=_examples("resflow models pull mnist-resnet@prod --to release"))
def pull(
    reference: Reference,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the bundle; made where it is missing.")],
) -> None:
    """Download a published bundle and verify each file against its manifest. Starts the embedded store if need be."""
    from resflow import registry

    root = _root()
    version = registry.resolve(root, reference)
    files = _pull(root, version, to)
    typer.echo(f"{len(files)} files of {version} are in {to}, each verified by its SHA-256")


@models.command(epilog=_examples("resflow models promote mnist-resnet@v0.1.0"))
def promote(reference: Reference, stage: Annotated[str, typer.Option(help="The stage to give it.")] = "prod") -> None:
    """Give a version a stage; whoever asks for NAME@prod gets it from then on. An older version can come back so."""
    from resflow import registry

    root = _root()
    version = registry.resolve(root, reference)
    changed = registry.promote(root, version.name, version.version, stage)
    typer.echo(f"{version} is in {stage} now" if changed else f"{version} is in {stage} already; nothing changed")


@app.command(
    epilog=_examples('resflow schedule --cron "0 2 * * *"', "resflow schedule --interval 3600 -S train.epochs=5")
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
    root, overrides = _root(), _overrides(settings or [], params_file)
    os.chdir(root)
    _check_server(needed=True)
    from flows.schedule import serve

    serve(name, overrides, cron=cron, interval=interval)


@searches.callback()
def search(context: typer.Context) -> None:
    """Search for a structure: which is best, at what cost. Without a command of its own it runs."""
    if context.invoked_subcommand is None:
        search_run()


@searches.command("run", epilog=_examples("resflow search run"))
def search_run() -> None:
    """Search what `search` of params.yaml says, and train the front again with several seeds.

    Stopped or killed, the same command goes on; what was trained is never trained again. docs/search.md tells more.
    """
    from resflow.study import space

    root = _root()
    space.check(_params(root), "params.yaml")
    os.chdir(root)
    wait = _server()
    from flows.study import structure_search

    _show_tasks()
    wait()
    _show_front(structure_search())
    typer.echo("")
    typer.echo("Next:  resflow search apply  ·  study/search.png  ·  study/search.csv")


@searches.command("show", epilog=_examples("resflow search show", "resflow search show --json"))
def search_show(as_json: Json = False) -> None:
    """The front of the last search: accuracies over seeds, and what each point costs."""
    from resflow.study import results

    report = results.load(_root())
    if as_json:
        _print_json(report)
    else:
        _show_front(report)


@searches.command("apply", epilog=_examples("resflow search apply", "resflow search apply 2"))
def search_apply(
    point: Annotated[
        int | None, typer.Argument(help="Number of the point in `resflow search show`.", show_default="the first")
    ] = None,
) -> None:
    """Write a point of the front into params.yaml, which keeps its comments. The first is the most accurate."""
    from resflow.study import results
    from resflow.study.apply import apply

    root = _root()
    changes = apply(root, results.load(root), point)
    terminal.table([(name, str(value)) for name, value in changes.items()] or [("params.yaml", "has it already")])


@stores.command(epilog=_examples("resflow store start", "resflow store start --port 9000"))
def start(
    port: Annotated[
        int | None,
        typer.Option(help="Port of the S3 interface; remembered.", min=1, max=65535, show_default="a free one"),
    ] = None,
) -> None:
    """Start the store in the background and make its bucket."""
    from resflow import storage, store

    root = _root()
    bucket = _params(root).store.bucket
    endpoint = store.start(root, port)
    storage.ensure_bucket(endpoint, bucket)
    store.configure_dvc(root, endpoint)
    typer.echo(f"The store answers at {endpoint.url}; `resflow store stop` ends it")


@stores.command(epilog=_examples("resflow store stop"))
def stop() -> None:
    """Stop the store; its objects stay."""
    from resflow import store

    typer.echo("The store has stopped" if store.stop(_root()) else "The store was not running")


@stores.command(epilog=_examples("resflow store status"))
def status() -> None:
    """Whether the store runs, where, and how much it holds. Exit code 3 where it does not run."""
    from resflow import store

    found = store.status(_root())
    if not found.running:
        typer.echo("The store is not running; `resflow store start` starts it")
        raise typer.Exit(3)
    typer.echo(
        f"The store answers at {found.url} (process {found.pid}); {found.bytes_used / 1e6:.1f} MB in {found.data}"
    )


@stores.command(epilog=_examples("resflow store env"))
def env() -> None:
    """Print the variables that make other programs and other clones use this store. They hold its keys.

    `eval "$(resflow store env)"` sets them in a shell, where `dvc pull` in another clone or `aws s3 ls` find it then.
    """
    import shlex

    from resflow import store

    for name, value in store.ready(_root()).environment().items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@app.command(
    epilog=_examples("resflow schema > docs/params.schema.json", "resflow schema --markdown > docs/parameters.md")
)
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a page for people instead.")] = False,
) -> None:
    """Print the JSON schema of params.yaml, which gives editors completion."""
    from resflow import params, reference

    if markdown:
        typer.echo(reference.markdown(), nl=False)
    else:
        _print_json(params.schema())


@app.command(
    name="nets", epilog=_examples("resflow nets", "resflow nets resnet20 preact_resnet20", "resflow nets --markdown")
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


@app.command(
    epilog=_examples(
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
    root = _root()
    settings = _params(root)
    from resflow.study import analysis, tables

    changes = ({"batch_sizes": counts} if counts else {}) | ({} if measure else {"seconds": 0.0})
    cards = _cards(root, settings, names or [], shape, classes)
    report = analysis.analyse(cards, settings.train, settings.analyze.model_copy(update=changes))
    if to:
        from resflow.study.folder import save

        save(to, report)
    if as_json:
        _print_json(report.json(with_layers=layers))
        return
    for title, (columns, rows) in tables.shown(report, with_layers=layers):
        typer.echo(f"{title}:")
        terminal.table([[str(cell) for cell in row] for row in rows], *columns)
        typer.echo("")


@app.command(
    name="study",
    epilog=_examples(
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

    root, overrides = _root(), _overrides(settings or [], params_file)
    experiments = chosen(_params(root, overrides), only or [])
    shown = ["resflow", "study", *(["--params", str(params_file)] if params_file else [])]
    shown += [part for setting in settings or [] for part in ("-S", setting)]
    shown += ["--to", str(to)] if to != Path("docs/study") else []
    try:
        page = campaign.study(root, root / to, experiments, shown, report_only=report, say=_say)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on, and with --report shows what there is", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"The report is {page}")


@app.command(epilog=_examples("resflow doctor"))
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


def _check_before(root: Path, overrides: dict[str, Any], release: bool) -> None:
    """Refuse within a second what would otherwise fail after minutes of training."""
    from resflow import nets, registry, storage, store

    settings = _params(root, overrides)
    nets.altered(settings.net.name, settings.net.changes)
    registry.check(root)
    on_cluster = os.environ.get("RAY_ADDRESS") and not os.environ.get("RESFLOW_STORAGE")  # whose workers meet in it
    if (release or on_cluster) and os.environ.get("AWS_ENDPOINT_URL_S3"):
        storage.ensure_bucket(store.endpoint(root), settings.store.bucket)


def _flow() -> Any:
    from flows.training import training_pipeline

    _show_tasks()
    return training_pipeline


def _show_tasks() -> None:
    """Show the tasks' own lines on this terminal, on which Prefect is quiet."""
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(lambda record: bool(getattr(record, "resflow", False)))
    handler.setFormatter(logging.Formatter("%(message)s"))
    for logger in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(logger).addHandler(handler)


def _show_front(report: dict[str, Any]) -> None:
    from resflow.study import results

    terminal.table(results.rows(report), *results.COLUMNS)


def _server() -> Callable[[], None]:
    """See to the Prefect server of a run, the configured one or a temporary one; the function returned waits for it."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if _check_server(needed=False):
        return lambda: None
    from flows.temporary import start

    return start()


def _check_server(needed: bool) -> str | None:
    for name, value in {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}.items():
        os.environ.setdefault(name, value)
    from flows.server import check

    return check(needed)


def _overrides(settings: list[str], file: Path | None) -> dict[str, Any]:
    """`--params` and `--set` as keys and values; the latter win."""
    from resflow import params
    from resflow.errors import ParamsError

    changes: dict[str, Any] = {}
    if file:
        tree = params.read(file)
        if not isinstance(tree, dict):
            raise ParamsError(str(file), "holds no parameters", "See experiments/ for examples")
        changes.update(tree)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ParamsError(f"--set {setting}", "is not KEY=VALUE", "Write it like -S train.lr=0.1")
        changes[key] = params.value(text, f"--set {setting}")
    return changes


def _model_path(model: str | None) -> Path:
    """A file as it is; a version's model from the store, kept beside the project's state; by default the project's."""
    from resflow import registry
    from resflow.stages.paths import MODEL, STATE

    if model is None:
        return _root() / MODEL
    if "@" not in model or model.endswith(MODEL.suffix) or Path(model).exists():
        return Path(model)
    root = _root()
    version = registry.resolve(root, model)
    folder = root / STATE / "models" / str(version)
    if not folder.is_dir():
        _pull(root, version, folder)
    return folder / MODEL.name


def _pull(root: Path, version: Any, to: Path) -> list[Path]:
    """A version's bundle from the store. One that was never started here has none, and is not started to say so."""
    from resflow import storage, store

    endpoint = store.endpoint(root)
    if endpoint.embedded:
        endpoint = store.start(root)
    return storage.pull(endpoint, _params(root).store.bucket, f"models/{version.name}/{version.version}", to)


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


def _root() -> Path:
    from resflow import pipeline

    return pipeline.find_root(Path.cwd())


def _params(root: Path, overrides: dict[str, Any] | None = None) -> Any:
    """The parameters of the project, some of them replaced for this command alone; each error names where it stands."""
    from resflow import params

    path, where = root / "params.yaml", "--set or --params"
    settings = params.load(path)
    return params.parse(params.override(params.read(path), overrides, where), where) if overrides else settings


def _say(line: str) -> None:
    """A line of progress, shown at once."""
    print(line, flush=True)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _version(version: Any) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "stages": list(version.stages),
        "created_at": version.created_at.isoformat(),
        "commit": version.commit,
        "message": version.message,
    }


def _prediction(one: Any) -> dict[str, Any]:
    return {
        "path": str(one.path),
        "class": one.label,
        "probability": one.probability,
        "top": [{"class": label, "probability": probability} for label, probability in one.top],
        "inverted": one.inverted,
        "centred": one.centred,
    }
