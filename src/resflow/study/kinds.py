"""Kinds of layers, told by the names of what torch computes: `kind("aten::mkldnn_convolution")`."""

from __future__ import annotations

import re

__all__ = ["KINDS", "kind"]

KINDS = {
    "convolution": "conv",
    "norm": "batchnorm|groupnorm",
    "activation": "relu|silu|gelu|mish|sigmoid",
    "pooling": "pool|mean|amax",
    "linear": "linear|addmm",
    "rest": "",
}
"""Each with a pattern for names in lower case, without underscores; the first that is found counts."""


def kind(operation: str) -> str:
    """The kind that an operation belongs to, forward (`aten::relu_`) or backward (`ReluBackward0`)."""
    name = operation.lower().replace("_", "")
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, name))
