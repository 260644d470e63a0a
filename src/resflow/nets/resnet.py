"""Residual networks, built from a `Structure`: a stem, stages of blocks, global pooling, a linear classifier.

He et al. 2016, "Deep Residual Learning for Image Recognition", table 1 and section 4.2. Names are given in `table`;
`blocks` has what stages are made of. Parameters are named as in torchvision's resnets, so that its weights load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from resflow.nets.blocks import BLOCKS, Place
from resflow.nets.initial import initialise
from resflow.nets.layers import Layers

if TYPE_CHECKING:
    from resflow.nets.structure import Structure

__all__ = ["ResidualNet"]


class ResidualNet(nn.Module):
    """A residual classifier: float32 (N, in_channels, H, W) -> logits (N, num_classes)."""

    def __init__(self, structure: Structure, *, in_channels: int, num_classes: int) -> None:
        super().__init__()
        layers = Layers(structure)
        self.conv1 = layers.stem(in_channels)
        self.bn1 = layers.norm(structure.stem_channels)
        self.act = layers.activation()
        self.maxpool = layers.stem_pool()
        self._stages = [f"layer{number}" for number in range(1, len(structure.blocks) + 1)]
        for name, stage in zip(self._stages, _stages(structure), strict=True):
            self.add_module(name, stage)
        outputs = structure.outputs[-1]
        # the last sum of pre-activation blocks has no norm and act after it yet: He et al. 2016b, appendix
        self.last = nn.Sequential(layers.norm(outputs), layers.activation()) if structure.is_preact else nn.Identity()
        self.pool = structure.pool
        self.shift = layers.shift()
        self.fc = nn.Linear(outputs, num_classes)
        initialise(self, structure)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for name in self._stages:
            x = getattr(self, name)(x)
        x = self.last(x)
        x = x.amax((2, 3)) if self.pool == "max" else x.mean((2, 3))
        return self.fc(self.shift(x))  # type: ignore[no-any-return]  # modules are untyped callables


def _stages(structure: Structure) -> list[nn.Sequential]:
    kind, inputs, total, done = BLOCKS[structure.block], structure.stem_channels, sum(structure.blocks), 0
    stages: list[nn.Sequential] = []
    for count, width, outputs in zip(structure.blocks, structure.widths, structure.outputs, strict=True):
        stage = []
        for number in range(count):
            place = Place(
                inputs=inputs,
                width=width,
                stride=2 if number == 0 and stages else 1,
                drop_rate=structure.stochastic_depth * (done + 1) / total,
                is_first=done == 0,
            )
            stage.append(kind(structure, place))
            inputs, done = outputs, done + 1
        stages.append(nn.Sequential(*stage))
    return stages
