from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resflow.params import Study
from resflow.study.experiments import Experiment, Trial, plan
from resflow.study.record import Record, Records, digest
from resflow.study.report import write_report
from tests.unit.training.conftest import _torch_as_before  # noqa: F401  # training sets torch up for the process
from tests.unit.training.small import settings

SIZES: dict[str, Any] = {
    "images": 64,
    "epochs": 1,
    "seeds": 2,
    "factor_seeds": 2,
    "batch_size": 16,
    "lr": 0.05,
    "stem": "patch4x4",
    "depths": [8, 14],
    "widths": [2, 4],
    "factor_width": 2,
    "batches": [4, 8],
    "workers": [1],
    "speed_steps": 1,
}
STUDY = Study.model_validate(SIZES)
Draw = Callable[[Trial, np.random.Generator], dict[str, Any]]


@pytest.fixture
def experiments() -> tuple[Experiment, ...]:
    """A whole study of next to nothing."""
    return plan(STUDY, settings())


def errors(trial: Trial, draw: np.random.Generator) -> float:
    """Plain networks get worse with depth, AdamW and the article's are worse than the rest, all else is noise."""
    if trial.structure == "article_cnn":
        return 0.04 + float(draw.normal(0, 0.001))
    deep = trial.net.get("blocks", [1])[0] > 1
    base = 0.2 if deep and trial.structure == "plain8" else 0.05 if trial.train["optimizer"] == "adamw" else 0.02
    return base + float(draw.normal(0, 0.001))


def recorded(records: Records, experiments: tuple[Experiment, ...], error: Any = errors) -> Records:
    """Add a made-up result of each trial."""
    draw = np.random.default_rng(0)
    trials = {digest(t.asked): t for each in experiments for point in each.points for t in point.trials}
    for key, trial in trials.items():
        count = 2 * sum(trial.net.get("blocks", [1, 1, 1])) + 1
        size = 1000 * trial.net.get("widths", [8])[0] if trial.structure != "article_cnn" else 400_000
        slope = 0.5 if trial.structure == "plain8" else 0.1
        result: dict[str, Any] = {"images_per_second": 1000.0 * trial.train["batch_size"]}
        if trial.kind == "train":
            result = {f"{split}_error": error(trial, draw) for split in ("train", "validation", "test")}
            norms = [float(10 ** (slope * (count - at)) * draw.uniform(0.9, 1.1)) for at in range(count)]
            result |= {"parameters": size, "macs": 30 * size, "gradients": {"start": norms, "epoch": norms}}
        records.add(
            Record(
                key=key,
                code="c0de",
                data="da7a",
                asked=trial.asked,
                result=result,
                seconds=1.0,
                machine="a <machine>",
                load=0.5,
            )
        )
    return records


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a whole made-up study; drawing it takes seconds."""
    folder, experiments = tmp_path_factory.mktemp("study"), plan(STUDY, settings())
    records = recorded(Records(folder / "results.jsonl"), experiments)
    return write_report(folder, experiments, records, ["resflow", "study"])
