"""The plain network of the article that resflow set out from, for comparison.

Three 3x3 convolutions of 32, 64 and 128 channels, each followed by ReLU and 2x2 max-pooling, a dense layer of 256 and
dropout. The original drops units of the logits; here dropout stands before the last layer, where it regularises
without spoiling the predicted probabilities. Initial weights are Glorot-uniform, as in Keras, its framework.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ArticleCNN"]

GRID = 3
"""Side of the maps that the dense layer reads: what pooling leaves of 28 pixels."""


class ArticleCNN(nn.Sequential):
    """float32 (N, in_channels, H, W) -> logits (N, num_classes); built for 28x28 images, adapts to larger ones."""

    def __init__(self, *, in_channels: int, num_classes: int) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in ((in_channels, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding="same"), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        head = [nn.Flatten(), nn.Linear(128 * GRID**2, 256), nn.ReLU(inplace=True), nn.Dropout(0.5)]
        super().__init__(*layers, Means(), *head, nn.Linear(256, num_classes))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]  # modules are untyped callables


class Means(nn.Module):
    """(N, C, H, W) -> (N, C, 3, 3), as `nn.AdaptiveAvgPool2d(3)`, whose gradient is not deterministic on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        for axis in (2, 3):
            size = x.shape[axis]
            edges = [(size * part // GRID, -(-size * (part + 1) // GRID)) for part in range(GRID)]
            x = torch.stack([x.narrow(axis, start, end - start).mean(axis) for start, end in edges], axis)
        return x


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
