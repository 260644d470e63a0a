"""What moves the weights: the learning rate of each step, the optimiser, and the moving average of the weights."""

from __future__ import annotations

import math
from inspect import unwrap
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.optim.swa_utils import AveragedModel

    from resflow.params import Train

__all__ = ["average", "learning_rate", "make"]

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
    """The fused optimiser that `train` names; weight decay spares norms and biases, which have one dimension."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if train.optimizer == "adamw":
        return _AdamW(groups, lr=train.lr, betas=(train.momentum, 0.999), fused=True)
    return _SGD(groups, lr=train.lr, momentum=train.momentum, nesterov=train.momentum > 0, fused=True)


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


def average(net: nn.Module, train: Train) -> AveragedModel | None:
    """The moving average of weights and statistics, which starts as `net`; None where `train.ema` is 0."""
    if not train.ema:
        return None
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(train.ema), use_buffers=True)  # type: ignore[no-untyped-call]
