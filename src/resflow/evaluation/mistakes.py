"""Draw the mistakes that a model was surest of, as a PNG whose bytes depend on nothing but its input.

Choosing how many, and where the file goes, is `resflow.stages.evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from resflow.evaluation.drawing import INK, PAPER, enlarged, font, png

__all__ = ["draw", "worst"]

SIDE = 112  # pixels of an image in its cell
LINE = 16
TEXT = 3 * LINE + 2  # pixels of the three lines beneath it
GAP = 14
COLUMNS = 5
RED = (176, 32, 32)


def worst(probabilities: NDArray[np.float64], labels: NDArray[np.integer[Any]], count: int) -> NDArray[np.int64]:
    """Indices of at most `count` wrongly classified images, the most confident first, ties in order of the images."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return wrong[order][:count].astype(np.int64)


def draw(
    images: NDArray[np.uint8],
    probabilities: NDArray[np.float64],
    labels: NDArray[np.integer[Any]],
    classes: Sequence[str],
    count: int,
) -> bytes:
    """A PNG of the `count` most confident mistakes among uint8 images (N, H, W, C), each with its two classes."""
    chosen = worst(probabilities, labels, count)
    if not len(chosen):
        return _blank("no mistakes" if count else "evaluate.mistakes is 0")
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (GAP + columns * (SIDE + GAP), GAP + rows * (SIDE + TEXT + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        row, column = divmod(place, columns)
        x, y = GAP + column * (SIDE + GAP), GAP + row * (SIDE + TEXT + GAP)
        sheet.paste(enlarged(images[index], SIDE), (x, y))
        predicted = int(probabilities[index].argmax())
        below = [
            (f"true {classes[int(labels[index])]}", INK),
            (f"read as {classes[predicted]}", RED),
            (f"{_percent(probabilities[index, predicted])}, #{index}", INK),
        ]
        for number, (text, colour) in enumerate(below):
            _line(pen, (x, y + SIDE + 2 + number * LINE), text, colour)
    return png(sheet)


def _percent(probability: float) -> str:
    # never "100 %": a mistake shows that it was not certain
    return f"{min(100 * probability, 99.9):.1f} %"


def _line(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: tuple[int, int, int]) -> None:
    while text and font().getlength(text) > SIDE:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 2 else ""
    pen.text(place, text, fill=colour, font=font())


def _blank(text: str) -> bytes:
    sheet = Image.new("RGB", (2 * GAP + 2 * SIDE, 3 * GAP), PAPER)
    ImageDraw.Draw(sheet).text((GAP, GAP), text, fill=INK, font=font())
    return png(sheet)
