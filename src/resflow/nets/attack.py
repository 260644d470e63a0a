"""Worst-case perturbations of images, found through a network's gradient: FGSM and PGD in the L-infinity norm.

    forward = on_pixels(net, mean, std)
    worse = pgd(forward, images, labels, epsilon=0.3, steps=20, step_size=0.03, generator=generator)

Images are float32 (N, C, H, W) from 0 to 1, an epsilon is a share of full intensity. It stands beside the networks
because training and evaluation both attack, may not know each other, and it needs torch alone. What a network is worth
under attack is `resflow.evaluation.robustness`; training against one is `resflow.training.adversary`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Forward", "downsampled", "fgsm", "on_pixels", "pgd"]

Forward = Callable[[Tensor], Tensor]
"""Images from 0 to 1 -> logits (N, K), differentiable."""


def on_pixels(net: Forward, mean: Sequence[float], std: Sequence[float], downsample: int = 1) -> Forward:
    """`net`, which takes normalised images, on images from 0 to 1, first downsampled by that factor."""
    offset, scale = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def forward(images: Tensor) -> Tensor:
        # blocking, the host would wait for all that a GPU still has to do
        shift, stretch = (each.to(images.device, non_blocking=True) for each in (offset, scale))
        return net((downsampled(images, downsample) - shift) / stretch)

    return forward


def downsampled(images: Tensor, factor: int) -> Tensor:
    """Each square of `factor` x `factor` pixels at its mean, size kept; squares at the edges may be cut.

    Differentiable, so that an attack goes through it.
    """
    if factor == 1:
        return images
    height, width = images.shape[2:]
    small = F.avg_pool2d(images, factor, ceil_mode=True)
    # not F.interpolate, whose gradient on a GPU is not deterministic
    shape = (*small.shape[:2], small.shape[2], factor, small.shape[3], factor)
    large = small[:, :, :, None, :, None].expand(shape).reshape(*shape[:2], shape[2] * factor, shape[4] * factor)
    return large[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


def fgsm(forward: Forward, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """One step to the corner of the ball along the gradient's sign: Goodfellow et al. 2015, section 4."""
    return pgd(forward, images, labels, epsilon=epsilon, steps=1, step_size=epsilon)


def pgd(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`steps` of `step_size` up the loss by the gradient's sign, each put back into the ball and into 0 to 1.

    Madry et al. 2018, section 2.1. With a generator, which is on the CPU, it starts anywhere in the ball, else at the
    image. `labels` are those of `F.cross_entropy`. No parameter's `.grad` is touched.
    """
    lowest, highest = (images - epsilon).clamp_(min=0), (images + epsilon).clamp_(max=1)
    worse = images.detach()
    if generator:
        drawn = torch.rand(images.shape, generator=generator).to(images.device, non_blocking=True)
        worse = (worse + epsilon * (2 * drawn - 1)).clamp_(0, 1)
    for _ in range(steps):
        worse = worse.contiguous(memory_format=torch.channels_last).requires_grad_()
        # summed, so that an image's step does not depend on how many there are
        loss = F.cross_entropy(forward(worse).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, worse)
        worse = torch.clamp(worse.detach() + step_size * gradient.sign(), lowest, highest)
    return worse
