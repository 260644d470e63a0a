"""Batches of training images: gathered by index, shifted, moved to the device and normalised as a whole.

Which images stand in which batch, and how each is shifted, follows from the seed, the epoch and the step alone, never
from the number of workers: each draws for the whole batch and takes its own slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Batches", "to_input"]


def to_input(images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], device: torch.device) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W), channels-last in memory, `(pixel / 255 - mean) / std`."""
    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device, non_blocking=True)
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return pixels.float().mul_(scale).add_(offset).permute(0, 3, 1, 2)


class Batches:
    """The training batches of any epoch, for one of `world` workers.

    `images` is uint8 (N, H, W, C), `labels` uint8 (N,). The last images of an epoch that do not fill a batch are left
    out; the next epoch's order brings them back.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        *,
        batch_size: int,
        shift: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        _, height, width, _ = images.shape
        edge = ((0, 0), (shift, shift), (shift, shift), (0, 0))
        padded = np.pad(images, edge) if shift else images
        # Every shifted image as a view: windows[image, down, right] is (C, H, W) and copies nothing.
        self._windows = sliding_window_view(padded, (height, width), axis=(1, 2))
        self._labels = np.ascontiguousarray(labels).astype(np.int64)
        self._batch, self._shift, self._seed = batch_size, shift, seed
        share = batch_size // world
        self._mine = slice(rank * share, (rank + 1) * share)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self._labels) // self._batch

    def epoch(self, number: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Images uint8 (batch_size / world, H, W, C) and labels int64 of each batch of epoch `number`, from 0."""
        draw = np.random.Generator(np.random.PCG64([self._seed, number]))
        order = draw.permutation(len(self._labels))
        for start in range(0, self.steps * self._batch, self._batch):
            chosen = order[start : start + self._batch]
            down, right = draw.integers(0, 2 * self._shift + 1, size=(2, self._batch))
            mine, down, right = chosen[self._mine], down[self._mine], right[self._mine]
            yield self._windows[mine, down, right].transpose(0, 2, 3, 1), self._labels[mine]
