"""A network that is known in full, on trial: who stands what, through downsampling and past it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resflow.evaluation.robustness import BATCH, Subject
from tests.unit.training.small import CARD

COUNT = 2 * BATCH + 7
IMAGES = np.full((COUNT, 4, 4, 1), 128, np.uint8)
SQUARE = torch.tensor([[3.0, -1.0], [-1.5, 0.0]])
"""Of weights, which nearly cancel out in its mean: moving each pixel by its own sign moves the mean the wrong way."""


class Linear(nn.Module):
    """Class 1 where the weighted sum of the pixels exceeds 1.15; a grey image has 1.00."""

    def forward(self, images: Tensor) -> Tensor:
        total = (images * SQUARE.repeat(2, 2)).sum((1, 2, 3)) - 1.15
        return torch.stack([torch.zeros_like(total), total], 1)


def subject(**options: Any) -> Subject:
    labels = (np.arange(COUNT) % 3 == 0).astype(np.uint8)  # it is wrong about each third image
    return Subject(Linear(), replace(CARD, mean=(0.0,), std=(1.0,)), IMAGES, labels, **options)


def under(tried: Subject, epsilon: float) -> int:
    ((_, right),) = tried.under_pgd([epsilon], steps=5, step_size=0.5, restarts=1, seed=0)
    assert right.sum() == tried.under_fgsm(epsilon).sum()
    return int(right.sum())


def test_images_of_several_batches_fall_once_epsilon_reaches_the_margin() -> None:
    tried, right = subject(), COUNT - -(-COUNT // 3)
    assert tried.clean().sum() == right
    assert (tried.clean() == (np.arange(COUNT) % 3 > 0)).all()
    # each square's weights are 5.5 in absolute value, so that epsilon moves the sum by 22 epsilon
    assert under(tried, 0.006) == right
    assert under(tried, 0.007) == 0


def test_an_attack_past_the_downsampling_makes_a_network_seem_robust_that_is_not() -> None:
    right = subject().clean().sum()
    assert subject(downsample=2).clean().sum() == right
    assert under(subject(downsample=2), 0.1) == 0
    assert under(subject(downsample=2, past=True), 0.1) == right


def test_what_fell_within_a_smaller_epsilon_is_wrong_within_a_greater_one_and_epsilons_come_in_order() -> None:
    found = list(subject().under_pgd([0.2, 0.001, 0.2], steps=1, step_size=1.0, restarts=2, seed=0))
    assert [epsilon for epsilon, _ in found] == [0.001, 0.2]
    assert (found[1][1] <= found[0][1]).all()
    assert found[0][1].any()
