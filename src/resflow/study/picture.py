"""Draw an analysis with Matplotlib, as the bytes of PNG files. The figures themselves are in `tables`."""

from __future__ import annotations

from typing import Any

from resflow.study.analysis import Analysis, Report
from resflow.study.canvas import blank, png
from resflow.study.kinds import KINDS

__all__ = ["comparison", "layers"]

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#bbbbbb")
"""Of the kinds of layers, in their order; told apart by the colour-blind too (Paul Tol's bright scheme)."""
COLOUR = dict(zip(KINDS, COLOURS, strict=True))
TALLEST = 60.0
"""Inches of a picture; networks of many hundreds of layers are drawn without the names."""


def comparison(report: Report) -> bytes:
    """Structures side by side: operations, memory and, where measured, throughput and where time goes."""
    figure = blank(9, 7 if report.machine else 3.5)
    axes = figure.subplots(2 if report.machine else 1, 2, squeeze=False)
    sizes = {name: one.size for name, one in report.structures.items()}
    _bars(axes[0, 0], {name: size.macs / 1e6 for name, size in sizes.items()}, "million multiply-accumulates an image")
    kept = {name: size.kept_bytes / 1e6 for name, size in sizes.items()}
    _bars(axes[0, 1], kept, "MB that training keeps for an image")
    if report.machine:
        _throughput(axes[1, 0], report)
        _parts(axes[1, 1], report)
    return png(figure)


def layers(name: str, analysis: Analysis) -> bytes:
    """Operations and memory of each layer of one structure, from the first to the last."""
    rows = analysis.layers
    height = 1.5 + 0.16 * len(rows)
    figure = blank(9, min(height, TALLEST))
    columns = figure.subplots(1, 2, sharey=True)
    for axes, values, label in (
        (columns[0], [row.macs / 1e6 for row in rows], "million multiply-accumulates an image"),
        (columns[1], [row.kept_bytes / 1e3 for row in rows], "kB that training keeps for an image"),
    ):
        axes.barh(range(len(rows)), values, color=[COLOUR[row.kind] for row in rows])
        axes.set_xlabel(label)
    if height <= TALLEST:
        columns[0].set_yticks(range(len(rows)), [row.name for row in rows], fontsize=6)
    columns[0].set_ylim(len(rows) - 0.5, -0.5)
    _legend(columns[1], [kind for kind in KINDS if any(row.kind == kind for row in rows)])
    figure.suptitle(name)
    return png(figure)


def _bars(axes: Any, values: dict[str, float], label: str) -> None:
    axes.barh(list(values), list(values.values()), color=COLOURS[0])
    axes.invert_yaxis()
    axes.set_xlabel(label)


def _throughput(axes: Any, report: Report) -> None:
    for name, one in report.structures.items():
        if one.speed and one.speed.images_per_second:
            counts, rates = zip(*sorted(one.speed.images_per_second.items()), strict=True)
            axes.plot(counts, rates, marker="o", label=name)
            axes.set_xscale("log")
            axes.set_xticks(counts, counts)
            axes.minorticks_off()
            axes.legend(fontsize=7)
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("images/s in inference")


def _parts(axes: Any, report: Report) -> None:
    """A bar a structure and phase, its kinds of layers one after the other."""
    labels: list[str] = []
    for name, one in report.structures.items():
        for phase in ("forward", "backward", "update"):
            labels.append(f"{name}, {phase}")
            left = 0.0
            for part in one.speed.parts if one.speed else ():
                if part.phase == phase:
                    axes.barh(len(labels) - 1, part.milliseconds, left=left, color=COLOUR[part.kind])
                    left += part.milliseconds
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ms of a training step")
    _legend(axes, list(KINDS))


def _legend(axes: Any, kinds: list[str]) -> None:
    from matplotlib.patches import Patch

    axes.legend(handles=[Patch(color=COLOUR[kind], label=kind) for kind in kinds], fontsize=7)
