"""The data sheet's numbers are right, and the same for the same arrays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from resflow.data import sheet
from resflow.data.arrays import Split


def splits(channels: int = 1) -> dict[str, Split]:
    rng = np.random.default_rng(0)
    return {
        name: Split(rng.integers(0, 256, (count, 4, 5, channels), np.uint8), rng.integers(0, 3, count).astype(np.uint8))
        for name, count in {"train": 5000, "validation": 20, "test": 30}.items()
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_are_those_of_the_training_split_alone(channels: int) -> None:
    made = splits(channels)
    described = sheet.describe(made, ("a", "b", "c"))
    pixels = made["train"].images.astype(np.float64) / 255
    assert described["mean"] == pytest.approx(pixels.mean((0, 1, 2)).tolist(), rel=1e-12)
    assert described["std"] == pytest.approx(pixels.std((0, 1, 2)).tolist(), rel=1e-12)
    assert described["image_shape"] == [4, 5, channels]


def test_every_class_is_counted_in_every_split_even_when_absent() -> None:
    made = splits()
    described = sheet.describe(made, ("a", "b", "c", "never"))
    for name, split in made.items():
        counts = described["splits"][name]["class_counts"]
        assert counts == {c: int((split.labels == i).sum()) for i, c in enumerate(described["classes"])}
        assert described["splits"][name]["count"] == len(split.labels)


def test_duplicates_across_splits_are_counted_and_the_first_are_named() -> None:
    made = splits()
    made["test"].images[[3, 4]] = made["train"].images[[70, 8]]
    made["test"].images[9] = made["validation"].images[2]
    made["train"].images[100] = made["train"].images[70]  # within one split: no leak
    found = sheet.describe(made, ("a", "b", "c"))["duplicates"]
    assert found == {
        "train/validation": {"count": 0, "examples": []},
        "train/test": {"count": 2, "examples": [{"train": 70, "test": 3}, {"train": 8, "test": 4}]},
        "validation/test": {"count": 1, "examples": [{"validation": 2, "test": 9}]},
    }


def test_only_a_few_duplicates_are_named_but_all_are_counted() -> None:
    made = splits()
    made["test"].images[:12] = made["train"].images[:12]
    found = sheet.describe(made, ("a", "b", "c"))["duplicates"]["train/test"]
    assert found["count"] == 12
    assert len(found["examples"]) == sheet.EXAMPLES


def test_a_repeated_image_counts_as_often_as_it_stands_in_the_later_split() -> None:
    made = splits()
    made["test"].images[:3] = made["train"].images[5]
    found = sheet.describe(made, ("a", "b", "c"))["duplicates"]["train/test"]
    assert found["count"] == 3


def test_the_text_is_sorted_indented_and_ends_with_a_newline() -> None:
    described = sheet.describe(splits(), ("a", "b", "c"))
    text = sheet.to_json(described)
    assert json.loads(text) == described
    assert text == json.dumps(described, indent=2, sort_keys=True) + "\n"
