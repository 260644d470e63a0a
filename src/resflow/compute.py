"""Where torch computes, and that it gives the same bits each time on the same machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resflow.errors import TrainingError
from resflow.processes import keep_memory

__all__ = ["deterministic", "device", "fix_bits", "is_out_of_memory", "measuring_device", "on_gpu"]

FULL = re.compile("out of memory|not enough memory|can't allocate memory|_ALLOC_FAILED")
"""What CUDA, torch's allocators on the CPU, and cuBLAS and cuDNN say where there is no more memory."""


def on_gpu(wanted: str, there: bool) -> bool:
    """Whether `train.device` means a GPU, where there is one or not. Raises `TrainingError`."""
    if wanted == "cuda" and not there:
        raise TrainingError("train.device", "is cuda, but no GPU is found", "Set it to auto or cpu")
    return there and wanted != "cpu"


def device(wanted: str) -> str:
    """`cpu` or `cuda` for `train.device`, where `auto` takes the GPU if there is one. Raises `TrainingError`."""
    return "cuda" if on_gpu(wanted, torch.cuda.is_available()) else "cpu"


def measuring_device(wanted: str) -> str:
    """As `device`, but the CPU where `cuda`, on which a cluster's workers have trained, is not on this machine."""
    return wanted if wanted == "cpu" else device("auto")


def fix_bits(threads: int) -> None:
    """Have torch compute on `threads` CPU threads and by deterministic algorithms, and seed nothing.

    Also has the process keep memory that it frees, for the next batch.
    """
    keep_memory()
    # cuBLAS reads this when it is first used; without it torch refuses deterministic products on the GPU
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    # as use_deterministic_algorithms(True), which loads torch's compiler too: that is left to those who compile
    torch.set_deterministic_debug_mode("error")
    # No operation here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    # torch's default lets convolutions of float32 drop 13 of its 23 bits where a GPU gains by it, and no products
    torch.backends.cudnn.allow_tf32 = False


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether memory was not enough: torch has a class for that of its own GPU allocator only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(FULL.search(str(error)))


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Within it, as `fix_bits` has it; afterwards as before, but that freed memory is still kept."""
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    fix_bits(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = cudnn
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
