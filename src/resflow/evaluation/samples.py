"""Draw images in named rows, as a PNG whose bytes depend on nothing but its input.

Which images, and where the file goes, is `resflow.stages.robustness`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from resflow.evaluation.drawing import INK, PAPER, enlarged, font, png

__all__ = ["draw"]

SIDE = 56  # pixels of an image in its cell
GAP = 4
NAMES = 130  # pixels of the names at the left


def draw(rows: Mapping[str, NDArray[np.uint8]], empty: str) -> bytes:
    """A PNG with a row for each name and its images, uint8 (N, H, W, C); `empty` is what it says without rows."""
    columns = max((len(images) for images in rows.values()), default=2)
    size = NAMES + columns * (SIDE + GAP) + GAP, max(1, len(rows)) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate((rows or {empty: np.empty((0, 1, 1, 1), np.uint8)}).items()):
        top = GAP + row * (SIDE + GAP)
        pen.text((GAP, top + SIDE // 2 - 8), name, fill=INK, font=font())
        for column, image in enumerate(images):
            sheet.paste(enlarged(image, SIDE), (NAMES + column * (SIDE + GAP), top))
    return png(sheet)
