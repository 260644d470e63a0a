"""Training batches: images from a `Feed`, moved to the device as one and augmented there.

A `Feed` says which images stand in which batch: `InMemory` gathers them by index from one array, `stream.Stream` reads
them from files. That, and what `augment` does to each image, follows from the seed, the epoch and the step alone: never
from the number of workers, who each take their own part of a batch, nor from where a run was interrupted. Only which
image another is mixed with by mixup follows from the number of parts, since a worker has its own parts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from resflow.data.arrays import Split
from resflow.data.augment import Batch, Draws, augment, draw, normalise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resflow.params import Train

__all__ = ["Batches", "Feed", "InMemory", "to_input"]

DEVICE_SHARE = 0.5
"""Share of a GPU's free memory that the training images may take; beyond it they stay on the host."""


def to_input(images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], device: torch.device) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W), channels-last in memory, `(pixel / 255 - mean) / std`."""
    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device, non_blocking=True)
    return normalise(pixels.permute(0, 3, 1, 2).float(), mean, std)


class Feed(Protocol):
    """Training images, as they stand in the batches of any epoch."""

    @property
    def count(self) -> int:
        """Training images."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image: height, width, channels."""

    def take(self, epoch: int, step: int, part: int, parts: int) -> tuple[Tensor, NDArray[np.int64]]:
        """The images, uint8 (batch_size / parts, H, W, C) on the device or the host, and labels of a part."""


class InMemory:
    """All images in one array, in an order drawn anew for each epoch. On a GPU it lives on the device if it fits."""

    def __init__(self, split: Split, *, batch_size: int, seed: int, device: torch.device) -> None:
        self._images, self._labels = split.images, np.ascontiguousarray(split.labels).astype(np.int64)
        self._size, self._seed, self._device = batch_size, seed, device
        self._resident = _resident(split.images, device)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    @property
    def count(self) -> int:
        """Training images."""
        return len(self._labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image: height, width, channels."""
        return self._images.shape[1:]

    def take(self, epoch: int, step: int, part: int, parts: int) -> tuple[Tensor, NDArray[np.int64]]:
        """As `Feed` says."""
        batch = self._order_of(epoch)[step * self._size : (step + 1) * self._size]
        chosen = batch[part * self._size // parts : (part + 1) * self._size // parts]
        if self._resident is None:
            return torch.from_numpy(self._images[chosen]), self._labels[chosen]
        return self._resident[torch.from_numpy(chosen).to(self._device, non_blocking=True)], self._labels[chosen]

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        if self._order[0] != epoch:
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._order = epoch, generator.permutation(len(self._labels))
        return self._order[1]


class Batches:
    """The training batches of any epoch, in equal parts.

    The last images of an epoch that do not fill a batch are left out; the next epoch's order brings them back.
    """

    def __init__(
        self,
        training: Split | Feed,
        train: Train,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classes: int,
        seed: int,
        device: torch.device,
    ) -> None:
        if isinstance(training, Split):
            training = InMemory(training, batch_size=train.batch_size, seed=seed, device=device)
        self._feed: Feed = training
        self._train, self._mean, self._std, self._classes = train, mean, std, classes
        self._seed, self._device = seed, device
        self._draws: tuple[tuple[int, int], Draws] | None = None

    @property
    def count(self) -> int:
        """Training images."""
        return self._feed.count

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self._feed.count // self._train.batch_size

    def get(self, epoch: int, step: int, part: int = 0, parts: int = 1) -> Batch:
        """Part `part` of `parts` of batch `step` of `epoch`, all from 0, augmented, normalised and on the device.

        Its images are float32 (batch_size / parts, C, H, W), channels-last.
        """
        size = self._train.batch_size
        draws = self._draws_of(epoch, step).part(slice(part * size // parts, (part + 1) * size // parts))
        images, given = self._feed.take(epoch, step, part, parts)
        if self._device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory().to(self._device, non_blocking=True)
        labels = torch.from_numpy(given).to(self._device, non_blocking=True)
        return augment(images, labels, draws, self._train, self._mean, self._std, self._classes)

    def _draws_of(self, epoch: int, step: int) -> Draws:
        """Kept for the step: a worker with several parts of a batch asks once for each."""
        if self._draws is None or self._draws[0] != (epoch, step):
            # step + 1: NumPy takes [seed, epoch, 0] for [seed, epoch], of which the order is made
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch, step + 1]))
            height, width, _ = self._feed.shape
            drawn = draw(generator, self._train.batch_size, self._train, (height, width))
            self._draws = (epoch, step), drawn
        return self._draws[1]


def _resident(images: NDArray[np.uint8], device: torch.device) -> Tensor | None:
    """The images on the GPU, if there is one and they fit."""
    if device.type != "cuda" or images.nbytes > DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    return torch.from_numpy(np.array(images)).to(device)
