"""The stage `robustness`: measure the trained model on corrupted and on attacked test images.

Writes metrics/robustness.json and plots/robustness/, which are hashed and so hold nothing that depends on time, and
timings/robustness.json, which is not. What is measured is `resflow.evaluation.robustness`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resflow.data import arrays
from resflow.data.arrays import Split
from resflow.evaluation import samples
from resflow.evaluation.metrics import wilson
from resflow.files import csv_bytes, json_bytes, write, write_together
from resflow.params import Params, Robustness
from resflow.stages.paths import METRICS, MODEL, PLOTS, PREPARED, TIMINGS

if TYPE_CHECKING:
    from resflow.evaluation.robustness import Subject

__all__ = ["run"]

INTERVAL = ("accuracy", "low", "high")
SHOWN = 2
"""Images that the picture shows of each corruption."""


class Cell(NamedTuple):
    """An accuracy, and the interval that holds the true one with a confidence of 95 %."""

    accuracy: float
    low: float
    high: float


class Table(NamedTuple):
    """All that was measured; an attack's cells stand by its name and epsilon."""

    images: int
    """That each accuracy is of."""
    clean: Cell | None
    corruptions: Mapping[str, list[Cell]]
    attacks: Mapping[str, dict[float, Cell]]


def run(root: Path, params: Params) -> None:
    """Measure models/model.safetensors on test images of data/prepared. Raises `DataError`."""
    settings = params.robustness
    table, picture, seconds = Table(0, None, {}, {}), _picture(np.empty(0, np.uint8), [], params.seed), 0.0
    if settings.corruptions or settings.epsilons:  # else torch would take seconds to load, for nothing
        table, picture, seconds = _measure(root, params)
    outputs = {root / METRICS / "robustness.json": json_bytes(_report(table, settings))}
    outputs |= {root / PLOTS / "robustness" / name: content for name, content in _plots(table)}
    outputs[root / PLOTS / "robustness" / "corruptions.png"] = picture
    write_together(outputs)
    write(root / TIMINGS / "robustness.json", json_bytes({"seconds": seconds}))
    print(_said(table), flush=True)


def _measure(root: Path, params: Params) -> tuple[Table, bytes, float]:
    """The table, the picture, and the seconds that both took."""
    from resflow import compute
    from resflow.evaluation import inference
    from resflow.evaluation.robustness import Subject
    from resflow.nets import file

    start = time.perf_counter()
    settings, path = params.robustness, root / MODEL
    net, card = file.load(path)
    test = arrays.load(root / PREPARED, "test")
    inference.check_fit(path, card, test)
    images, labels = _drawn(test, settings.images, params.seed)
    with compute.deterministic(params.train.threads):
        device = compute.measuring_device(params.train.device)
        subject = Subject(net, card, images, labels, downsample=settings.downsample, device=device)
        table = _table(subject, settings, params.seed, len(labels))
        picture = _picture(images[:SHOWN], settings.corruptions, params.seed)
    return table, picture, time.perf_counter() - start


def _drawn(test: Split, count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """So many of the images, or all if there are fewer, and their labels, drawn by the seed."""
    chosen = np.sort(np.random.Generator(np.random.PCG64([seed, count])).permutation(len(test.labels))[:count])
    return test.images[chosen], test.labels[chosen]


def _table(subject: Subject, settings: Robustness, seed: int, count: int) -> Table:
    from resflow.evaluation.corruptions import SEVERITIES

    clean = _cell(subject.clean())
    corruptions: dict[str, list[Cell]] = {
        name: [_cell(subject.corrupted(name, severity, seed)) for severity in SEVERITIES]
        for name in dict.fromkeys(settings.corruptions)
    }
    if not settings.epsilons:
        return Table(count, clean, corruptions, {})
    under_pgd = subject.under_pgd(
        settings.epsilons,
        steps=settings.steps,
        step_size=settings.step_size,
        restarts=settings.restarts,
        seed=seed,
    )
    attacks = {
        "fgsm": {epsilon: _cell(subject.under_fgsm(epsilon)) for epsilon in sorted(set(settings.epsilons))},
        "pgd": {epsilon: _cell(right) for epsilon, right in under_pgd},
    }
    return Table(count, clean, corruptions, attacks)


def _cell(right: NDArray[np.bool_]) -> Cell:
    return Cell(float(right.mean()), *wilson(int(right.sum()), len(right)))


def _report(table: Table, settings: Robustness) -> dict[str, Any]:
    means = {name: _mean(cells) for name, cells in table.corruptions.items()}
    report: dict[str, Any] = {"images": table.images, "downsample": settings.downsample}
    if table.clean:
        report["clean"] = table.clean._asdict()
    if means:
        report["corrupted"] = sum(means.values()) / len(means)
        report["corruptions"] = means
    for attack, cells in table.attacks.items():
        report[attack] = {f"{epsilon:g}": cell._asdict() for epsilon, cell in cells.items()}
    return report


def _plots(table: Table) -> list[tuple[str, bytes]]:
    each = ((name, number, *cell) for name, cells in table.corruptions.items() for number, cell in enumerate(cells, 1))
    severities = ((number, *summary) for number, summary in enumerate(_by_severity(table.corruptions.values()), 1))
    attacks: list[tuple[float, ...]] = []
    if table.clean and table.attacks:
        attacks = [(0.0, *table.clean, *table.clean)]
        attacks += [(epsilon, *cell, *table.attacks["pgd"][epsilon]) for epsilon, cell in table.attacks["fgsm"].items()]
    return [
        ("corruptions.csv", csv_bytes(("corruption", "severity", *INTERVAL), each)),
        ("severities.csv", csv_bytes(("severity", "mean", "lowest", "highest"), severities)),
        ("attacks.csv", csv_bytes(("epsilon", "fgsm", "fgsm_low", "fgsm_high", "pgd", "pgd_low", "pgd_high"), attacks)),
    ]


def _by_severity(corruptions: Iterable[list[Cell]]) -> list[tuple[float, float, float]]:
    """Mean, lowest and highest accuracy over the corruptions, one row a severity."""
    columns = [[cell.accuracy for cell in cells] for cells in zip(*corruptions, strict=True)]
    return [(sum(column) / len(column), min(column), max(column)) for column in columns]


def _mean(cells: list[Cell]) -> float:
    return sum(cell.accuracy for cell in cells) / len(cells)


def _said(table: Table) -> str:
    if not table.clean:
        return "nothing was asked for: robustness.corruptions and robustness.epsilons are empty"
    said = [f"clean {table.clean.accuracy:.2%}"]
    if table.corruptions:
        said.append(f"corrupted {_mean([cell for cells in table.corruptions.values() for cell in cells]):.2%}")
    for attack, cells in table.attacks.items():
        said += [f"{attack} at {epsilon:g} {cell.accuracy:.2%}" for epsilon, cell in cells.items()]
    return ", ".join(said)


def _picture(images: NDArray[np.uint8], names: Iterable[str], seed: int) -> bytes:
    """Images of each corruption: as they were, then at each severity."""
    rows = {}
    for name in names:
        from resflow.evaluation.corruptions import SEVERITIES, corrupt

        each = np.stack([images, *(corrupt(images, name, severity, seed) for severity in SEVERITIES)], 1)
        rows[name] = each.reshape(-1, *images.shape[1:])
    return samples.draw(rows, "robustness.corruptions is empty")
