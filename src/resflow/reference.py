"""docs/parameters.md, written from the typed parameters: `resflow schema --markdown`.

What a parameter means stands in `resflow.params`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from resflow import params

__all__ = ["markdown"]

HEAD = """\
# Parameters

All of them stand in [params.yaml](../params.yaml), the one place where they are set; there is no default elsewhere.
This page is written by `resflow schema --markdown > docs/parameters.md` from `src/resflow/params.py`.

- Editors with a YAML language server complete and check `params.yaml` by [params.schema.json](params.schema.json),
  which its first line names (`resflow schema > docs/params.schema.json`).
- For one run alone: `resflow run -S train.lr=0.1 -S train.epochs=5`, or a file of parameters,
  `resflow run --params experiments/article.yaml`; of both, `-S` wins. Your files stay as they are.
- An unknown key, a wrong type or a value out of range is an error before anything starts.
- A stage of `dvc.yaml` runs again when one of the parameters it lists has changed.
"""
KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
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
    if field["type"] == "array":
        most = (
            f", {field['minItems']} to {field['maxItems']}" if "maxItems" in field else f", {field['minItems']} or more"
        )
        return f"list of {KINDS[field['items']['type']]}{most}"
    bounds = " and ".join(f"{sign} {field[key]:.10g}" for key, sign in BOUNDS.items() if key in field)
    pattern = f"`{field['pattern']}`" if "pattern" in field else ""
    return " ".join(filter(None, [KINDS[field["type"]], bounds, pattern]))
