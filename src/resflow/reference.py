"""Pages written from the code: docs/parameters.md from the typed parameters, by `resflow schema --markdown`, and the
table of docs/networks.md from the structures, by `resflow nets --markdown`.

What a parameter means stands in `resflow.params`, and nowhere else; what a structure is, in `resflow.nets.table`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from resflow import params

__all__ = ["COLUMNS", "markdown", "networks", "networks_markdown"]

COLUMNS = ("name", "parameters", "MACs", "image", "classes", "source")
"""Of the table of networks."""

HEAD = """\
# Parameters

All of them stand in [params.yaml](../params.yaml), the one place where they are set; there is no default elsewhere.
This page is written by `resflow schema --markdown > docs/parameters.md` from `src/resflow/params.py`.

- Editors with a YAML language server complete and check `params.yaml` by [params.schema.json](params.schema.json),
  which its first line names (`resflow schema > docs/params.schema.json`).
- For one run alone: `resflow run -S train.lr=0.02 -S train.epochs=5`, or a file of parameters,
  `resflow run --params experiments/article.yaml`; of both, `-S` wins. Your files stay as they are.
- An unknown key, a wrong type or a value out of range is an error before anything starts.
- A stage of `dvc.yaml` runs again when one of the parameters it lists has changed.
- `params.yaml` has the form that DVC writes, so that `dvc exp run -S train.lr=0.02` changes one line of it: an item
  of a list on each line, nothing for null, and no comment behind a list.
"""
KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def markdown() -> str:
    """The page: a table for each section, a row for each parameter."""
    schema = params.schema()
    sections: dict[str, list[str]] = {}
    for dotted, field in _leaves(schema, schema):
        section = dotted.partition(".")[0] if "." in dotted else ""
        sections.setdefault(section, []).append(
            f"| `{dotted}` | {_values(field)} | {' '.join(field['description'].split())} |"
        )
    parts = [HEAD]
    for section, rows in sections.items():
        title = f"## {section}\n\n{_named(schema, section)['description']}\n\n" if section else ""
        parts.append(f"{title}| parameter | values | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def networks(names: Iterable[str] = ()) -> Iterator[tuple[str, ...]]:
    """A row of `COLUMNS` for each structure of these names, or for all: what it costs for its source's images.

    Raises `NetError` for an unknown name, before anything is counted.
    """
    from resflow import nets
    from resflow.nets.cost import cost
    from resflow.nets.table import FAMILIES

    chosen = set(names)
    for name in sorted(chosen - set(nets.names())):
        nets.find(name)
    families = [(family.structures, family.image_shape, family.classes, family.source) for family in FAMILIES]
    for structures, image_shape, classes, source in (*families, ([nets.ARTICLE], (28, 28, 1), 10, "the article")):
        for name in structures:
            if not chosen or name in chosen:
                parameters, macs = cost(name, image_shape=image_shape, num_classes=classes)
                image = "x".join(map(str, image_shape))
                yield name, f"{parameters:,}", _short(macs), image, str(classes), source


def networks_markdown(rows: Iterable[tuple[str, ...]]) -> str:
    """The table of docs/networks.md."""
    head = [f"| {' | '.join(COLUMNS)} |", "|---|--:|--:|--:|--:|---|"]
    return "\n".join([*head, *(f"| `{name}` | {' | '.join(others)} |" for name, *others in rows)]) + "\n"


def _short(macs: int) -> str:
    """As papers print: 40.55 M, 4.089 G."""
    return f"{macs / 1e9:.3f} G" if macs >= 1e9 else f"{macs / 1e6:.2f} M"


def _leaves(schema: Any, node: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in node["properties"].items():
        inner = _named(schema, name, node)
        if "properties" in inner:
            yield from _leaves(schema, inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _named(schema: Any, name: str, node: Any = None) -> Any:
    """A property of `node` (by default the whole), by way of its reference if it is one."""
    field = (node or schema)["properties"][name]
    return schema["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else field


def _values(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return ", or ".join(_values(choice) for choice in field["anyOf"])
    if "prefixItems" in field:
        return f"[{', '.join(_values(item) for item in field['prefixItems'])}]"
    if field["type"] == "object":
        return "names of parameters, each with a list or a range"
    if field["type"] == "array":
        least = field.get("minItems", 0)
        most = f", {least} to {field['maxItems']}" if "maxItems" in field else f", {least} or more"
        items = field["items"]
        return f"list of {_values(items) if 'enum' in items else KINDS[items['type']]}{most}"
    bounds = " and ".join(f"{sign} {field[key]:.10g}" for key, sign in BOUNDS.items() if key in field)
    pattern = f"`{field['pattern']}`" if "pattern" in field else ""
    return " ".join(filter(None, [KINDS[field["type"]], bounds, pattern]))
