"""What an analysis says, as tables: exact ones with numbers as they are for files, and all of it for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from resflow.study.analysis import Analysis, Report
from resflow.study.size import Layer, Size
from resflow.study.speed import Part

__all__ = ["Table", "layers", "parts", "shown", "structures", "throughput"]


class Table(NamedTuple):
    """Names of columns, and rows of cells."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[object, ...]]


def structures(report: Report) -> Table:
    """The exact figures of each structure."""
    rows = [(name, *one.size) for name, one in report.structures.items()]
    return Table(("structure", *Size._fields), rows)


def layers(analysis: Analysis) -> Table:
    """The exact figures of each layer."""
    rows = [(name, kind, _shape(output), *figures) for name, kind, output, *figures in analysis.layers]
    return Table(("layer", *Layer._fields[1:]), rows)


def throughput(report: Report) -> Table:
    """Images per second in inference, by structure and size of batch; no rows where nothing was measured."""
    measured = ((name, one.speed.images_per_second) for name, one in report.structures.items() if one.speed)
    rows = [(name, count, rate) for name, rates in measured for count, rate in rates.items()]
    return Table(("structure", "batch_size", "images_per_second"), rows)


def parts(report: Report) -> Table:
    """Where the time of a training step goes, by structure, phase and kind of layer."""
    rows = [(name, *part) for name, one in report.structures.items() if one.speed for part in one.speed.parts]
    return Table(("structure", *Part._fields), rows)


def shown(report: Report, *, with_layers: bool = False) -> list[tuple[str, Table]]:
    """Titles and tables for people: what a structure is, what it took here, and where the time went."""
    found = [("Exact, for one image in float32", _sizes(report))]
    if with_layers:
        found += [(f"Layers of {name}", _layers(one)) for name, one in report.structures.items()]
    if report.machine:
        machine = report.machine
        threads = f"{machine.threads} thread{'s'[: machine.threads != 1]}"
        how = f"{machine.device}, {threads}; training in batches of {machine.batch_size}"
        peak = f"a {machine.precision} product of matrices reaches {machine.peak_flops / 1e12:.3f} TFLOP/s"
        found += [
            (f"Measured on {how}; {peak}", _speeds(report)),
            ("Where a training step's time goes", _shares(report)),
        ]
    return found


def _sizes(report: Report) -> Table:
    columns = ("structure", "image", "parameters", "MACs", "activations", "at once", "kept for backward", "file")
    rows: list[tuple[object, ...]] = []
    for name, one in report.structures.items():
        size = one.size
        memory = (_bytes(size.activation_bytes), _bytes(size.inference_bytes), _bytes(size.kept_bytes))
        counts = (f"{size.parameters:,}", f"{size.macs:,}")
        rows.append((name, _shape(one.image_shape), *counts, *memory, _bytes(size.file_bytes)))
    return Table(columns, rows)


def _layers(analysis: Analysis) -> Table:
    columns = ("layer", "kind", "output", "parameters", "MACs", "activations", "kept for backward")
    rows: list[tuple[object, ...]] = []
    for name, kind, output, parameters, macs, made, kept in analysis.layers:
        counts = (f"{parameters:,}", f"{macs:,}", _bytes(made), _bytes(kept))
        rows.append((name, kind, _shape(output), *counts))
    return Table(columns, rows)


def _speeds(report: Report) -> Table:
    measured = {name: one.speed for name, one in report.structures.items() if one.speed}
    counts = sorted({count for speed in measured.values() for count in speed.images_per_second})
    columns = (
        *("structure", "latency", "99th percentile"),
        *(f"images/s by {count}" for count in counts),
        *("training images/s", "of the peak", "training memory"),
    )
    rows: list[tuple[object, ...]] = [
        (
            name,
            f"{speed.latency_ms:.2f} ms",
            f"{speed.latency_p99_ms:.2f} ms of {speed.latency_calls} calls",
            *(f"{speed.images_per_second[count]:,.0f}" for count in counts),
            f"{speed.training_images_per_second:,.0f}",
            f"{report.share_of_peak(name):.0%}",
            _bytes(speed.training_peak_bytes),
        )
        for name, speed in measured.items()
    ]
    return Table(columns, rows)


def _shares(report: Report) -> Table:
    measured = {name: one.speed.parts for name, one in report.structures.items() if one.speed}
    shares = {name: {part[:2]: part.share for part in found} for name, found in measured.items()}
    rows: list[tuple[object, ...]] = []
    for which in dict.fromkeys(part[:2] for found in measured.values() for part in found):
        rows.append((*which, *(f"{shares[name].get(which, 0.0):.1%}" for name in measured)))
    return Table(("phase", "kind of layer", *measured), rows)


def _shape(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))


def _bytes(count: int) -> str:
    """As kB, MB or GB of 1000."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.1f} kB"
