"""What a device could do at most: the speed of one large product of matrices. Knows torch only."""

from __future__ import annotations

import time

import torch

__all__ = ["SIDES", "matmul", "wait"]

SIDES = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices, by device: only the larger ones keep a GPU busy, and take a CPU a minute."""


def matmul(dtype: torch.dtype, device: torch.device, *, side: int | None = None, repeats: int = 12) -> float:
    """FLOP/s of the fastest of several products of square matrices; a product and a sum count as two."""
    side = side or SIDES[device.type]
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    seconds = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        left @ right
        wait(device)
        seconds.append(time.perf_counter() - started)
    return float(2 * side**3 / min(seconds))


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
