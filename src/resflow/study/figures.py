"""Draw a chart: as SVG for a page in light or dark, and as PNG, the same bytes for the same results.

What is drawn is `answers`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from resflow.study import canvas

__all__ = ["Chart", "Line", "png", "svg"]

INK = "#20242a"
"""In the SVG it becomes the page's own colour of text."""
COLOURS = ("#d9622b", "#2f86c9", "#2a9d64", "#a05cc0", "#b8860b", "#808890")
"""Legible on white and on near-black."""
MARKS = "osD^vP"
SIZE = (5.2, 3.4)
"""Inches; text of 9 points is then still read on a phone."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points of one colour."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...] = ()
    """Standard deviations."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure."""

    name: str
    title: str
    x: str
    y: str
    kind: Literal["lines", "dots", "rows"]
    """`rows` has a row for each point, whose names are `ticks`; x is then what `y` would be."""
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False
    ticks: tuple[str, ...] = ()


def svg(chart: Chart) -> str:
    """An `<svg>` element without ids that another could have, its text as text."""
    with _drawn(chart) as figure:
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = written.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{chart.title}"', text, count=1)


def png(chart: Chart) -> bytes:
    """Dark on white."""
    with _drawn(chart) as figure:
        return canvas.png(figure, facecolor="white")


@contextmanager
def _drawn(chart: Chart) -> Iterator[Any]:
    """The figure, in the style in which it is to be saved."""
    import matplotlib

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": chart.name,  # so that two on a page share no id
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(style):
        height = max(SIZE[1], 0.24 * len(chart.ticks) + 1)
        figure = canvas.blank(SIZE[0], height, layout=None)
        axes = figure.subplots()
        left = 0.26 if chart.kind == "rows" else 0.16
        figure.subplots_adjust(left=left, right=0.97, bottom=0.45 / height, top=1 - 0.35 / height)
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        _draw(chart, axes)
        yield figure


def _draw(chart: Chart, axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    style = "none" if chart.kind in ("dots", "rows") else "-"
    marked = max((len(line.x) for line in chart.lines), default=0) <= 12
    for number, line in enumerate(chart.lines):
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)] if marked else ""
        errors = {"xerr" if chart.kind == "rows" else "yerr": line.spread or None}
        axes.errorbar(
            line.x, line.y, **errors, label=line.label, color=colour, marker=mark, linestyle=style, capsize=2, ms=4
        )
    axes.set(xlabel=chart.x, ylabel=chart.y, title=chart.title)
    axes.title.set_fontsize(10)
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    if chart.log_y:  # plain numbers, not powers of ten
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if chart.kind == "rows":
        axes.set_yticks(range(len(chart.ticks)), chart.ticks)
        axes.invert_yaxis()
    elif chart.kind == "lines" and marked:
        axes.set_xticks(sorted({x for line in chart.lines for x in line.x}))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
    if chart.kind == "lines" and not chart.log_y:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(chart.lines) > 1:
        axes.legend(frameon=False, fontsize=8)
