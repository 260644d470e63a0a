"""Attacks, on linear networks where the worst perturbation is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from resflow.nets.attack import downsampled, fgsm, on_pixels, pgd

MEAN, STD = (0.3, 0.5), (0.2, 0.4)
GENERATOR = torch.Generator()


def draw(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=GENERATOR.manual_seed(sum(shape)))


WEIGHTS = draw(2, 2, 5, 6, low=-1)
"""Of two classes: the loss of class 0 grows along the second less the first."""
UPWARDS = (WEIGHTS[1] - WEIGHTS[0]).sign()


def linear(images: Tensor) -> Tensor:
    return torch.einsum("nchw,kchw->nk", images, WEIGHTS)


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("starts_anywhere", [False, True])
def test_a_linear_network_s_worst_case_is_epsilon_along_the_sign_of_its_weights(
    steps: int, starts_anywhere: bool
) -> None:
    images, epsilon = draw(3, 2, 5, 6, low=0.2, high=0.8), 0.1
    labels = torch.tensor([0, 1, 0])
    wanted = images + epsilon * torch.stack([UPWARDS, -UPWARDS, UPWARDS])
    generator = torch.Generator() if starts_anywhere else None
    forward = on_pixels(linear, MEAN, STD)
    found = pgd(
        forward, images, labels, epsilon=epsilon, steps=steps, step_size=2 * epsilon / steps, generator=generator
    )
    if not (starts_anywhere or steps > 1):
        torch.testing.assert_close(fgsm(forward, images, labels, epsilon), wanted)
    torch.testing.assert_close(found, wanted)


def test_no_pixel_leaves_the_ball_or_the_range_of_an_image() -> None:
    images, labels, epsilon = draw(4, 2, 5, 6).round(decimals=1), torch.tensor([0, 1, 0, 1]), 0.3
    forward = on_pixels(linear, MEAN, STD)
    for steps, step_size in ((1, 1.0), (5, 0.2), (20, 0.03)):
        found = pgd(
            forward, images, labels, epsilon=epsilon, steps=steps, step_size=step_size, generator=torch.Generator()
        )
        assert (found - images).abs().max() <= epsilon + 1e-6
        assert found.min() >= 0
        assert found.max() <= 1


def test_a_start_is_that_of_its_generator_and_no_gradient_is_left_behind() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 2))
    images, labels = draw(2, 2, 5, 6), torch.tensor([0, 1])

    def attacked(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pgd(net, images, labels, epsilon=0.2, steps=1, step_size=0.01, generator=generator)

    assert torch.equal(attacked(0), attacked(0))
    assert not torch.equal(attacked(0), attacked(1))
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not attacked(0).requires_grad


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_downsampling_puts_the_mean_of_each_square_in_its_place(size: tuple[int, int]) -> None:
    images = draw(2, 3, *size)
    small = downsampled(images, 2)
    assert small.shape == images.shape
    for row in range(0, size[0], 2):
        for column in range(0, size[1], 2):
            mean = images[:, :, row : row + 2, column : column + 2].mean((2, 3), keepdim=True)
            part = small[:, :, row : row + 2, column : column + 2]
            torch.testing.assert_close(part, mean.expand_as(part))
    assert downsampled(images, 1) is images


def test_an_attack_through_downsampling_finds_what_one_past_it_does_not() -> None:
    """Weights that differ within each square cancel out in its mean: only their sum, which is small, is left."""
    weights = torch.zeros(2, 1, 4, 4)
    weights[1, 0] = torch.tensor([[3.0, -1.0], [-1.5, 0.0]]).repeat(2, 2)

    def net(images: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", images, weights)

    images, labels = torch.full((1, 1, 4, 4), 0.5), torch.tensor([0])
    whole = on_pixels(net, (0.0,), (1.0,), downsample=2)

    def gain(found: Tensor) -> float:
        change = whole(found) - whole(images)
        return (change[0, 1] - change[0, 0]).item()

    through = gain(fgsm(whole, images, labels, 0.1))
    assert through == pytest.approx(4 * 0.1 * 0.5)  # four squares, whose weights sum to 0.5
    assert gain(fgsm(on_pixels(net, (0.0,), (1.0,)), images, labels, 0.1)) < through
