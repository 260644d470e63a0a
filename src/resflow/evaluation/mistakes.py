"""Draw the mistakes that a model was surest of, as a PNG whose bytes depend on nothing but its input.

Choosing how many, and where the file goes, is `resflow.stages.evaluate`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw", "worst"]

SIDE = 112  # pixels of an image in its cell
LINE = 16
TEXT = 3 * LINE + 2  # pixels of the three lines beneath it
GAP = 14
COLUMNS = 5
PAPER, INK, RED = (255, 255, 255), (32, 32, 32), (176, 32, 32)


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
        sheet.paste(_enlarged(images[index]), (x, y))
        predicted = int(probabilities[index].argmax())
        below = [
            (f"true {classes[int(labels[index])]}", INK),
            (f"read as {classes[predicted]}", RED),
            (f"{_percent(probabilities[index, predicted])}, #{index}", INK),
        ]
        for number, (text, colour) in enumerate(below):
            _line(pen, (x, y + SIDE + 2 + number * LINE), text, colour)
    return _png(sheet)


def _percent(probability: float) -> str:
    # never "100 %": a mistake shows that it was not certain
    return f"{min(100 * probability, 99.9):.1f} %"


def _enlarged(image: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGB")
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    cell = Image.new("RGB", (SIDE, SIDE), PAPER)
    cell.paste(picture.resize(size, Image.Resampling.NEAREST), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return cell


def _line(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: tuple[int, int, int]) -> None:
    font = _font()
    while text and font.getlength(text) > SIDE:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 2 else ""
    pen.text(place, text, fill=colour, font=font)


@cache
def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=13)
    assert isinstance(font, ImageFont.FreeTypeFont)  # given a size, Pillow answers with the font it carries
    return font


def _blank(text: str) -> bytes:
    sheet = Image.new("RGB", (2 * GAP + 2 * SIDE, 3 * GAP), PAPER)
    ImageDraw.Draw(sheet).text((GAP, GAP), text, fill=INK, font=_font())
    return _png(sheet)


def _png(sheet: Image.Image) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
