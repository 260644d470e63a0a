"""Save an analysis to a folder: `save(Path("analysis"), report)` writes JSON, CSV and PNG.

The pipeline's own files are those of `resflow.stages.analyze`.
"""

from __future__ import annotations

from pathlib import Path

from resflow.files import csv_bytes, json_bytes, write_together
from resflow.study import picture, tables
from resflow.study.analysis import Report

__all__ = ["save"]


def save(folder: Path, report: Report) -> None:
    """Write all figures, all files or none. Raises `SetupError`."""
    outputs = {
        "analysis.json": json_bytes(report.json(with_layers=True)),
        "analysis.png": picture.comparison(report),
        "structures.csv": csv_bytes(*tables.structures(report)),
    }
    for name, one in report.structures.items():
        outputs[f"layers-{name}.csv"] = csv_bytes(*tables.layers(one))
        outputs[f"layers-{name}.png"] = picture.layers(name, one)
    if report.machine:
        outputs["throughput.csv"] = csv_bytes(*tables.throughput(report))
        outputs["parts.csv"] = csv_bytes(*tables.parts(report))
    write_together({folder / name: content for name, content in outputs.items()})
