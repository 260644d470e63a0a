"""Run a trained network over images, the same bits each time on the same machine.

Loading the network is `resflow.nets.file`; what its answers are worth is `resflow.evaluation.metrics`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from resflow.data.batches import to_input
from resflow.errors import DataError, TrainingError
from resflow.nets.fusion import fused
from resflow.processes import keep_memory

if TYPE_CHECKING:
    from resflow.data.arrays import Split
    from resflow.nets.file import ModelCard

__all__ = ["check_fit", "deterministic", "device", "logits", "measuring_device"]


def device(wanted: str) -> str:
    """`cpu` or `cuda` for `train.device`, where `auto` takes the GPU if there is one. Raises `TrainingError`."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise TrainingError("train.device", "is cuda, but no GPU is found", "Set it to auto or cpu")
    return ("cuda" if there else "cpu") if wanted == "auto" else wanted


def measuring_device(wanted: str) -> str:
    """As `device`, but the CPU where `cuda`, on which a cluster's workers have trained, is not on this machine."""
    return wanted if wanted == "cpu" else device("auto")


def check_fit(path: Path, card: ModelCard, test: Split) -> None:
    """Raise `DataError` where the model at `path` was trained for other images or classes than those of `test`."""
    shape, classes = test.images.shape[1:], int(test.labels.max(initial=0)) + 1
    if not len(test.labels):
        raise DataError(str(path), "cannot be measured: the test split is empty", "Run `dvc repro --force prepare`")
    if shape != card.image_shape or classes > len(card.classes):
        was = f"was trained for {len(card.classes)} classes of images {card.image_shape}"
        raise DataError(str(path), f"{was}, but the test split has {classes} of {shape}", "Run `dvc repro`")


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Within it, torch computes on `threads` CPU threads and by deterministic algorithms; afterwards as before.

    The process keeps memory that it frees from then on: for the next batch, and afterwards.
    """
    keep_memory()
    # cuBLAS reads this when it is first used; without it torch refuses deterministic products on the GPU
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    # as use_deterministic_algorithms(True), which loads torch's compiler too
    torch.set_deterministic_debug_mode("error")
    # No operation here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        torch.backends.cudnn.benchmark = before[2]
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


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
