"""What the weights of a residual network start as: `initialise(net, structure)`, drawn from torch's global generator.

Norms start as the identity, biases at zero, but for what `Structure.init` says.
"""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import TYPE_CHECKING

from torch import nn

from resflow.nets.blocks import Block

if TYPE_CHECKING:
    from resflow.nets.structure import Structure

__all__ = ["initialise"]


def initialise(net: nn.Module, structure: Structure) -> None:
    """Set all weights in place; the gain is that of ReLU for each activation."""
    net.apply(partial(_draw, is_orthogonal=structure.init == "orthogonal"))
    blocks = [module for module in net.modules() if isinstance(module, Block)]
    if structure.init == "zero_norm":
        for block in blocks:
            nn.init.zeros_(block.last_norm().weight)  # type: ignore[arg-type]
    if structure.init == "fixup":
        _fixup(blocks, [module for module in net.modules() if isinstance(module, nn.Linear)][-1])


def _draw(module: nn.Module, is_orthogonal: bool) -> None:
    """He et al. 2015, "Delving Deep into Rectifiers", equation 14 (fan-out), or Saxe et al. 2014, scaled for ReLU."""
    if isinstance(module, nn.Conv2d):
        if is_orthogonal:
            nn.init.orthogonal_(module.weight, gain=sqrt(2))
        else:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _fixup(blocks: list[Block], head: nn.Linear) -> None:
    """Zhang et al. 2019, "Fixup Initialization", section 3: rules 1 (zeros) and 2 (scales); `layers` has rule 3."""
    for block in blocks:
        *before, last = block.convolutions()
        for convolution in before:
            # L^(-1 / (2m - 2)) for L branches of m layers
            convolution.weight.data.mul_(len(blocks) ** (-1 / (2 * len(before))))
        nn.init.zeros_(last.weight)
    nn.init.zeros_(head.weight)
