"""The stage `analyze`: what the structure of `net` costs for the images of the data set, beside others.

Writes metrics/analyze.json and plots/analyze/, which are hashed and hold exact figures alone, and what was measured to
timings/analyze.json and timings/analyze/, which are not. What the figures mean is `resflow.study`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from resflow.files import csv_bytes, json_bytes, write_together
from resflow.params import Params
from resflow.stages.card import called
from resflow.stages.card import card as describe
from resflow.stages.paths import METRICS, PLOTS, TIMINGS
from resflow.study import tables
from resflow.study.analysis import Report, analyse

__all__ = ["run"]


def run(root: Path, params: Params) -> None:
    """Analyse the structures of `params`. Raises `DataError`, `NetError`, or `SetupError` where memory is short."""
    started = time.perf_counter()
    own = describe(root, params.net)
    name = called(params.net.name, own)
    cards = {name: own}
    cards |= {other: replace(own, structure=other) for other in params.analyze.structures if other != name}
    report = analyse(cards, params.train, params.analyze)
    compared = {other: one.size._asdict() for other, one in report.structures.items() if other != name}
    size = report.structures[name].size
    outputs: dict[Path, bytes] = {
        METRICS / "analyze.json": json_bytes({**size._asdict(), **({"compared": compared} if compared else {})}),
        PLOTS / "analyze/layers.csv": csv_bytes(*tables.layers(report.structures[name])),
        PLOTS / "analyze/structures.csv": csv_bytes(*tables.structures(report)),
        **_measured(root, report, name, started),
    }
    write_together({root / path: content for path, content in outputs.items()})
    print(f"{name}: {size.parameters:,} parameters, {size.macs / 1e6:,.2f} million multiply-accumulates", flush=True)


def _measured(root: Path, report: Report, name: str, started: float) -> Mapping[Path, bytes]:
    """What depends on time goes where nothing is hashed; nothing old stays there that this run has not measured.

    The tables are of the structure `name` alone: plots would add up those of several.
    """
    if not report.machine:
        (root / TIMINGS / "analyze.json").unlink(missing_ok=True)
        shutil.rmtree(root / TIMINGS / "analyze", ignore_errors=True)
        return {}
    own = replace(report, structures={name: report.structures[name]})
    return {
        TIMINGS / "analyze.json": json_bytes({"seconds": time.perf_counter() - started, **report.json()}),
        TIMINGS / "analyze/throughput.csv": csv_bytes(*tables.throughput(own)),
        TIMINGS / "analyze/parts.csv": csv_bytes(*tables.parts(own)),
    }
