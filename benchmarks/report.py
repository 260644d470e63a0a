"""docs/benchmarks.md: one part for each benchmark, with the machine and versions it ran on."""

from __future__ import annotations

import re
from pathlib import Path

from resflow.files import write
from resflow.study.record import machine

__all__ = ["environment", "put", "record", "table"]

PAGE = Path("docs/benchmarks.md")
HEAD = """# Benchmarks

Written by the commands it names; `make bench` runs them all.

Contenders take turns. "Of the first", or of another, is the median of the ratios within a turn, lowest, highest and the
middle half are those of the ratios, and a figure by itself is its own median: the ratio of two medians may differ.
"""


def environment() -> str:
    """Processor, cores and the versions that matter, in one line."""
    return machine("torch", "ray", "prefect", "dvc")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def record(title: str, command: str, body: str) -> None:
    """Print a part and put it into the page."""
    part = f"## {title}\n\n`{command}` on {environment()}.\n\n{body}"
    print(part)
    put(part)


def put(part: str) -> None:
    """Put a part, which begins with its title, in its predecessor's place on the page, whose head is written anew."""
    page = PAGE.read_text() if PAGE.exists() else HEAD
    _, *parts = re.split(r"(?m)^(?=## )", page)
    title = part.partition("\n")[0]
    place = next((number for number, text in enumerate(parts) if text.partition("\n")[0] == title), len(parts))
    parts[place : place + 1] = [part]
    write(PAGE, "\n".join(text.rstrip() + "\n" for text in [HEAD, *parts]).encode())
