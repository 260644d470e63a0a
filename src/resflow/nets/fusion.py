"""Batch norms folded into the convolutions before them, for inference: `fused(net)`.

A trained batch norm is a scale and an offset a channel, which a convolution can do by itself. Training is not served
by it: there the statistics are those of the batch.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fused"]


def fused(net: nn.Module) -> nn.Module:
    """A network that answers as `net` does in evaluation mode, up to rounding; `net` itself if it has no batch norm.

    `net` is left as it is. Memory formats stay.
    """
    if not any(isinstance(module, BatchNorm) for module in net.modules()):
        return net
    # torch.fx.experimental.optimization.fuse does the same, but warns of what it imports
    traced = fx.symbolic_trace(copy.deepcopy(net))
    for node in traced.graph.nodes:
        norm = _module(traced, node)
        if not isinstance(norm, BatchNorm):
            continue
        (before,) = node.args
        convolution = _module(traced, before)
        if isinstance(convolution, nn.Conv2d) and len(before.users) == 1:
            with torch.no_grad():
                traced.set_submodule(before.target, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """What a node of the graph calls, if that is a module."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None
