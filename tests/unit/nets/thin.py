"""Structures small enough to compute with: every kind of block, stem and shortcut, at little width and depth."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from resflow.nets import Structure
from resflow.nets.table import STRUCTURES

SMALL = Structure(blocks=(1, 2), widths=(8, 16))


def thin(structure: Structure) -> Structure:
    """The same at an eighth of its width, with two blocks a stage at most."""
    return replace(
        structure,
        blocks=tuple(min(count, 2) for count in structure.blocks),
        widths=tuple(max(8, width // 8) for width in structure.widths),
        stem_width=structure.stem_width and structure.stem_width // 2,
        groups=max(1, structure.groups // 8),
        se=structure.se and 4,
    )


NAMED = {name: thin(structure) for name, structure in STRUCTURES.items()}
OTHERS = {
    "option C": replace(SMALL, shortcut="C"),
    "A with averages": replace(SMALL, shortcut="A", downsample="average"),
    "A blurred": replace(SMALL, shortcut="A", downsample="blur"),
    "blurred": replace(SMALL, downsample="blur", stem="conv7x7"),
    "blurred bottleneck": replace(SMALL, block="bottleneck", downsample="blur", stem="deep"),
    "averages": replace(SMALL, block="preact_bottleneck", downsample="average"),
    "excited": replace(SMALL, block="preact_basic", se=4),
    "excited plain": replace(SMALL, block="plain", se=4),
    "stochastic depth": replace(SMALL, stochastic_depth=0.5),
    "stochastic depth, preact": replace(SMALL, block="preact_bottleneck", stochastic_depth=0.5),
    **{f"{name}": replace(SMALL, activation=name) for name in ("leaky_relu", "silu", "gelu", "mish")},
    "zero norm": replace(SMALL, block="bottleneck", init="zero_norm"),
    "orthogonal": replace(SMALL, block="bottleneck", groups=4, init="orthogonal"),
    "group norm": replace(SMALL, norm="group"),
    "group norm, preact": replace(SMALL, block="preact_basic", norm="group"),
    **{
        f"{init} {block}": replace(SMALL, block=block, norm="none", init=init, se=4, stem="deep")  # type: ignore[arg-type]
        for init in ("fixup", "skipinit")
        for block in ("basic", "bottleneck", "preact_basic", "preact_bottleneck")
    },
}
ALL = NAMED | OTHERS


def images(count: int = 4, side: int = 24) -> Tensor:
    """float32 (count, 2, side, side), channels-last, always the same."""
    drawn = torch.randn(count, 2, side, side, generator=torch.Generator().manual_seed(1))
    return drawn.to(memory_format=torch.channels_last)


def unsettled(net: nn.Module) -> nn.Module:
    """With scales, offsets and statistics as training leaves them, in evaluation mode and channels-last."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif not parameter.any():
                parameter.normal_(std=0.1)  # what Fixup starts at zero
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean of all batches: few are needed
        for _ in range(2):
            net.train()(images())
    return net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
