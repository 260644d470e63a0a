"""Augmentation of whole batches on their device: shift, flip, rotation and scale, random erasing, mixup.

Each is a parameter of `train` and off at 0. `draw` decides on the host what happens to each image of a batch, `augment`
does it to all of them at once. The tests compare each with a reference that treats one image at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resflow.params import Train

__all__ = ["Batch", "Draws", "augment", "draw", "normalise"]

ERASED_AREA = (0.02, 0.33)
"""Least and greatest share of an image that is erased; Zhong et al. 2020, "Random Erasing", table 2."""
ERASED_ASPECT = 0.3
"""Height by width of the erased rectangle lies between this and its inverse; the same paper, section 4.1."""


class Batch(NamedTuple):
    """What one step learns from."""

    images: Tensor
    """float32 (N, C, H, W), channels-last, normalised."""
    targets: Tensor
    """What the loss compares with: labels, int64 (N,), or with mixup probabilities, float32 (N, K)."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What chance decided for each image of a batch; None where that augmentation is off."""

    shift: NDArray[np.int64] | None
    """(N, 2): first row and column of the window in the image padded by `train.shift` on each side."""
    flip: NDArray[np.bool_] | None
    """(N,)."""
    affine: NDArray[np.float32] | None
    """(N, 2, 3): where in the original, in coordinates from -1 to 1, each pixel comes from."""
    erase: NDArray[np.int64] | None
    """(N, 4): top, bottom, left, right of the erased rectangle, which is empty where nothing is erased."""
    mix: NDArray[np.float32] | None
    """(N,): the image's own share of the mixture with the one before it, in the part of the batch that is augmented."""

    def part(self, mine: slice) -> Draws:
        """The draws of some of the images."""
        each = {field.name: getattr(self, field.name) for field in fields(self)}
        return Draws(**{name: None if drawn is None else drawn[mine] for name, drawn in each.items()})


def draw(generator: np.random.Generator, count: int, train: Train, size: tuple[int, int]) -> Draws:
    """Decide for `count` images of `size` (H, W) pixels."""
    return Draws(
        shift=generator.integers(0, 2 * train.shift + 1, size=(count, 2)) if train.shift else None,
        flip=generator.random(count) < 0.5 if train.flip else None,
        affine=_affine(generator, count, train, size) if train.rotate or train.scale else None,
        erase=_rectangles(generator, count, train.erase, size) if train.erase else None,
        mix=generator.beta(train.mixup, train.mixup, count).astype(np.float32) if train.mixup else None,
    )


def _affine(generator: np.random.Generator, count: int, train: Train, size: tuple[int, int]) -> NDArray[np.float32]:
    angle = np.deg2rad(generator.uniform(-train.rotate, train.rotate, count))
    zoom = generator.uniform(1 - train.scale, 1 + train.scale, count)
    height, width = size
    cos, sin, zero = np.cos(angle) / zoom, np.sin(angle) / zoom, np.zeros(count)
    # a coordinate of 1 is half the width in one direction and half the height in the other
    rows = ((cos, sin * height / width, zero), (-sin * width / height, cos, zero))
    return np.stack([np.stack(row, 1) for row in rows], 1).astype(np.float32)


def _rectangles(
    generator: np.random.Generator, count: int, probability: float, size: tuple[int, int]
) -> NDArray[np.int64]:
    height, width = size
    area = generator.uniform(*ERASED_AREA, count) * height * width
    aspect = np.exp(generator.uniform(np.log(ERASED_ASPECT), -np.log(ERASED_ASPECT), count))
    tall = np.minimum(np.rint(np.sqrt(area * aspect)), height)
    wide = np.minimum(np.rint(np.sqrt(area / aspect)), width)
    top = np.floor(generator.random(count) * (height - tall + 1))
    left = np.floor(generator.random(count) * (width - wide + 1))
    tall *= generator.random(count) < probability
    return np.stack([top, top + tall, left, left + wide], 1).astype(np.int64)


def augment(
    pixels: Tensor,
    labels: Tensor,
    draws: Draws,
    train: Train,
    mean: Sequence[float],
    std: Sequence[float],
    classes: int,
) -> Batch:
    """uint8 (N, H, W, C) and int64 (N,), as drawn -> what a step learns from, on the same device.

    What a shift, a rotation or a scale brings in from outside is black; what is erased is the mean.
    """

    def moved(drawn: NDArray[Any]) -> Tensor:
        """To where the pixels are; blocking, the host would wait for all that a GPU still has to do."""
        return torch.from_numpy(drawn).to(pixels.device, non_blocking=True)

    images = pixels.permute(0, 3, 1, 2)
    if draws.shift is not None:
        images = _shifted(images, moved(draws.shift), train.shift)
    if draws.flip is not None:
        images = torch.where(moved(draws.flip)[:, None, None, None], images.flip(3), images)
    images = images.to(torch.float32, memory_format=torch.channels_last)
    if draws.affine is not None:
        grid = F.affine_grid(moved(draws.affine), list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    images = normalise(images, mean, std).contiguous(memory_format=torch.channels_last)
    if draws.erase is not None:
        images = images.masked_fill_(_inside(moved(draws.erase), images.shape), 0.0)
    if draws.mix is None:
        return Batch(images, labels)
    share = moved(draws.mix)
    one_hot = F.one_hot(labels, classes).float()
    targets = share[:, None] * one_hot + (1 - share[:, None]) * one_hot.roll(1, 0)
    share = share[:, None, None, None]
    return Batch(share * images + (1 - share) * images.roll(1, 0), targets)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`(pixel / 255 - mean) / std` for each channel of float32 (N, C, H, W), in place."""
    scale = torch.tensor([1 / (255 * s) for s in std])[:, None, None]
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])[:, None, None]
    # made on the device, or moved there blocking, they would have the host wait for it
    return images.mul_(scale.to(images.device, non_blocking=True)).add_(offset.to(images.device, non_blocking=True))


def _shifted(images: Tensor, start: Tensor, most: int) -> Tensor:
    """The window of each image (C, H, W) that begins at `start` once it is padded by `most`."""
    height, width = images.shape[2:]
    windows = F.pad(images, (most,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view: nothing is copied
    return windows[torch.arange(len(images), device=images.device), :, start[:, 0], start[:, 1]]


def _inside(edges: Tensor, shape: Sequence[int]) -> Tensor:
    """bool (N, 1, H, W): the pixels of each image's rectangle."""
    top, bottom, left, right = edges[:, :, None].unbind(1)
    rows = torch.arange(shape[2], device=edges.device)
    columns = torch.arange(shape[3], device=edges.device)
    return (((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :])[
        :, None
    ]
