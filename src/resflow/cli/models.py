"""`resflow models` and `resflow predict`: the versions that there are, and what one says of an image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from resflow import terminal
from resflow.cli.common import Json, examples, parameters, print_json, project

__all__ = ["commands", "group"]

commands = typer.Typer()
group = typer.Typer(
    help="Versions of models: what there is, what runs in production, and where it came from.",
    epilog=examples("resflow models list", "resflow models show mnist-resnet@prod"),
    no_args_is_help=True,
)

FIRST = "FIRST"
"""Stands for a folder that we do not know: that of the clone whose store has the version."""

Reference = Annotated[
    str, typer.Argument(metavar="NAME@VERSION", help="VERSION is v1.2.3, `latest`, or a stage such as `prod`.")
]


@commands.command(
    epilog=examples("resflow predict digit.png", "resflow predict *.jpg --model mnist-resnet@prod --json")
)
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="PNG or JPEG files of any size.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="NAME@VERSION, or the path of a .safetensors file.",
            show_default="models/model.safetensors of the project",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify images: class, probability, and the three most probable classes.

    Dark strokes on a light ground are inverted where the network learnt light on dark, and the reverse; the output
    says so. A model of 2 or 4 channels takes pictures with transparency.
    """
    from resflow.evaluation import pictures

    path = _model_path(model)  # before torch is imported: a wrong name is told at once
    for image in images:
        pictures.check(image)
    from resflow.evaluation.predict import predict as classify

    predictions = classify(images, path)
    if as_json:
        print_json([_prediction(one) for one in predictions])
        return
    rows = []
    for one in predictions:
        top = ", ".join(f"{label} {probability:.1%}" for label, probability in one.top)
        note = "inverted" if one.inverted else ""
        rows.append((str(one.path), one.label, f"{one.probability:.1%}", top, note))
    terminal.table(rows, "image", "class", "probability", "top 3", "note")


@group.command("list", epilog=examples("resflow models list", "resflow models list --json"))
def list_models(as_json: Json = False) -> None:
    """Every version, the newest first, and the stages they are in."""
    from resflow import registry

    versions = sorted(registry.versions(project()), key=lambda version: version.created_at, reverse=True)
    if as_json:
        print_json([_version(one) for one in versions])
        return
    if not versions:
        typer.echo("No version yet. `resflow run` makes the first.")
        return
    rows = [
        (str(one), ", ".join(one.stages), f"{one.created_at:%Y-%m-%d %H:%M %Z}", one.commit[:12], one.message)
        for one in versions
    ]
    terminal.table(rows, "version", "stages", "made", "commit", "message")


@group.command(epilog=examples("resflow models show mnist-resnet@prod", "resflow models show mnist-resnet --json"))
def show(reference: Reference, as_json: Json = False) -> None:
    """One version: its metrics, and the commit, parameters, data and code that made it."""
    from dataclasses import asdict

    from resflow import registry, store

    root = project()
    version = registry.resolve(root, reference)
    lineage, recipe = registry.lineage(root, version), _recipe(root, version)
    if as_json:
        print_json({**_version(version), "get_it": recipe, "lineage": asdict(lineage)})
        return
    base = lineage.base or lineage.parent
    rows = [
        ("version", str(version)),
        ("stages", ", ".join(version.stages) or "none"),
        ("made", f"{version.created_at:%Y-%m-%d %H:%M %Z}"),
        ("commit", version.commit),
        ("made on", " ".join([base[:12] if base else "no commit before it", *lineage.branches])),
    ]
    if lineage.compared_with:
        rows += [(f"params {key}", f"{before} -> {after}") for key, (before, after) in lineage.params.items()]
    if lineage.compared_with in (None, base):  # no version before it, so that little or nothing differs
        rows += _sections(lineage.parameters)  # all that its stages used
    for kind, entries in (("data", lineage.data), ("code", lineage.code)):
        rows += [(f"{kind} {path}", digest) for path, digest in entries.items()]
    for path, values in lineage.metrics.items():
        figures = {key: value for key, value in values.items() if isinstance(value, int | float) and "." not in key}
        rows.append((path, "  ".join(f"{key} {value}" for key, value in figures.items())))
    terminal.table(rows)
    whose = "" if store.known(root) else f"; {FIRST} is the clone that made it"
    typer.echo(f"\nIts files, in a work tree beside yours{whose}:")
    typer.echo(recipe)  # no cell of the table, which would fold it on a terminal: it is to be copied


@group.command(epilog=examples("resflow models pull mnist-resnet@prod --to release"))
def pull(
    reference: Reference,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the bundle; made where it is missing.")],
) -> None:
    """Download a published bundle and verify each file against its manifest. Starts the embedded store if need be.

    A folder that was pulled into before is brought to this version. Files that no pull has put there are never
    overwritten: where one is in the way, nothing is written.
    """
    from resflow import registry

    root = project()
    version = registry.resolve(root, reference)
    files = _pull(root, version, to)
    typer.echo(f"{len(files)} files of {version} are in {to}, each verified by its SHA-256")


@group.command(epilog=examples("resflow models promote mnist-resnet@v0.1.0"))
def promote(reference: Reference, stage: Annotated[str, typer.Option(help="The stage to give it.")] = "prod") -> None:
    """Give a version a stage; whoever asks for NAME@prod gets it from then on. An older version can come back so."""
    from resflow import registry

    root = project()
    version = registry.resolve(root, reference)
    changed = registry.promote(root, version.name, version.version, stage)
    typer.echo(f"{version} is in {stage} now" if changed else f"{version} is in {stage} already; nothing changed")


def _recipe(root: Path, version: Any) -> str:
    """How to get its files beside the user's, which `git checkout` refuses to replace where the version was made."""
    from shlex import quote

    from resflow import pipeline, store

    top, below = pipeline.in_git(root)
    folder = top.parent / f"{version.name}-{version.version}"
    made = f"git -C {quote(str(top))} worktree add --detach {quote(str(folder))} {version.commit[:12]}"
    settings = f"cd {quote(str(root)) if store.known(root) else FIRST} && resflow store env"
    return f'{made} && (settings="$({settings})" && eval "$settings" && cd {quote(str(folder / below))} && dvc pull)'


def _sections(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row for each section of params.yaml, of what is given there; the hash of data/raw stands for data.files."""
    sections: dict[str, list[str]] = {}
    for dotted, value in parameters.items():
        section, _, name = dotted.partition(".")
        if value is not None and not dotted.startswith("data.files."):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            sections.setdefault(section, []).append(f"{name} {text}".strip())
    return [(f"params {section}", "  ".join(entries)) for section, entries in sections.items()]


def _model_path(model: str | None) -> Path:
    """A file as it is; a version's model from the store, kept beside the project's state; by default the project's."""
    from resflow import registry
    from resflow.stages.paths import MODEL, STATE

    if model is None:
        return project() / MODEL
    if "@" not in model or model.endswith(MODEL.suffix) or Path(model).exists():
        return Path(model)
    root = project()
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
    return storage.pull(endpoint, parameters(root).store.bucket, version.prefix, to)


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
