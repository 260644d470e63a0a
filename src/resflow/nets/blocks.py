"""The blocks of residual networks: how convolutions, norms and activations stand together, and the shortcut beside.

Each maps (N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride)). Layers are made by `layers`; names of
parameters are those of torchvision's resnets, where it has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from resflow.nets.layers import Layers, StochasticDepth
from resflow.nets.structure import EXPANSION

if TYPE_CHECKING:
    from resflow.nets.structure import Structure

__all__ = ["BLOCKS", "Block", "Place"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a block stands."""

    inputs: int
    """Channels."""
    width: int
    """Channels of its 3x3 convolutions, but for `Structure.inner`."""
    stride: int
    drop_rate: float
    """Of its stochastic depth."""
    is_first: bool
    """Whether the stem's activation is what comes in, so that a pre-activation block needs none of its own."""


class Block(nn.Module):
    """What all blocks have: `branch`, what closes it, and the shortcut. Subclasses make their convolutions first."""

    act: nn.Module
    blur: nn.Module
    se: nn.Module
    scale: nn.Module
    drop: nn.Module
    downsample: nn.Module

    def convolutions(self) -> Sequence[nn.Conv2d]:
        """Those of the branch, in their order."""
        named = (getattr(self, f"conv{number}", None) for number in (1, 2, 3))
        return [one for one in named if isinstance(one, nn.Conv2d)]

    def last_norm(self) -> nn.Module:
        """That which closes the branch."""
        norm = getattr(self, f"bn{len(self.convolutions())}")
        assert isinstance(norm, nn.Module)
        return norm

    def _close(self, layers: Layers, place: Place, outputs: int) -> None:
        self.act, self.blur = layers.activation(), layers.blur(place.stride)
        self.se, self.scale = layers.squeeze_excitation(outputs), layers.scale()
        self.drop = StochasticDepth(place.drop_rate) if place.drop_rate else nn.Identity()
        self.downsample = layers.shortcut(place.inputs, outputs, place.stride)

    def _closed(self, y: Tensor) -> Tensor:
        return self.drop(self.scale(self.se(y)))  # type: ignore[no-any-return]  # modules are untyped callables


class BasicBlock(Block):
    """conv-norm-act-conv-norm, plus the shortcut, act: He et al. 2016a, figure 5 left."""

    def __init__(self, structure: Structure, place: Place) -> None:
        super().__init__()
        layers, width = Layers(structure), place.width
        self.conv1 = layers.convolution(place.inputs, width, 3, layers.inner_stride(place.stride))
        self.bn1 = layers.norm(width)
        self.conv2 = layers.convolution(width, width, 3)
        self.bn2 = layers.norm(width)
        self._close(layers, place, width)

    def branch(self, x: Tensor) -> Tensor:
        """What is added to the shortcut."""
        y = self.blur(self.act(self.bn1(self.conv1(x))))
        return self._closed(self.bn2(self.conv2(y)))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.downsample(x))  # type: ignore[no-any-return]


class PlainBlock(BasicBlock):
    """`BasicBlock` without its shortcut: the plain networks of He et al. 2016a, section 3.3."""

    def __init__(self, structure: Structure, place: Place) -> None:
        super().__init__(structure, place)
        self.downsample = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x))  # type: ignore[no-any-return]


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions: He et al. 2016a, figure 5 right. The 3x3 one has the stride, as in torchvision."""

    def __init__(self, structure: Structure, place: Place) -> None:
        super().__init__()
        layers, width, outputs = Layers(structure), place.width * structure.inner, place.width * EXPANSION
        self.conv1 = layers.convolution(place.inputs, width, 1)
        self.bn1 = layers.norm(width)
        self.conv2 = layers.convolution(width, width, 3, layers.inner_stride(place.stride), structure.groups)
        self.bn2 = layers.norm(width)
        self.conv3 = layers.convolution(width, outputs, 1)
        self.bn3 = layers.norm(outputs)
        self._close(layers, place, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        y = self.blur(self.act(self.bn2(self.conv2(y))))
        y = self._closed(self.bn3(self.conv3(y)))
        return self.act(y + self.downsample(x))  # type: ignore[no-any-return]


class PreActBlock(Block):
    """What pre-activation blocks have: norm and act come first, and nothing after the sum (He et al. 2016b, figure 4e).

    A shortcut that changes sizes starts from the activation, as in the authors' code: it is no identity anyway.
    """

    bn1: nn.Module | None

    def _open(self, layers: Layers, place: Place) -> None:
        self.bn1 = None if place.is_first else layers.norm(place.inputs)

    def _opened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What goes into the branch, and the shortcut."""
        z = x if self.bn1 is None else self.act(self.bn1(x))
        return z, x if isinstance(self.downsample, nn.Identity) else self.downsample(z)


class PreActBasicBlock(PreActBlock):
    """norm-act-conv, twice: He et al. 2016b, figure 4e."""

    def __init__(self, structure: Structure, place: Place) -> None:
        super().__init__()
        layers, width = Layers(structure), place.width
        self._open(layers, place)
        self.conv1 = layers.convolution(place.inputs, width, 3, layers.inner_stride(place.stride))
        self.bn2 = layers.norm(width)
        self.conv2 = layers.convolution(width, width, 3)
        self._close(layers, place, width)

    def forward(self, x: Tensor) -> Tensor:
        z, shortcut = self._opened(x)
        y = self.blur(self.act(self.bn2(self.conv1(z))))
        return self._closed(self.conv2(y)) + shortcut


class PreActBottleneck(PreActBlock):
    """norm-act-conv, thrice, of 1x1, 3x3 and 1x1."""

    def __init__(self, structure: Structure, place: Place) -> None:
        super().__init__()
        layers, width, outputs = Layers(structure), place.width * structure.inner, place.width * EXPANSION
        self._open(layers, place)
        self.conv1 = layers.convolution(place.inputs, width, 1)
        self.bn2 = layers.norm(width)
        self.conv2 = layers.convolution(width, width, 3, layers.inner_stride(place.stride), structure.groups)
        self.bn3 = layers.norm(width)
        self.conv3 = layers.convolution(width, outputs, 1)
        self._close(layers, place, outputs)

    def forward(self, x: Tensor) -> Tensor:
        z, shortcut = self._opened(x)
        y = self.act(self.bn2(self.conv1(z)))
        y = self.blur(self.act(self.bn3(self.conv2(y))))
        return self._closed(self.conv3(y)) + shortcut


BLOCKS: dict[str, type[PlainBlock | BasicBlock | Bottleneck | PreActBasicBlock | PreActBottleneck]] = {
    "plain": PlainBlock,
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
    "preact_basic": PreActBasicBlock,
    "preact_bottleneck": PreActBottleneck,
}
"""By `Structure.block`."""
