"""The page of the study: one HTML file that needs nothing else, its charts as PNG beside it, both from records alone.

    write_report(folder, experiments, records, command="resflow study")

What it says is `answers`, how it looks `report.html.j2`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resflow.errors import DataError
from resflow.files import write_together
from resflow.study import figures
from resflow.study.answers import ANSWERS, Answer
from resflow.study.cells import Cell
from resflow.study.experiments import Experiment
from resflow.study.record import Record, Records

__all__ = ["page", "write_report"]

TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True, kw_only=True)
class Section:
    """One question on the page."""

    experiment: Experiment
    answer: Answer
    command: str
    done: int
    """Of its trials."""
    whole: int


def write_report(folder: Path, experiments: Sequence[Experiment], records: Records, command: Sequence[str]) -> Path:
    """Write index.html and the charts to `folder`; returns the page's path. Raises `DataError`, `SetupError`.

    `command` is what made the records, but for `--only NAME`, which the page adds.
    """
    sections, used = _sections(experiments, records, command)
    if not used:
        raise DataError(str(folder), "holds no result of this study", "Run `resflow study` first")
    charts = {folder / f"{chart.name}.png": chart for section in sections for chart in section.answer.charts}
    contents = {path: figures.png(chart) for path, chart in charts.items()}
    contents[folder / "index.html"] = page(sections, used, shlex.join(command)).encode()
    write_together(contents)
    return folder / "index.html"


def page(sections: Sequence[Section], used: Sequence[Record], command: str) -> str:
    """The HTML."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    # the charts' text is escaped by matplotlib, all else here
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    train = next((record.asked["train"] for record in used if record.asked["kind"] == "train"), None)
    return template.render(
        sections=sections,
        command=command,
        svg=lambda chart: Markup(figures.svg(chart)),
        done=sum(1 for _ in used),
        machines=sorted({record.machine for record in used}),
        codes=sorted({record.code for record in used}),
        data=sorted({record.data for record in used}),
        minutes=sum(record.seconds for record in used) / 60,
        load=max(record.load for record in used),
        train=train,
        images=max((record.asked["images"] for record in used if record.asked["kind"] == "train"), default=0),
    )


def _sections(
    experiments: Sequence[Experiment], records: Records, command: Sequence[str]
) -> tuple[list[Section], list[Record]]:
    used: dict[str, Record] = {}
    sections = []
    for experiment in experiments:
        cells = []
        for point in experiment.points:
            found = list(_found(point.trials, records))
            used |= {record.key: record for record in found}
            cells.append(Cell(point=point, results=tuple(record.result for record in found)))
        section = Section(
            experiment=experiment,
            answer=ANSWERS[experiment.name](cells),
            command=shlex.join([*command, "--only", experiment.name]),
            done=sum(len(cell.results) for cell in cells),
            whole=sum(len(cell.point.trials) for cell in cells),
        )
        sections.append(section)
    return sections, list(used.values())


def _found(trials: Sequence[Any], records: Records) -> Iterator[Record]:
    return (record for trial in trials if (record := records.newest(trial.asked)))
