from __future__ import annotations

import numpy as np
import pytest

from resflow.evaluation.drawing import enlarged

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 9, 7), dtype=np.uint8)


@pytest.mark.parametrize(
    ("channels", "shown"),
    [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (5, [0, 1, 2]), (7, [0, 1, 2])],
)
def test_of_more_than_three_channels_the_first_three_are_shown_and_of_two_the_first(channels, shown):
    cell = np.asarray(enlarged(IMAGE[:, :, :channels], 18))
    assert np.array_equal(cell, IMAGE[:, :, shown].repeat(2, 0).repeat(2, 1))
