"""Which images of the training file are for validation: the same share of each class, drawn by a seed.

The test file is a split of its own and never passes through here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resflow.data.idx import Bytes

__all__ = ["Indices", "stratified"]

Indices = NDArray[np.intp]


def stratified(labels: Bytes, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Indices for training and for validation, each sorted, so that what is written follows the order of the file.

    Each class gives the nearest whole number of images to `fraction` of it; a class of two or more gives at least one
    and keeps at least one.
    """
    # Raw draws of PCG64 are promised to stay the same in all versions of NumPy; permutations and shuffles are not.
    draws = np.random.PCG64(seed).random_raw(len(labels))
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.argsort(draws[members], kind="stable")
        chosen[members[order[: _share(len(members), fraction)]]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _share(count: int, fraction: float) -> int:
    return min(max(round(count * fraction), 1), count - 1)
