"""Show tables and errors: in colour on a terminal, as plain lines of any length on a pipe, so that `grep` finds them.

What is shown is the command line's affair.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

__all__ = ["error", "table"]


def table(rows: Iterable[Sequence[str]], *columns: str) -> None:
    """Print rows of cells, under `columns` if any are named. A cell may hold Markdown-like text, but no markup."""
    lines = [[" ".join(cell.split("\n")) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(lines, columns)
    else:
        _plain_table([list(columns), *lines] if columns else lines)


def error(text: str) -> None:
    """Print one line about what went wrong to standard error."""
    line = f"error: {' '.join(text.splitlines())}"
    sys.stdout.flush()  # what was said before comes before
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text(line, style="red"), soft_wrap=True)
    else:
        print(line, file=sys.stderr)


def _plain_table(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _rich_table(lines: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE, show_header=bool(columns))
    for at, name in enumerate(columns or lines[0]):
        shown.add_column(name, overflow="fold", no_wrap=at == 0)  # the first cell is what one copies
    for line in lines:
        shown.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in line))
    Console().print(shown)


STYLES = {"ok": "green", "note": "yellow", "bad": "bold red"}
"""Cells that the eye should find."""
