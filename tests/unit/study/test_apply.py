"""A point of the front in params.yaml: comments and order kept, nothing else touched, nothing invalid written."""

from __future__ import annotations

import copy
import difflib
import shutil
from pathlib import Path
from typing import Any

import pytest

from resflow import params
from resflow.errors import NetError, ParamsError
from resflow.study.apply import apply
from tests.unit.study.searched import FILE

NET = params.load(FILE).net.model_dump(mode="json")


def point(number: int, **net: Any) -> dict[str, Any]:
    return {"number": number, "net": {**NET, **net}, "train": {"lr": 0.123, "schedule": "cosine"}}


REPORT = {"front": [point(1, blocks=[1, 2], widths=[8, 16], block="preact_basic"), point(2)]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copy(FILE, tmp_path / "params.yaml")
    return tmp_path


def test_only_the_lines_of_the_point_change(root: Path) -> None:
    before = (root / "params.yaml").read_text().splitlines()
    changes = apply(root, REPORT, 1)
    after = (root / "params.yaml").read_text().splitlines()
    differ = [line[2:].strip() for line in difflib.ndiff(before, after) if line.startswith(("-", "+"))]
    blocks, widths = ["- 1", "- 2"], ["- 8", "- 16"]
    net = ["block:", "block: preact_basic", *blocks, *widths]
    assert differ == [*net, "lr: 0.04", "lr: 0.123", "schedule: triangular", "schedule: cosine"]
    assert list(changes) == ["net.block", "net.blocks", "net.widths", "train.lr", "train.schedule"]


def test_the_most_accurate_is_taken_without_a_number_and_a_second_time_changes_nothing(root: Path) -> None:
    assert apply(root, REPORT, None)["net.blocks"] == [1, 2]
    assert apply(root, REPORT, 1) == {}


def test_what_the_point_does_not_have_is_taken_back(root: Path) -> None:
    apply(root, REPORT, 1)
    changes = apply(root, REPORT, 2)
    assert changes == {"net.block": None, "net.blocks": None, "net.widths": None}
    assert params.load(root / "params.yaml").net.changes == {}


def test_a_point_that_is_not_there_is_told_with_those_that_are(root: Path) -> None:
    with pytest.raises(ParamsError, match=r"point 3: is not on the front of the last search. It has 1 to 2: `resflow"):
        apply(root, REPORT, 3)


@pytest.mark.parametrize(
    ("spoilt", "error"),
    [({"widths": [8]}, NetError), ({"block": "nonsense"}, ParamsError), ({"unknown": 1}, ParamsError)],
    ids=str,
)
def test_what_does_not_validate_is_refused_and_the_file_stays(
    root: Path, spoilt: dict[str, Any], error: type[Exception]
) -> None:
    report = copy.deepcopy(REPORT)
    report["front"][0]["net"] |= spoilt
    before = (root / "params.yaml").read_bytes()
    with pytest.raises(error):
        apply(root, report, 1)
    assert (root / "params.yaml").read_bytes() == before
