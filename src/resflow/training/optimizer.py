"""What moves the weights: the learning rate of each step, the optimiser, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import unwrap
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.optim.swa_utils import AveragedModel

    from resflow.params import Train

__all__ = ["average", "learning_rate", "make", "orthogonalised"]

DROPS = (0.5, 0.75)
"""Where the step schedule divides the rate by 10, as shares of all steps: 32k and 48k of 64k, He et al. 2016, 4.2."""


def learning_rate(train: Train, step: int, steps: int) -> float:
    """Learning rate of optimiser step `step` of `steps`, counted from 0."""
    peak, done = train.warmup_fraction * steps, step + 1
    if train.schedule != "constant" and done < peak:
        return train.lr * done / peak
    left = (steps - step) / max(1.0, steps - peak + 1)  # from 1 down to nearly 0
    if train.schedule == "triangular":
        return train.lr * left
    if train.schedule == "cosine":
        return train.lr * (1 - math.cos(math.pi * left)) / 2
    if train.schedule == "step":
        return train.lr * 0.1 ** sum(step >= share * steps for share in DROPS)
    return train.lr


def make(net: nn.Module, train: Train) -> torch.optim.Optimizer:
    """The fused optimiser that `train` names; weight decay spares norms and biases, which have one dimension.

    `muon` moves filters of convolutions by Muon, and all else as `adamw` does; also filters of groups, which read
    different channels and so are no one matrix.
    """
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    if train.optimizer == "muon":
        whole = {id(m.weight) for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups == 1}
        filters, weights = [p for p in weights if id(p) in whole], [p for p in weights if id(p) not in whole]
        groups = [_decayed(filters, train.weight_decay), _decayed(weights, train.weight_decay), _decayed(others, 0.0)]
        return _Muon(groups, lr=train.lr, betas=(train.momentum, 0.999), fused=True)
    groups = [_decayed(weights, train.weight_decay), _decayed(others, 0.0)]
    if train.optimizer == "adamw":
        return _AdamW(groups, lr=train.lr, betas=(train.momentum, 0.999), fused=True)
    return _SGD(groups, lr=train.lr, momentum=train.momentum, nesterov=train.momentum > 0, fused=True)


def _decayed(parameters: list[nn.Parameter], decay: float) -> dict[str, Any]:
    return {"params": parameters, "weight_decay": decay}


class _Eager(torch.optim.Optimizer):
    """Leaves off the wrappers that hide these methods from torch's compiler and load it for that, a second's work.

    Only the network is ever compiled.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class _SGD(_Eager, torch.optim.SGD):
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class _AdamW(_Eager, torch.optim.AdamW):
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class _Muon(_AdamW):
    """Muon for the first group, AdamW for the others, at one learning rate.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", with the step's length and the decay
    of Liu et al. 2025, "Muon is Scalable for LLM Training", equation 4, by which a rate that suits AdamW suits it too.
    `torch.optim.Muon` has the same for matrices alone, and in bfloat16, which many a CPU computes slowly. Jordan et al.
    leave the first layer to AdamW; here that was no better (docs/log.md).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        if moved := [p for p in groups[0]["params"] if p.grad is not None]:
            self._move(moved, groups[0])
        self.param_groups = groups[1:]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's wants a step of each parameter, to mend old states

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        rate, momentum, decay = group["lr"], group["betas"][0], group["weight_decay"]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        gradients = [cast(Tensor, p.grad) for p in parameters]
        means = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        torch._foreach_mul_(parameters, 1 - rate * decay)
        # in the order in which channels-last lies in memory: which column is which does not matter
        across = [update.permute(0, 2, 3, 1) for update in torch._foreach_lerp(gradients, means, momentum)]
        matrices = orthogonalised([each.flatten(1) for each in across])
        for parameter, each, matrix in zip(parameters, across, matrices, strict=True):
            update = matrix.view(each.shape).permute(0, 3, 1, 2)
            parameter.add_(update, alpha=-0.2 * math.sqrt(max(matrix.shape)) * rate)


def orthogonalised(matrices: list[Tensor]) -> list[Tensor]:
    """Each (rows, columns) -> roughly U V^T of its singular value decomposition U S V^T, in its number format.

    Five Newton-Schulz iterations with the coefficients of Jordan et al. 2024, which bring the singular values near 1
    (0.7 to 1.2) rather than to it, and the smallest not all the way. Their polynomials are multiplied up on the shorter
    side, for all matrices that share its length at once, and each matrix once by their product: that is quicker
    (docs/log.md), and in float32 costs singular values below a thousandth of the greatest.
    """
    tall = [len(matrix) > matrix.size(1) for matrix in matrices]
    grams = [m.mT @ m if is_tall else m @ m.mT for m, is_tall in zip(matrices, tall, strict=True)]
    products: dict[int, Tensor] = {}
    for side in {len(gram) for gram in grams}:
        alike = [index for index, gram in enumerate(grams) if len(gram) == side]
        products.update(zip(alike, _inverse_roots(torch.stack([grams[index] for index in alike])), strict=True))
    return [m @ products[i] if tall[i] else products[i] @ m for i, m in enumerate(matrices)]


def _inverse_roots(grams: Tensor) -> Tensor:
    """(matrices, side, side), each A A^T -> roughly (A A^T)^(-1/2)."""
    squares = (grams.diagonal(dim1=1, dim2=2).sum(1) + 1e-14)[:, None, None]  # for gradients of zeros
    grams = grams / squares
    products = torch.eye(grams.size(1), dtype=grams.dtype, device=grams.device) * squares.rsqrt()
    for left in reversed(range(5)):
        polynomials = torch.baddbmm(grams, grams, grams, beta=-4.7750, alpha=2.0315)
        polynomials.diagonal(dim1=1, dim2=2).add_(3.4445)
        products = polynomials @ products
        if left:
            grams = polynomials @ grams @ polynomials
    return products


def average(net: nn.Module, train: Train) -> AveragedModel | None:
    """The moving average of weights and statistics, which starts as `net`; None where `train.ema` is 0."""
    if not train.ema:
        return None
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(train.ema), use_buffers=True)  # type: ignore[no-untyped-call]
