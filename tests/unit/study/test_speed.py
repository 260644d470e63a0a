"""What is measured: that every figure is there and fits what is exact. No time is asserted."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from resflow import params as parameters
from resflow.errors import SetupError
from resflow.nets import Structure
from resflow.nets.file import ModelCard
from resflow.study import speed
from resflow.study.size import Size, size

ROOT = Path(__file__).parents[3]
LOADED = parameters.load(ROOT / "params.yaml")
SMALL = ModelCard(
    structure=Structure(blocks=(1, 1), widths=(8, 16)), image_shape=(16, 16, 1), classes=("a", "b"), mean=(0,), std=(1,)
)
TRAIN = {"batch_size": 64, "threads": 1, "device": "cpu", "precision": "float32", "optimizer": "sgd", "momentum": 0.9}
ANALYZE = LOADED.analyze.model_copy(update={"seconds": 0.01, "batch_sizes": (2, 16)})


def train(**changes: object) -> parameters.Train:
    return LOADED.train.model_copy(update=TRAIN | changes)


def test_every_figure_is_measured_and_the_memory_of_training_holds_what_is_exact() -> None:
    measured, exact = speed.measure(SMALL, train(), ANALYZE, "small"), size(SMALL)
    assert 0 < measured.latency_ms <= measured.latency_p99_ms
    assert measured.latency_calls >= speed.LEAST_LATENCY
    assert list(measured.images_per_second) == [2, 16]
    assert measured.training_flops == pytest.approx(6 * exact.macs * measured.training_images_per_second)

    weights = 4 * exact.parameters
    least = 64 * exact.kept_bytes + 3 * weights  # what is kept, and weights, gradients, momentum
    assert least < measured.training_peak_bytes < 2 * least

    parts = {(part.phase, part.kind): part for part in measured.parts}
    assert len(parts) == len(measured.parts)
    assert {phase for phase, _ in parts} == {"forward", "backward", "update"}
    assert {(phase, kind) for phase in ("forward", "backward") for kind in ("convolution", "norm")} <= set(parts)
    assert sum(part.share for part in measured.parts) == pytest.approx(1)


def test_adamw_takes_a_number_more_for_each_weight_than_momentum() -> None:
    wide = ModelCard(
        structure=Structure(blocks=(1,), widths=(128,)), image_shape=(4, 4, 1), classes=("a", "b"), mean=(0,), std=(1,)
    )
    still = ANALYZE.model_copy(update={"batch_sizes": ()})
    sgd, adamw = (
        speed.measure(wide, train(batch_size=2, optimizer=name), still, "wide").training_peak_bytes
        for name in ("sgd", "adamw")
    )
    assert adamw - sgd == pytest.approx(4 * size(wide).parameters, rel=0.05)


@pytest.mark.parametrize(
    ("batch_size", "batch_sizes", "told"),
    [
        (64, (10**10,), r"inference on batches of 10000000000 takes more .* free\. Lower analyze.batch_sizes"),
        (10**10, (), r"training on batches of 10000000000 takes more .* free\. Lower train.batch_size"),
    ],
)
def test_a_batch_that_no_memory_holds_is_told_before_it_is_tried(
    batch_size: int, batch_sizes: tuple[int, ...], told: str
) -> None:
    with pytest.raises(SetupError, match=f"^small: {told}"):
        speed.measure(
            SMALL, train(batch_size=batch_size), ANALYZE.model_copy(update={"batch_sizes": batch_sizes}), "small"
        )


def test_memory_that_runs_out_all_the_same_is_told_in_one_line() -> None:
    with (
        pytest.raises(SetupError, match=r"^small: training on batches of 1 does not fit in memory\. Lower train"),
        speed._enough_memory(SMALL, 1, torch.device("cpu"), "small", train()),
    ):
        torch.empty(2**60, dtype=torch.uint8)


def test_the_page_of_the_analysis_explains_every_figure() -> None:
    page = (ROOT / "docs/analyze.md").read_text()
    figures = [*Size._fields, *(field.name for field in fields(speed.Speed)), "share_of_peak"]
    assert [name for name in figures if f"`{name}`" not in page] == []
