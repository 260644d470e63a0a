"""Write a point of the front into params.yaml, its comments and its order kept: `apply(root, report, number)`.

The point's structure as a whole, and its parameters of training; what stands there already is left as it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resflow import params
from resflow.errors import ParamsError
from resflow.files import write
from resflow.nets import altered

__all__ = ["apply"]


def apply(root: Path, report: Mapping[str, Any], number: int | None) -> dict[str, Any]:
    """Set the point's parameters in params.yaml and return what changed; without a number, the most accurate's.

    Raises `ParamsError` for a number that is not there or for parameters that do not validate, `NetError` for a
    structure that is none; params.yaml is as it was then.
    """
    points = {point["number"]: point for point in report["front"]}
    chosen = points.get(min(points, default=1) if number is None else number)
    if chosen is None:
        known = f"It has {min(points)} to {max(points)}" if points else "It has none"
        raise ParamsError(
            f"point {number}", "is not on the front of the last search", f"{known}: `resflow search show`"
        )
    wanted = {f"{section}.{name}": value for section in ("net", "train") for name, value in chosen[section].items()}
    path = root / "params.yaml"
    before = params.read(path)
    params.parse(before, str(path))
    changes = {name: value for name, value in wanted.items() if _value(before, name) != value}
    text = params.edited(path, changes, str(path))
    made = params.parse(params.value(text, str(path)), str(path))
    altered(made.net.name, made.net.changes)
    if changes:
        write(path, text.encode())
    return changes


def _value(tree: Any, dotted: str) -> Any:
    """What stands there; Ellipsis, which is no parameter's, where nothing does."""
    for name in dotted.split("."):
        tree = tree.get(name, ...) if isinstance(tree, dict) else ...
    return tree
