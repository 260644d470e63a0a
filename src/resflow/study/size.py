"""What a structure costs by its shape alone, exact and the same everywhere: `size(card)`, and `layers(card)` by layer.

Networks run on torch's `meta` device, which keeps shapes and computes nothing. Parameters and multiply-accumulates are
those of `resflow.nets.cost`. What a machine makes of it is `speed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from resflow.nets import file
from resflow.nets.cost import cost
from resflow.nets.fusion import fused
from resflow.study.kinds import kind

if TYPE_CHECKING:
    from resflow.nets.file import ModelCard

__all__ = ["Layer", "Size", "layers", "size"]

BATCH = 1_000_003
"""Images of the pass that is counted. On `meta` they cost nothing, and what does not grow with their number, such as
the statistics of a norm, vanishes when bytes are divided by it."""


class Layer(NamedTuple):
    """A module with operations of its own, for one image in float32."""

    name: str
    """As in the state dict; `net` is the network itself, whose own operation is its global pooling."""
    kind: str
    """Of `kinds`."""
    output: tuple[int, ...]
    """Shape of what it gives, without the batch."""
    parameters: int
    macs: int
    activation_bytes: int
    """Of all tensors that its own operations make in a forward pass; what works in place makes none."""
    kept_bytes: int
    """Of what training keeps for its backward pass and no layer before it has kept."""


class Size(NamedTuple):
    """A whole network, for one image in float32."""

    parameters: int
    """Numbers that training changes."""
    macs: int
    """Multiply-accumulates of convolutions and products, forward."""
    activation_bytes: int
    """The sum over layers."""
    kept_bytes: int
    """Likewise: what each image of a batch adds to the memory of training. Its pixels are among it."""
    inference_bytes: int
    """The most that is alive at once in a forward pass of the network with its norms folded into its convolutions, the
    image included, the weights and what kernels take for themselves not."""
    file_bytes: int
    """Of the `.safetensors` file of the trained network."""


@cache
def size(card: ModelCard) -> Size:
    """What the network of `card` costs. Raises `NetError` for a structure that is unknown or does not fit."""
    rows = layers(card)
    counted = cost(card.structure, image_shape=card.image_shape, num_classes=len(card.classes))
    return Size(
        parameters=counted.parameters,
        macs=counted.macs,
        activation_bytes=sum(row.activation_bytes for row in rows),
        kept_bytes=sum(row.kept_bytes for row in rows),
        inference_bytes=_most_alive(card),
        file_bytes=_file_bytes(card),
    )


@cache
def layers(card: ModelCard) -> tuple[Layer, ...]:
    """The layers of the network of `card`, in the order in which an image passes them first. Raises `NetError`."""
    with torch.device("meta"):
        net, images = card.network().train(), _images(card, BATCH)
        ledger = _Ledger(net)
        keep = torch.autograd.graph.saved_tensors_hooks(ledger.keep, lambda kept: kept)
        with FlopCounterMode(display=False) as counter, keep, ledger:
            net(images)
    macs = _macs(net, counter.get_flop_counts())
    return tuple(
        Layer(
            name=name or "net",
            kind=next((one for one in map(kind, row.operations) if one != "rest"), "rest"),
            output=row.output,
            parameters=sum(parameter.numel() for parameter in net.get_submodule(name).parameters(recurse=False)),
            macs=macs[name],
            activation_bytes=row.made // BATCH,
            kept_bytes=row.kept // BATCH,
        )
        for name, row in ledger.rows.items()
    )


@dataclass
class _Row:
    """What is known of a module."""

    operations: list[str] = field(default_factory=list)
    output: tuple[int, ...] = ()
    made: int = 0
    kept: int = 0


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Writes down what each module's own operations make, and what autograd keeps of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: dict[str, _Row] = {}
        self._made = _weights(net)
        self._kept = dict(self._made)
        self._within: list[str] = []
        for name, module in net.named_modules():
            module.register_forward_pre_hook(lambda module, inputs, name=name: self._within.append(name))
            module.register_forward_hook(self._leave)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        row = self.rows.setdefault(self._within[-1], _Row())
        row.operations.append(func.name())
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                row.made += _new_bytes(tensor, self._made)
        return made

    def keep(self, tensor: Tensor) -> Tensor:
        """Called by autograd with each tensor that it saves."""
        self.rows.setdefault(self._within[-1], _Row()).kept += _new_bytes(tensor, self._kept)
        return tensor

    def _leave(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        name = self._within.pop()
        if name in self.rows:
            self.rows[name].output = tuple(output.shape[1:])


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches how many bytes are alive at once, beside the weights of `net`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._weights = _weights(net)
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._alive = {key: one for key, one in self._alive.items() if not _is_gone(one[0])}
        for tensor in tree_leaves((args, made)):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._weights:
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
        self.most = max(self.most, sum(count for _, count in self._alive.values()))
        return made


def _is_gone(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())  # type: ignore[no-untyped-call]


def _weights(net: nn.Module) -> dict[int, torch.UntypedStorage]:
    """The memory of parameters and buffers by its address; kept alive, lest other memory come to have the same one."""
    storages = [tensor.untyped_storage() for tensor in (*net.parameters(), *net.buffers())]
    return {storage._cdata: storage for storage in storages}


def _new_bytes(tensor: Tensor, known: dict[int, torch.UntypedStorage]) -> int:
    """Of the memory behind a tensor, unless it is known; then it is."""
    storage = tensor.untyped_storage()
    if storage._cdata in known:
        return 0
    known[storage._cdata] = storage
    return storage.nbytes()


def _macs(net: nn.Module, counts: Mapping[str, Mapping[Any, int]]) -> dict[str, int]:
    """Of each module's own operations, for one image: what is counted within it, but not within its parts."""
    root = type(net).__name__

    def within(name: str) -> int:
        return sum(counts.get(f"{root}.{name}" if name else root, {}).values()) // 2 // BATCH

    parts = {
        name: [f"{name}.{child}".strip(".") for child, _ in one.named_children()] for name, one in net.named_modules()
    }
    return {name: within(name) - sum(map(within, children)) for name, children in parts.items()}


def _most_alive(card: ModelCard) -> int:
    with torch.device("meta"), torch.inference_mode():
        net = fused(card.network().eval())
        with _Alive(net) as watch:
            net(_images(card, 1))
    return int(watch.most)


def _file_bytes(card: ModelCard) -> int:
    with torch.device("meta"):
        weights = card.network().state_dict()
    zeros = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in weights.items()}
    return len(file.content(zeros, card))


def _images(card: ModelCard, count: int) -> Tensor:
    height, width, channels = card.image_shape
    return torch.zeros(count, channels, height, width)
