"""What a search found: the front with what its points reach, as JSON, a table, and a picture.

    report = measured(plan, front(plan), test)     # the only place that touches the test split
    save(root / "study", report)

Nothing of it is hashed: latencies and seconds are in it. How the trainings came about is `search` and `plan`.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from resflow import compute
from resflow.data import arrays
from resflow.errors import DataError
from resflow.evaluation import inference, metrics
from resflow.files import csv_bytes, sha256, write_together
from resflow.nets import file as model_file
from resflow.study import budget, trial
from resflow.study.canvas import blank, png
from resflow.study.front import first_front, fronts
from resflow.study.plan import Plan, allowed, finals_of, known, objectives
from resflow.study.record import checked, digest
from resflow.study.trial import Status, Training

__all__ = ["COLUMNS", "FILE", "ends", "load", "measured", "rows", "save"]

FILE = Path("study/search.json")
"""In the project; the table and the picture lie beside it."""
BATCH = 1000
DAMAGED = "Run `resflow search`, which writes it anew"
COLUMNS = ("point", "validation", "test", "parameters", "MACs", "latency ms", "what it is")
"""Of the table on the terminal."""


class Spread(BaseModel):
    """Accuracies of several seeds."""

    mean: float
    """0 where no seed reached its end: all diverged, or memory was not enough for them."""
    std: float | None
    n: int


class Found(BaseModel):
    """A point of the front."""

    number: int
    on_front: bool
    """Also by its mean over seeds."""
    point: dict[str, Any]
    net: dict[str, Any]
    train: dict[str, Any]
    """Parameters of params.yaml that `resflow search apply` sets."""
    parameters: int
    macs: int
    latency_ms: float
    trial_accuracy: float
    validation: Spread
    test: Spread
    diverged: int
    memory: int = 0
    """Seeds for which it was not enough."""
    runs: dict[str, float]
    """Test accuracy of each training, by its name."""


class Tried(BaseModel):
    """A trial."""

    number: int
    status: Status
    rank: int | None
    accuracy: float
    epochs: int
    parameters: int
    macs: int
    latency_ms: float
    seconds: float | None
    point: dict[str, Any]


class Report(BaseModel):
    """What study/search.json holds."""

    space: dict[str, Any]
    budgets: dict[str, float | None]
    epochs: dict[str, int]
    test_split: str = ""
    """Hash of the arrays that the test accuracies are of; none in reports that were written without it."""
    front: list[Found]
    trials: list[Tried]


def measured(plan: Plan, chosen: Sequence[Training], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """The report on the chosen points, whose trainings are done: each is measured on the test split, once.

    What `earlier`, a report of before, has of the same trainings on the same test split is taken from there. The most
    accurate comes first. Raises `DataError`.
    """
    runs = {record.name: record for record in trial.read(plan.finals)}
    test_split = _test_split(plan)  # which no training reads, so that their names do not tell it
    if earlier and earlier.get("test_split") != test_split:
        earlier = None
    before = {name: accuracy for point in (earlier or {}).get("front", []) for name, accuracy in point["runs"].items()}
    cards = {record.name: plan.job(record.point).card for record in chosen}
    # again, now that nothing else computes
    latencies = {card.structure: budget.latency_ms(card) for card in cards.values()}
    points = [
        _point(plan, record, runs, before) | {"latency_ms": latencies[cards[record.name].structure]}
        for record in chosen
    ]
    points.sort(key=lambda point: (-point["validation"]["mean"], point["macs"]))
    still = first_front([objectives(one["validation"]["mean"], one["macs"], one["latency_ms"]) for one in points])
    for number, point in enumerate(points, 1):
        point |= {"number": number, "on_front": number - 1 in still}
    search = plan.params.search
    return {
        "space": search.model_dump(mode="json")["space"],
        "budgets": search.model_dump(include={"max_parameters", "max_macs", "max_latency_ms", "max_seconds"}),
        "epochs": {"trials": search.epochs, "final": plan.params.train.epochs},
        "test_split": test_split,
        "front": points,
        "trials": _trials(plan),
    }


def _point(plan: Plan, record: Training, runs: dict[str, Training], before: dict[str, float]) -> dict[str, Any]:
    finals = finals_of(plan, record)
    jobs = [job for job in finals if runs[job.name].status == "done"]
    ended = Counter(runs[job.name].status for job in finals)
    tested = {job.name: before[job.name] if job.name in before else _test(plan, job.name) for job in jobs}
    resolved = plan.resolved(record.point)
    return {
        "point": dict(record.point),
        "net": resolved.net.model_dump(mode="json"),
        "train": {name.partition(".")[2]: value for name, value in record.point.items() if name.startswith("train.")},
        "parameters": record.parameters,
        "macs": record.macs,
        "trial_accuracy": record.accuracy,
        "validation": _spread([runs[job.name].accuracy for job in jobs]),
        "test": _spread(list(tested.values())),
        "diverged": ended["diverged"],
        "memory": ended["memory"],
        "runs": tested,
    }


def _spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds; no deviation of one."""
    return {
        "mean": statistics.fmean(values) if values else 0.0,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def _test_split(plan: Plan) -> str:
    """One name for the test split, by its content."""
    return digest([*map(sha256, arrays.paths(plan.base.arrays.folder, "test"))])


def _test(plan: Plan, name: str) -> float:
    net, card = model_file.load(plan.finals / f"{name}.safetensors")
    test = arrays.load(plan.base.arrays.folder, "test")
    with compute.deterministic(plan.params.train.threads):
        device = compute.measuring_device(plan.params.train.device)
        return metrics.accuracy(inference.logits(net, test.images, card, BATCH, device), test.labels)


def _trials(plan: Plan) -> list[dict[str, Any]]:
    """All trials, with the rank of those that nothing stopped: 1 is the front, 2 is the front without it, and so on."""
    records = [record for record in known(plan) if record.status != "running"]
    whole = [record for record in records if record.status == "done" and allowed(plan, record)]
    ranked = fronts([objectives(record.accuracy, record.macs, record.latency_ms) for record in whole])
    ranks = {whole[at].name: rank for rank, places in enumerate(ranked, 1) for at in places}
    return [
        {
            "number": record.number,
            "status": record.status,
            "rank": ranks.get(record.name),
            "accuracy": record.accuracy,
            "epochs": len(record.accuracies),
            "parameters": record.parameters,
            "macs": record.macs,
            "latency_ms": record.latency_ms,
            "seconds": record.seconds,
            "point": dict(record.point),
        }
        for record in records
    ]


def load(root: Path) -> dict[str, Any]:
    """The report of the last search. Raises `DataError`."""
    path = root / FILE
    try:
        return checked(TypeAdapter(Report), path.read_text(), str(path), "is damaged", DAMAGED).model_dump()
    except FileNotFoundError as error:
        raise DataError(str(path), "there is no result of a search", "Run `resflow search`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"is damaged ({error})", DAMAGED) from error


def save(root: Path, report: dict[str, Any]) -> None:
    """Write study/search.json, search.csv, one row a trial, and search.png, all or none. Raises `SetupError`."""
    path = root / FILE
    trials = report["trials"]
    header = [*(key for key in trials[0] if key != "point"), *trials[0]["point"]] if trials else ["number"]
    table = [
        [*(value for key, value in one.items() if key != "point"), *map(_shown, one["point"].values())]
        for one in trials
    ]
    content = {
        path: (json.dumps(report, indent=2) + "\n").encode(),  # unrounded: `apply` writes a rate as it was trained
        path.with_suffix(".csv"): csv_bytes(header, table),
        path.with_suffix(".png"): _picture(report),
    }
    write_together(content)


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The front as a row of `COLUMNS` for each point."""
    return [
        (
            str(point["number"]),
            _percent(point, "validation"),
            _percent(point, "test"),
            f"{point['parameters']:,}",
            f"{point['macs'] / 1e6:.2f} M",
            f"{point['latency_ms']:.2f}",
            "  ".join(f"{name.partition('.')[2]} {_shown(value)}" for name, value in point["point"].items())
            + ("" if point["on_front"] else "  (behind the front by its mean)"),
        )
        for point in report["front"]
    ]


def ends(report: dict[str, Any]) -> str:
    """How the trials ended, in one line."""
    counts = Counter(one["status"] for one in report["trials"])
    return f"trials: {', '.join(f'{counts[status]} {words}' for status, words in trial.ENDS.items() if counts[status])}"


def _percent(point: dict[str, Any], split: str) -> str:
    spread = point[split]
    if not spread["n"]:
        return trial.ENDS["memory" if point["memory"] else "diverged"]
    deviation = f" ± {100 * spread['std']:.2f}" if spread["std"] is not None else ""
    return f"{100 * spread['mean']:.2f}{deviation} % ({spread['n']})"


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _picture(report: dict[str, Any]) -> bytes:
    """Accuracy against MACs: trials as points, and the front by its means over seeds, coloured by latency."""
    figure = blank(8, 5)
    axes = figure.subplots()
    whole = [one for one in report["trials"] if one["status"] == "done"]
    axes.scatter(
        [one["macs"] for one in whole],
        [100 * one["accuracy"] for one in whole],
        s=16,
        color="0.6",
        label=f"trials of {report['epochs']['trials']} epochs",
    )
    points = [point for point in report["front"] if point["validation"]["n"]]
    if points:
        macs, means = [one["macs"] for one in points], [100 * one["validation"]["mean"] for one in points]
        spread = [100 * (one["validation"]["std"] or 0.0) for one in points]
        label = f"front, {report['epochs']['final']} epochs, mean and standard deviation"
        axes.errorbar(macs, means, yerr=spread, fmt="none", ecolor="0.3", capsize=3)
        shown = axes.scatter(macs, means, c=[one["latency_ms"] for one in points], s=48, zorder=3, label=label)
        figure.colorbar(shown, ax=axes, label="latency of one image (ms)")
        for one, across, up in zip(points, macs, means, strict=True):
            axes.annotate(str(one["number"]), (across, up), xytext=(5, 5), textcoords="offset points")
    axes.set(xscale="log", xlabel="multiply-accumulates for one image", ylabel="validation accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return png(figure)
