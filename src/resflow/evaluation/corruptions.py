"""Corruptions of images in the manner of MNIST-C (Mu and Gilmer 2019), for any size and number of channels.

    worse = corrupt(images, "shot_noise", severity=3, seed=0)

Levels at the severities are those of MNIST-C's code, which takes its noises from Hendrycks and Dietterich 2019, where
that has them; "by eye" where it has none, or computes otherwise. Lengths in pixels are meant for a side of 28 and grow
with the image. Chance is the same at each severity of a corruption, so that a severity only adds to the one before it.
What a network makes of them is `resflow.evaluation.robustness`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt", "corrupted"]

SEVERITIES = range(1, 6)
SIDE = 28
"""Of the images that lengths in pixels are meant for."""
AT_ONCE = 2**19
"""Pixels that are corrupted at once, of whole images: 668 of 28x28, 10 of 224x224. Fixed, since bits depend on it."""
LINES = 5
"""Lines are drawn for the greatest severity; a lesser one has the first of them."""

Generator = np.random.Generator
Corruption = Callable[[Tensor, float, Generator], Tensor]
"""Images float32 (N, C, H, W) from 0 to 1, a level, chance -> the same, not yet clamped."""


class Levels(NamedTuple):
    """A corruption and its levels at severities 1 to 5."""

    apply: Corruption
    levels: tuple[float, float, float, float, float]


def corrupt(images: NDArray[np.uint8], name: str, severity: int, seed: int) -> NDArray[np.uint8]:
    """uint8 (N, H, W, C) -> the same, corrupted by a severity of 1 to 5. Raises `KeyError` for an unknown name."""
    return corrupted(images, name, CORRUPTIONS[name].levels[severity - 1], seed)


def corrupted(images: NDArray[np.uint8], name: str, level: float, seed: int) -> NDArray[np.uint8]:
    """The same at any level; what a level means is said of each corruption."""
    count, found = max(1, AT_ONCE // math.prod(images.shape[1:3])), np.empty_like(images)
    for number, start in enumerate(range(0, len(images), count)):
        # a generator a corruption, so that leaving one out changes no other
        generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode()), number]))
        pixels = torch.from_numpy(np.array(images[start : start + count])).permute(0, 3, 1, 2).float().div_(255)
        changed = CORRUPTIONS[name].apply(pixels, level, generator).clamp(0, 1).mul(255).round()
        found[start : start + count] = changed.to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return found


# --- noise ------------------------------------------------------------------------------------------------------------


def shot_noise(images: Tensor, level: float, generator: Generator) -> Tensor:
    """Each pixel counts photons; the level is one by how many of them full intensity is."""
    counts = generator.poisson(images.numpy() / level)
    return torch.from_numpy((counts * level).astype(np.float32))


def impulse_noise(images: Tensor, level: float, generator: Generator) -> Tensor:
    """A share `level` of all values becomes black or white, half of them each."""
    drawn = torch.from_numpy(generator.random(images.shape, np.float32))
    return torch.where(drawn < level / 2, 0.0, torch.where(drawn > 1 - level / 2, 1.0, images))


def gaussian_noise(images: Tensor, level: float, generator: Generator) -> Tensor:
    """Of standard deviation `level`."""
    return images + level * torch.from_numpy(generator.standard_normal(images.shape, np.float32))


# --- blur -------------------------------------------------------------------------------------------------------------


def gaussian_blur(images: Tensor, level: float, generator: Generator) -> Tensor:
    """Of `level` pixels as standard deviation."""
    return _blurred(images, level * _scale(images))


def glass_blur(images: Tensor, level: float, generator: Generator) -> Tensor:
    """Each pixel comes from up to `level` pixels away, blurred before and after by half a pixel."""
    reach = level * _scale(images)
    drawn = torch.from_numpy(generator.uniform(-1, 1, (2, len(images), *images.shape[2:])).astype(np.float32))
    moved = (drawn * reach).round().long()
    height, width = images.shape[2:]
    rows = (torch.arange(height)[:, None] + moved[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + moved[1]).clamp(0, width - 1)
    places = (rows * width + columns).flatten(1)[:, None].expand(-1, images.shape[1], -1)
    soft = min(level, 1) * _scale(images) / 2
    return _blurred(_blurred(images, soft).flatten(2).gather(2, places).view_as(images), soft)


def motion_blur(images: Tensor, level: float, generator: Generator) -> Tensor:
    """Along a way of `level` pixels, within 45 degrees of the horizontal."""
    angle = np.deg2rad(generator.uniform(-45, 45, len(images)))
    way, samples = level * _scale(images), 9
    total = torch.zeros_like(images)
    for place in np.linspace(-way / 2, way / 2, samples):
        total += _moved(images, _eye(images), np.cos(angle) * place, np.sin(angle) * place)
    return total / samples


# --- geometry: what comes in from outside is black --------------------------------------------------------------------


def shear(images: Tensor, level: float, generator: Generator) -> Tensor:
    """To either side, by `level` of the height from the middle."""
    matrix = _eye(images)
    matrix[:, 0, 1] = level * _signs(images, generator)
    return _moved(images, matrix)


def scale(images: Tensor, level: float, generator: Generator) -> Tensor:
    """Smaller, to `1 - level` of the size."""
    return _moved(images, _eye(images) / (1 - level))


def rotate(images: Tensor, level: float, generator: Generator) -> Tensor:
    """To either side, by `level` radians."""
    angle = level * _signs(images, generator)
    rows = ((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle)))
    return _moved(images, np.stack([np.stack(row, 1) for row in rows], 1))


def translate(images: Tensor, level: float, generator: Generator) -> Tensor:
    """By `level` pixels in any direction."""
    angle, way = generator.uniform(0, 2 * np.pi, len(images)), level * _scale(images)
    return _moved(images, _eye(images), np.cos(angle) * way, np.sin(angle) * way)


# --- light ------------------------------------------------------------------------------------------------------------


def brightness(images: Tensor, level: float, generator: Generator) -> Tensor:
    """All values higher by `level`."""
    return images + level


def contrast(images: Tensor, level: float, generator: Generator) -> Tensor:
    """A share `level` of the contrast is lost, towards the image's mean."""
    return torch.lerp(images, images.mean((2, 3), keepdim=True), level)


def fog(images: Tensor, level: float, generator: Generator) -> Tensor:
    """Clouds, `level` times as strong as the image, over it."""
    return (images + level * _clouds(images, generator)) / (1 + level)


# --- things in the way ------------------------------------------------------------------------------------------------


def stripe(images: Tensor, level: float, generator: Generator) -> Tensor:
    """A share `level` of the columns, in three stripes, is inverted."""
    start = generator.random((len(images), 1, 1, 1), np.float32)
    place = (torch.arange(images.shape[3]) / images.shape[3] + torch.from_numpy(start)) * 3
    return torch.where(place.frac() < level, 1 - images, images)


def spatter(images: Tensor, level: float, generator: Generator) -> Tensor:
    """Grey drops cover a share `level` of the image; their grey is that of MNIST-C's mud, 63/255."""
    drawn = generator.standard_normal((len(images), 1, *images.shape[2:]), np.float32)
    wet = _blurred(torch.from_numpy(drawn), 1.5 * _scale(images)).flatten(1)
    dry = torch.quantile(wet, 1 - level, dim=1)[:, None, None, None]
    return torch.where(wet.view(len(images), 1, *images.shape[2:]) > dry, 63 / 255, images)


def dotted_line(images: Tensor, level: float, generator: Generator) -> Tensor:
    """As many white dotted lines as the level says, from the left edge to the right."""
    return _lines(images, level, generator, corners=2, width=2, dotted=True)


def zigzag(images: Tensor, level: float, generator: Generator) -> Tensor:
    """As many white zigzags as the level says, from the left edge to the right."""
    return _lines(images, level, generator, corners=7, width=1, dotted=False)


def pixelate(images: Tensor, level: float, generator: Generator) -> Tensor:
    """A share `level` of the resolution is lost."""
    height, width = images.shape[2:]
    small = max(1, round(height * (1 - level))), max(1, round(width * (1 - level)))
    return F.interpolate(F.interpolate(images, small, mode="area"), (height, width), mode="nearest")


CORRUPTIONS = {
    "shot_noise": Levels(shot_noise, (1 / 60, 1 / 25, 1 / 12, 1 / 5, 1 / 3)),
    "impulse_noise": Levels(impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_noise": Levels(gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "gaussian_blur": Levels(gaussian_blur, (1, 2, 3, 4, 6)),
    "glass_blur": Levels(glass_blur, (1, 1.5, 2, 3, 4)),  # by eye: theirs swaps pixels one after the other
    "motion_blur": Levels(motion_blur, (4, 7, 10, 13, 16)),  # by eye
    "shear": Levels(shear, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "scale": Levels(scale, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "rotate": Levels(rotate, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "translate": Levels(translate, (1, 2, 3, 4, 5)),
    "brightness": Levels(brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Levels(contrast, (0.6, 0.7, 0.8, 0.9, 0.95)),
    "stripe": Levels(stripe, (0.1, 0.2, 0.3, 0.4, 0.5)),  # by eye
    "fog": Levels(fog, (0.5, 1, 1.5, 2, 3)),  # by eye
    "spatter": Levels(spatter, (0.05, 0.1, 0.15, 0.2, 0.3)),  # by eye
    "dotted_line": Levels(dotted_line, (1, 2, 3, 4, 5)),  # by eye
    "zigzag": Levels(zigzag, (1, 2, 3, 4, 5)),  # by eye
    "pixelate": Levels(pixelate, (0.4, 0.5, 0.6, 0.7, 0.75)),
}
"""By name: those of MNIST-C but `canny_edges`, which has no severities, and four more that its code has."""


def _scale(images: Tensor) -> float:
    return min(images.shape[2:]) / SIDE


def _eye(images: Tensor) -> NDArray[np.float64]:
    return np.tile(np.eye(2), (len(images), 1, 1))


def _signs(images: Tensor, generator: Generator) -> NDArray[np.float64]:
    return np.where(generator.random(len(images)) < 0.5, -1.0, 1.0)


def _moved(
    images: Tensor,
    matrix: NDArray[np.float64],
    right: NDArray[np.float64] | float = 0.0,
    down: NDArray[np.float64] | float = 0.0,
) -> Tensor:
    """Each pixel from where `matrix` (N, 2, 2) takes its place (x, y) from the middle, moved by so many pixels."""
    height, width = images.shape[2:]
    theta = np.zeros((len(images), 2, 3))
    theta[:, :, :2] = matrix
    # a coordinate of 1 is half the width in one direction and half the height in the other
    theta[:, 0, 1] *= height / width
    theta[:, 1, 0] *= width / height
    theta[:, 0, 2], theta[:, 1, 2] = -2 * np.asarray(right) / width, -2 * np.asarray(down) / height
    grid = F.affine_grid(torch.from_numpy(theta.astype(np.float32)), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian of `sigma` pixels, cut at three of them; the edge's values go on outside."""
    radius = math.ceil(3 * sigma)
    if not radius:
        return images
    weights = torch.exp(-((torch.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    flat = images.reshape(-1, 1, *images.shape[2:])
    for _ in range(2):  # along the rows, then, turned, along the columns
        flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), weights).transpose(2, 3)
    return flat.reshape(images.shape)


def _clouds(images: Tensor, generator: Generator) -> Tensor:
    """(N, 1, H, W) from 0 to 1: noise at ever finer scales, each half as strong, as diamond-square has it."""
    clouds = torch.zeros(len(images), 1, *images.shape[2:])
    for octave in range(4):
        coarse = generator.random((len(images), 1, 2 + 2**octave, 2 + 2**octave), np.float32)
        clouds += F.interpolate(torch.from_numpy(coarse), clouds.shape[2:], mode="bilinear") / 2**octave
    low, high = clouds.amin((1, 2, 3), keepdim=True), clouds.amax((1, 2, 3), keepdim=True)
    return (clouds - low) / (high - low).clamp(min=1e-6)


def _lines(
    images: Tensor, level: float, generator: Generator, *, corners: int, width: float, dotted: bool
) -> Tensor:  # fmt: skip
    """White lines `width` pixels wide through `corners` places at even distances."""
    rows, columns = images.shape[2:]
    heights = generator.uniform(0.1, 0.9, (len(images), LINES, corners))[:, : round(level)]
    along = np.linspace(0, corners - 1, columns)
    left = np.minimum(along.astype(int), corners - 2)
    rise = np.diff(heights)[:, :, left]
    middle = (heights[:, :, left] + rise * (along - left)) * rows
    slope = rise * rows / columns * (corners - 1)
    distance = np.abs(np.arange(rows)[:, None] + 0.5 - middle[:, :, None]) / np.sqrt(1 + slope[:, :, None] ** 2)
    drawn = distance <= width / 2 * _scale(images)
    if dotted:
        drawn &= np.arange(columns) // max(1, round(2 * _scale(images))) % 2 == 0
    return torch.where(torch.from_numpy(drawn.any(1)[:, None]), 1.0, images)
