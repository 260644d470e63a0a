"""Training batches: which images stand in which batch, gathered by index from one array and moved to the device as one.

Which images a batch holds, and what `augment` does to each, follows from the seed, the epoch and the step alone: never
from the number of workers, who each take their own part of it, nor from where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from resflow.data.augment import Batch, Draws, augment, draw, normalise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resflow.params import Train

__all__ = ["Batches", "to_input"]

DEVICE_SHARE = 0.5
"""Share of a GPU's free memory that the training images may take; beyond it they stay on the host."""


def to_input(images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], device: torch.device) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W), channels-last in memory, `(pixel / 255 - mean) / std`."""
    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device, non_blocking=True)
    return normalise(pixels.permute(0, 3, 1, 2).float(), mean, std)


class Batches:
    """The training batches of any epoch, in equal parts.

    `images` is uint8 (N, H, W, C), `labels` uint8 (N,). The last images of an epoch that do not fill a batch are left
    out; the next epoch's order brings them back. On a GPU the whole array lives on the device if it fits.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        train: Train,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classes: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._images, self._labels = images, np.ascontiguousarray(labels).astype(np.int64)
        self._train, self._mean, self._std, self._classes = train, mean, std, classes
        self._seed, self._device = seed, device
        self._resident = _resident(images, device)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self._draws: tuple[tuple[int, int], Draws] | None = None

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self._labels) // self._train.batch_size

    def get(self, epoch: int, step: int, part: int = 0, parts: int = 1) -> Batch:
        """Part `part` of `parts` of batch `step` of `epoch`, all from 0, augmented, normalised and on the device.

        Its images are float32 (batch_size / parts, C, H, W), channels-last.
        """
        size = self._train.batch_size
        mine = slice(part * size // parts, (part + 1) * size // parts)
        chosen = self._order_of(epoch)[step * size : (step + 1) * size][mine]
        draws = self._draws_of(epoch, step).part(mine)
        labels = torch.from_numpy(self._labels[chosen]).to(self._device, non_blocking=True)
        return augment(self._gather(chosen), labels, draws, self._train, self._mean, self._std, self._classes)

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        if self._order[0] != epoch:
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._order = epoch, generator.permutation(len(self._labels))
        return self._order[1]

    def _draws_of(self, epoch: int, step: int) -> Draws:
        """Kept for the step: a worker with several parts of a batch asks once for each."""
        if self._draws is None or self._draws[0] != (epoch, step):
            # step + 1: NumPy takes [seed, epoch, 0] for [seed, epoch], of which the order is made
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch, step + 1]))
            drawn = draw(generator, self._train.batch_size, self._train, self._images.shape[1:3])
            self._draws = (epoch, step), drawn
        return self._draws[1]

    def _gather(self, chosen: NDArray[np.int64]) -> Tensor:
        if self._resident is not None:
            return self._resident[torch.from_numpy(chosen).to(self._device, non_blocking=True)]
        pixels = torch.from_numpy(self._images[chosen])
        return pixels.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else pixels


def _resident(images: NDArray[np.uint8], device: torch.device) -> Tensor | None:
    """The images on the GPU, if there is one and they fit."""
    if device.type != "cuda" or images.nbytes > DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    return torch.from_numpy(np.array(images)).to(device)
