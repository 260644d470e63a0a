from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from resflow.evaluation import mistakes

PROBABILITIES = np.array([[0.6, 0.4], [0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.1, 0.9]])
LABELS = np.array([1, 0, 1, 1, 0])
NAMES = ("cat", "a dog of a breed with a name that is much too long for one cell")


def images(channels):
    return np.random.default_rng(0).integers(0, 256, (5, 9, 7, channels), dtype=np.uint8)


def drawn(count, channels=1, labels=LABELS):
    return mistakes.draw(images(channels), PROBABILITIES, labels, NAMES, count)


def test_the_most_confident_mistakes_come_first_and_equals_in_order_of_the_images():
    assert mistakes.worst(PROBABILITIES, LABELS, 10).tolist() == [1, 3, 4, 0]
    assert mistakes.worst(PROBABILITIES, LABELS, 2).tolist() == [1, 3]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_is_a_png_without_dates_or_names_and_the_same_each_time(channels):
    content = drawn(4, channels)
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    assert image.info == {}
    assert content == drawn(4, channels)


def test_each_cell_shows_its_image():
    pixels = np.asarray(Image.open(io.BytesIO(drawn(1))).convert("L"))
    expected = images(1)[1, :, :, 0]
    side = mistakes.SIDE
    cell = pixels[mistakes.GAP : mistakes.GAP + side, mistakes.GAP : mistakes.GAP + side]
    assert set(np.unique(expected)) <= set(np.unique(cell))


@pytest.mark.parametrize(("count", "labels"), [(4, PROBABILITIES.argmax(axis=1)), (0, LABELS)])
def test_without_mistakes_there_is_still_a_picture(count, labels):
    assert Image.open(io.BytesIO(drawn(count, labels=labels))).format == "PNG"
