"""Run a trained network over images.

Loading the network is `resflow.nets.file`; what its answers are worth is `resflow.evaluation.metrics`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from resflow.data.batches import to_input
from resflow.errors import DataError
from resflow.nets.fusion import fused

if TYPE_CHECKING:
    from resflow.data.arrays import Split
    from resflow.nets.file import ModelCard

__all__ = ["check_fit", "logits"]


def check_fit(path: Path, card: ModelCard, test: Split) -> None:
    """Raise `DataError` where the model at `path` was trained for other images or classes than those of `test`."""
    shape, classes = test.images.shape[1:], int(test.labels.max(initial=0)) + 1
    if not len(test.labels):
        raise DataError(str(path), "cannot be measured: the test split is empty", "Run `dvc repro --force prepare`")
    if shape != card.image_shape or classes > len(card.classes):
        was = f"was trained for {len(card.classes)} classes of images {card.image_shape}"
        raise DataError(str(path), f"{was}, but the test split has {classes} of {shape}", "Run `dvc repro`")


def logits(
    net: torch.nn.Module, images: NDArray[np.uint8], card: ModelCard, batch_size: int, device: str = "cpu"
) -> NDArray[np.float32]:
    """Answers of `net` for uint8 images (N, H, W, C), as float32 of shape (N, K); the net is left on `device`.

    Its batch norms are folded into its convolutions first.
    """
    place = torch.device(device)
    net = fused(net.to(place, memory_format=torch.channels_last).eval())  # type: ignore[call-overload]
    answers: list[NDArray[Any]] = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            # a copy, because torch does not take the read-only pages of a memory-mapped array
            batch = np.array(images[start : start + batch_size])
            answers.append(net(to_input(batch, card.mean, card.std, place)).float().cpu().numpy())
    return np.concatenate(answers) if answers else np.empty((0, len(card.classes)), np.float32)
