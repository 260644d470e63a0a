"""What several commands share: options, exit codes, the project they are about with its parameters, and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "EXIT_CODES",
    "Json",
    "ParamsFile",
    "Settings",
    "examples",
    "overrides_of",
    "parameters",
    "print_json",
    "project",
]

EXIT_CODES = {
    0: "done",
    1: "an error, told in one line on standard error",
    2: "wrong usage",
    3: "`resflow store status`: the store is not running",
    75: "`resflow stage`: an error that may pass by itself, such as sources that do not answer",
    130: "stopped with Ctrl-C",
    143: "ended by SIGTERM",
}

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-S", metavar="KEY=VALUE", help="A parameter for this run alone, such as train.lr=0.02; repeatable."
    ),
]
ParamsFile = Annotated[
    Path | None,
    typer.Option(
        "--params", metavar="FILE", help="A YAML file of parameters for this run alone; `experiments/` has some."
    ),
]


def examples(*lines: str) -> str:
    return "**Examples**\n\n" + "\n".join(f"- `{line}`" for line in lines)


def project() -> Path:
    from resflow import pipeline

    return pipeline.find_root(Path.cwd())


def parameters(root: Path, overrides: dict[str, Any] | None = None) -> Any:
    """The parameters of the project, some of them replaced for this command alone; each error names where it stands."""
    from resflow import params

    path, where = root / "params.yaml", "--set or --params"
    settings = params.load(path)
    return params.parse(params.override(params.read(path), overrides, where), where) if overrides else settings


def overrides_of(settings: list[str], file: Path | None) -> dict[str, Any]:
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
            raise ParamsError(f"--set {setting}", "is not KEY=VALUE", "Write it like -S train.lr=0.02")
        changes[key] = params.value(text, f"--set {setting}")
    return changes


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
