"""Turn an image file from anywhere into what a network was trained on.

A network of one channel gets an MNIST-like image: light ink on a dark ground, or dark ink on a light one where it has
learnt that, the ink's bounding box fitted into 20/28 of the side and its centre of mass in the middle (LeCun et al.
1998, "Gradient-based learning applied to document recognition", section III.A, and the notes to the MNIST files). An
image that already has the network's size is not moved. A network of colours gets the whole picture, fitted and centred;
one of two or four channels gets transparency as the last of them. Running the network is `predict`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from resflow.errors import ImageError

__all__ = ["Picture", "check", "read"]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Others are left out because Pillow runs other programs for some of them."""
WORKING_SIDE = 512
"""Ink is looked for in at most so many pixels a side, or `FINER` times the network's: it bounds time and memory."""
FINER = 4
"""Ink over a quarter of the picture's side then still has more pixels than the network takes."""
INK_BOX = 20 / 28
FLAT = 8
"""Contrast, of 255, below which there is nothing to see."""
BLANK = "Give an image of one digit, darker or lighter than its ground"
FAINT = 0.15
"""Share of the ink's full level from which a pixel belongs to it; less would take in the blur around strokes."""
SPECK = 0.05
"""Share of the largest connected part's area below which another part is dirt, not a stroke."""

Grey = NDArray[np.float32]


class Picture(NamedTuple):
    """An image as the network wants it, and what was done to it."""

    pixels: NDArray[np.uint8]
    """(H, W, C)."""
    inverted: bool
    """It was dark on light and was turned over, or light on dark where the network has learnt dark on light."""
    centred: bool
    """It was cut to its ink, resized and centred."""


def read(path: Path, shape: tuple[int, int, int], *, dark_ink: bool = False) -> Picture:
    """Read an image file for a network of images `shape` (H, W, C), C from 1 to 4; one of C = 1 may want `dark_ink`.

    Raises `ImageError`.
    """
    image = _open(path)
    height, width, channels = shape
    if channels != 1:
        return Picture(_fitted(_coloured(path, image, channels), (height, width)), inverted=False, centred=False)
    exact = image.size == (width, height)
    if not exact:
        # before the background is decided, with alpha taken into account by Pillow
        image.thumbnail((max(WORKING_SIDE, FINER * max(height, width)),) * 2, Image.Resampling.BOX)
    grey = _grey(_opaque(image))
    ground = _ground(grey)
    is_dark = _dark_on_light(path, grey, ground)
    inverted = is_dark != dark_ink
    if exact:
        pixels = 255 - grey if inverted else grey
    else:
        ink = (ground - grey if is_dark else grey - ground).clip(0, 255)
        pixels = _centred(_cleaned(ink), (height, width))
        pixels = 255 - pixels if dark_ink else pixels
    return Picture(np.rint(pixels).clip(0, 255).astype(np.uint8)[:, :, None], inverted, centred=not exact)


def check(path: Path) -> None:
    """Raise `ImageError` where there is no file."""
    if not path.is_file():
        seen = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise ImageError(str(path), seen, "Give a PNG or JPEG file")


def _open(path: Path) -> Image.Image:
    check(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged tags that do not matter here
            with Image.open(path, formats=FORMATS) as image:
                _refuse_bomb(path, image)
                return _flat(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        seen = "is no image in a format that is read here"
        raise ImageError(str(path), seen, "Give a PNG or JPEG file") from error
    except Image.DecompressionBombError as error:
        raise ImageError(str(path), "has too many pixels", "Give a smaller image") from error
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        if isinstance(error, OSError) and error.errno:
            raise ImageError(str(path), f"cannot be read: {error.strerror}", "Check its permissions") from error
        raise ImageError(str(path), f"is damaged ({error})", "Save the image again") from error


def _refuse_bomb(path: Path, image: Image.Image) -> None:
    # Pillow itself refuses only twice as much and warns below
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
        raise ImageError(str(path), f"has {image.width}x{image.height} pixels", "Give a smaller image")


def _flat(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, or RGBA where it has transparency."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    else:  # 32 bits have no agreed white
        low, high = float(values.min()), float(values.max())
    return Image.fromarray(np.rint((values - low) / max(high - low, 1e-9) * 255).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    """Lay a transparent image over white, or over black where what is drawn is itself light; leave others."""
    if image.mode != "RGBA":
        return image
    # few pixels are enough to decide by; numbers of 64 bits for all of them would take gigabytes
    pixels = np.asarray(image.reduce(max(1, max(image.size) // WORKING_SIDE))).astype(np.float64)
    alpha = pixels[:, :, 3]
    light = (pixels[:, :, :3].mean(axis=2) * alpha).sum() > 128 * alpha.sum()
    # a picture that is opaque nearly everywhere has a background of its own
    ground = Image.new("RGBA", image.size, (0, 0, 0, 255) if light and alpha.mean() < 128 else (255, 255, 255, 255))
    return Image.alpha_composite(ground, image).convert("RGB")


def _coloured(path: Path, image: Image.Image, channels: int) -> Image.Image:
    """The image in the mode whose bands are the network's `channels`, of which there is more than one."""
    if channels == 3:
        return _opaque(image).convert("RGB")
    if channels > 4:
        problem = f"cannot hold the {channels} channels that the model takes: pictures have at most 4"
        raise ImageError(str(path), problem, "Give arrays to resflow.evaluation.inference.logits, in Python")
    if image.mode != "RGBA":
        problem = f"has no transparency, which is the last of the {channels} channels that the model takes"
        raise ImageError(str(path), problem, "Give a PNG with an alpha channel")
    return image.convert("LA" if channels == 2 else "RGBA")


def _grey(image: Image.Image) -> Grey:
    return np.asarray(image.convert("L")).astype(np.float32)


def _border(grey: Grey) -> Grey:
    edge = max(1, min(grey.shape) // 20)
    middle = np.ones(grey.shape, bool)
    middle[edge:-edge, edge:-edge] = False
    return grey[middle]


def _dark_on_light(path: Path, grey: Grey, ground: Grey) -> bool:
    """Whether what stands out of the ground is darker than it."""
    outstanding = _blurred(grey) - ground
    darker, lighter = -float(outstanding.min()), float(outstanding.max())
    if max(darker, lighter) < FLAT:
        raise ImageError(str(path), "shows nothing that stands out from its ground", BLANK)
    return darker > lighter


def _centred(clean: Grey, size: tuple[int, int]) -> Grey:
    """Ink on a ground of 0 -> its box in 20/28 of `size` (H, W), its centre of mass in the middle."""
    rows, columns = np.flatnonzero(clean.max(axis=1)), np.flatnonzero(clean.max(axis=0))
    ink = clean[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(size[0] * INK_BOX / ink.shape[0], size[1] * INK_BOX / ink.shape[1])
    small = max(1, round(ink.shape[1] * scale)), max(1, round(ink.shape[0] * scale))
    fitted = np.asarray(Image.fromarray(ink).resize(small, Image.Resampling.BICUBIC)).clip(0, 255)
    return _placed(fitted, size)


def _cleaned(ink: Grey) -> Grey:
    """Ink above its ground -> the ink from 0 to 255, without noise and specks."""
    noise = 3 * float(np.percentile(_border(ink), 75))
    smooth = _blurred(ink)
    level = _otsu(smooth)
    full = max(float(np.percentile(ink[smooth > level], 75)), level)
    mask = smooth > min(max(FAINT * full, noise), level)
    floor = min(noise, level) / 2
    return np.where(_without_specks(mask), (ink - floor) / (full - floor) * 255, 0).clip(0, 255).astype(np.float32)


def _ground(grey: Grey) -> Grey:
    """The ground's level everywhere: a surface of second degree through the border.

    The first degree is light from a side, the second a lens that darkens towards the corners.
    """
    down, right = np.indices(grey.shape, dtype=np.float32)
    y, x = down / grey.shape[0] - 0.5, right / grey.shape[1] - 0.5
    terms = np.stack([np.ones_like(grey), y, x, y * y, x * x], axis=-1)
    inputs, levels = np.stack([_border(terms[..., k]) for k in range(terms.shape[-1])], axis=-1), _border(grey)
    kept = np.abs(levels - np.median(levels)) < 64
    for _ in range(4):  # ink that touches the border must not bend it
        surface = np.linalg.lstsq(inputs[kept], levels[kept], rcond=None)[0]
        distance = np.abs(levels - inputs @ surface)
        kept = distance <= np.percentile(distance, 80)
    return np.asarray(terms @ surface, dtype=np.float32)


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`mask` without connected parts of less than SPECK of the largest."""
    coarse = np.asarray(Image.fromarray(mask).convert("L").reduce(max(1, max(mask.shape) // 64))) > 0
    names = np.where(coarse, np.arange(1, coarse.size + 1).reshape(coarse.shape), 0)
    while True:  # each pixel takes the greatest name around it, until connected ones have the same
        padded = np.pad(names, 1)
        near = [
            padded[1 + y : padded.shape[0] - 1 + y, 1 + x : padded.shape[1] - 1 + x]
            for y in (-1, 0, 1)
            for x in (-1, 0, 1)
        ]
        spread = np.where(coarse, np.max(near, axis=0), 0)
        if np.array_equal(spread, names):
            break
        names = spread
    sizes = np.bincount(names.ravel())
    sizes[0] = 0
    large = (sizes >= SPECK * sizes.max())[names] & coarse
    rows = np.arange(mask.shape[0]) * large.shape[0] // mask.shape[0]
    columns = np.arange(mask.shape[1]) * large.shape[1] // mask.shape[1]
    return np.asarray(mask & large[rows][:, columns])


def _blurred(grey: Grey) -> Grey:
    # Pillow filters images of 8 bits only
    blur = ImageFilter.GaussianBlur(max(grey.shape) / 100)
    image = Image.fromarray(np.rint(grey).astype(np.uint8)).filter(blur)
    return np.asarray(image).astype(np.float32)


def _otsu(grey: Grey) -> float:
    """The level that separates dark from light with the greatest variance between the two (Otsu 1979)."""
    counts, edges = np.histogram(grey, bins=256, range=(0, 256))
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * edges[:-1]).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.nanargmax(between)])


def _placed(ink: Grey, size: tuple[int, int]) -> Grey:
    """`ink` on a dark ground of `size`, its centre of mass in the middle as far as it stays inside."""
    total = max(float(ink.sum()), 1e-9)
    place = []
    for axis in (0, 1):
        mass = ink.sum(axis=1 - axis)
        centre = float((mass * (np.arange(len(mass)) + 0.5)).sum()) / total
        place.append(int(np.clip(round(size[axis] / 2 - centre), 0, size[axis] - len(mass))))
    sheet = np.zeros(size, np.float32)
    sheet[place[0] : place[0] + ink.shape[0], place[1] : place[1] + ink.shape[1]] = ink
    return sheet


def _fitted(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The whole picture in its mode, its proportions kept, centred on the median colour of its border."""
    if image.size == (size[1], size[0]):
        return np.asarray(image)
    # cut out of the picture, which as an array would take as much memory again
    right, low = image.size
    edges = [(0, 0, right, 1), (0, low - 1, right, low), (0, 0, 1, low), (right - 1, 0, right, low)]
    frame = np.concatenate([np.asarray(image.crop(edge)).reshape(-1, len(image.getbands())) for edge in edges])
    ground = tuple(int(level) for level in np.median(frame, axis=0))
    return np.asarray(ImageOps.pad(image, (size[1], size[0]), Image.Resampling.BICUBIC, color=ground))
