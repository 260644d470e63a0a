"""What pictures of a model's images are put together from: an image in its cell, text, and the bytes of a PNG.

The bytes depend on nothing but what is drawn. Which images are shown is `mistakes` and `samples`.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

__all__ = ["INK", "PAPER", "enlarged", "font", "png"]

PAPER, INK = (255, 255, 255), (32, 32, 32)


def enlarged(image: NDArray[np.uint8], side: int) -> Image.Image:
    """A uint8 image (H, W, C) as large as fits into a square of `side` pixels, its proportions kept.

    Of more than three channels the first three are shown, as red, green and blue, of two the first, as grey.
    """
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] < 3 else image[:, :, :3]).convert("RGB")
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    cell = Image.new("RGB", (side, side), PAPER)
    cell.paste(picture.resize(size, Image.Resampling.NEAREST), ((side - size[0]) // 2, (side - size[1]) // 2))
    return cell


@cache
def font() -> ImageFont.FreeTypeFont:
    """That Pillow carries, the same on every machine."""
    found = ImageFont.load_default(size=13)
    assert isinstance(found, ImageFont.FreeTypeFont)  # given a size, Pillow answers with the font it carries
    return found


def png(sheet: Image.Image) -> bytes:
    """The picture as a PNG."""
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
