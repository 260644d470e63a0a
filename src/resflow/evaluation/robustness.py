"""How many images a network still gets right when they are corrupted, or changed on purpose to mislead it.

    subject = Subject(net, card, images, labels, downsample=1, device="cpu")
    subject.clean().sum(), subject.corrupted("fog", 3, seed=0).sum()
    for epsilon, right in subject.under_pgd([0.1, 0.3], steps=20, step_size=0.1, restarts=1, seed=0): ...

Each answer is a boolean an image, (N,). The corruptions are `corruptions`, the attacks `resflow.nets.attack`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resflow.evaluation.corruptions import corrupt
from resflow.nets.attack import fgsm, on_pixels, pgd
from resflow.nets.fusion import fused

if TYPE_CHECKING:
    from resflow.nets.file import ModelCard

__all__ = ["BATCH", "Subject"]

BATCH = 500
"""Images a pass; fixed, since bits depend on it."""

Right = NDArray[np.bool_]


class Subject:
    """A network, in evaluation mode, and the images that it is tried on: uint8 (N, H, W, C), with labels (N,).

    `downsample` is the factor of `nets.attack.downsampled`, which stands before the network. Attacks go through it, or
    with `past` do not know of it, which shows how secure that would make a network seem.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        card: ModelCard,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        *,
        downsample: int = 1,
        past: bool = False,
        device: str = "cpu",
    ) -> None:
        self._device = torch.device(device)
        net = fused(net.to(self._device, memory_format=torch.channels_last).eval())  # type: ignore[call-overload]
        self._forward = on_pixels(net.requires_grad_(False), card.mean, card.std, downsample)
        self._attacked = on_pixels(net, card.mean, card.std) if past else self._forward
        self._images, self._labels = images, torch.from_numpy(labels.astype(np.int64))

    def clean(self) -> Right:
        """Of the images as they are."""
        return self._right(self._images)

    def corrupted(self, name: str, severity: int, seed: int) -> Right:
        """Of the images corrupted."""
        return self._right(corrupt(self._images, name, severity, seed))

    def under_fgsm(self, epsilon: float) -> Right:
        """Under one step of the gradient's sign."""
        every = np.ones(len(self._images), np.bool_)
        return self._standing(every, partial(fgsm, self._attacked, epsilon=epsilon))

    def under_pgd(
        self, epsilons: Sequence[float], *, steps: int, step_size: float, restarts: int, seed: int
    ) -> Iterator[tuple[float, Right]]:
        """For each epsilon, in rising order, the images that stand PGD from all of so many random starts.

        `step_size` is a share of epsilon. What misleads the network within a smaller epsilon lies within a greater one
        too: an image that fell is not tried again.
        """
        right = self.clean()
        for epsilon in sorted(set(epsilons)):
            attack = partial(pgd, self._attacked, epsilon=epsilon, steps=steps, step_size=step_size * epsilon)
            for restart in range(restarts):
                generator = torch.Generator().manual_seed(_seed(seed, restart))
                right = self._standing(right, partial(attack, generator=generator))
            yield epsilon, right

    def _standing(self, tried: Right, attack: Callable[[Tensor, Tensor], Tensor]) -> Right:
        """Which of those that are tried stand it; the others are wrong already."""
        left = np.flatnonzero(tried)
        right = np.zeros_like(tried)
        for start in range(0, len(left), BATCH):
            part = left[start : start + BATCH]
            labels = self._labels[part].to(self._device)
            worse = attack(self._pixels(self._images[part]), labels)
            right[part] = self._answers(worse).eq(labels).cpu().numpy()
        return right

    def _right(self, images: NDArray[np.uint8]) -> Right:
        answers = [
            self._answers(self._pixels(images[start : start + BATCH])).cpu() for start in range(0, len(images), BATCH)
        ]
        return np.asarray(torch.cat(answers).eq(self._labels).numpy())

    def _pixels(self, images: NDArray[np.uint8]) -> Tensor:
        # a copy, because torch does not take the read-only pages of a memory-mapped array
        return torch.from_numpy(np.array(images)).to(self._device).permute(0, 3, 1, 2).float().div_(255)

    @torch.no_grad()
    def _answers(self, pixels: Tensor) -> Tensor:
        """The class of each image."""
        logits = self._forward(pixels)
        # NaN would count as class 0
        return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)


def _seed(seed: int, restart: int) -> int:
    return int(np.random.SeedSequence([seed, restart, 1]).generate_state(1, np.uint64)[0] >> np.uint64(1))
