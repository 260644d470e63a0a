"""The gradients of one batch, by one worker or many: in shares (`Shared`) or in ordered shards (`Sharded`).

Both leave the mean gradient of the batch in each parameter's `.grad` and return sums to report, so that the loop does
not know which it is. Several workers meet through `torch.distributed`, whose process group the caller has set up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from resflow.errors import SetupError

if TYPE_CHECKING:
    from resflow.data.augment import Batch
    from resflow.params import Train

__all__ = ["Sharded", "Shared", "gradients", "parts"]

Get = Callable[[int, int], "Batch"]
"""Gives one of so many equal parts of a batch."""


def parts(train: Train, rank: int, world: int) -> range:
    """Which of the equal parts of a batch (`train.shards`, or one a worker) worker `rank` of `world` computes."""
    whole = train.shards or world
    return range(whole * rank // world, whole * (rank + 1) // world)


def gradients(net: nn.Module, train: Train, *, seed: int, rank: int, world: int) -> Shared | Sharded:
    """What `train.shards` asks for; `net` is already on its device.

    Raises `SetupError` where `train.compile` needs a compiler that there is not.
    """
    if world > 1:
        _let_messages_wait()
    kind = Sharded if train.shards else Shared
    return kind(net, train, seed=seed, rank=rank, world=world)


class Shared:
    """Each worker takes its share of the batch; DistributedDataParallel averages while it goes backward.

    The bits of the result hold for one number of workers.
    """

    def __init__(self, net: nn.Module, train: Train, *, seed: int, rank: int, world: int) -> None:
        self._net, self._train, self._seed, self._rank, self._world = _compiled(net, train), train, seed, rank, world
        self._device = next(net.parameters()).device
        if world > 1:
            ids = [self._device] if self._device.type == "cuda" else None
            # The first worker's batch-norm statistics are what is kept; others need them where `align` gives them, not
            # before each pass.
            self._net = nn.parallel.DistributedDataParallel(self._net, device_ids=ids, forward_sync_buffers=False)
        self._is_settled = world == 1

    def run(self, get: Get, step: int) -> Tensor:
        """Gradients of step `step`; returns the sum of losses, correct answers and images of this worker, (3,)."""
        if not self._is_settled:
            self._settle(get)
        self._net.zero_grad(set_to_none=True)
        _reseed(self._seed, step, self._rank, self._device)
        return _backward(self._net, get(self._rank, self._world), self._train)

    def _settle(self, get: Get) -> None:
        """One pass for nothing: after its first, DistributedDataParallel packs gradients into messages anew.

        From three workers on the place in a message decides the order of a sum: without this, the first step after an
        interruption would have other bits than the same step of a run left alone.
        """
        before = [buffer.clone() for buffer in self._net.buffers()]
        _backward(self._net, get(self._rank, self._world), self._train)
        for buffer, old in zip(self._net.buffers(), before, strict=True):
            buffer.copy_(old)
        self._is_settled = True

    def gather(self, sums: Tensor) -> Tensor:
        """float64 (3,) of each worker -> (world, 3), for all."""
        rows = torch.zeros(self._world, 3, dtype=torch.float64, device=sums.device)
        rows[self._rank] = sums
        if self._world > 1:
            dist.all_reduce(rows)  # exact: all but one add zeros
        return rows

    def restore(self, rows: Tensor) -> Tensor:
        """This worker's own of what `gather` gave."""
        return rows[self._rank].clone()

    def align(self, nets: Sequence[nn.Module]) -> None:
        """Give all workers the first one's batch-norm statistics, which are what is kept; each has made its own.

        Without it each would validate another network, and go on from a checkpoint with other averages.
        """
        buffers = [buffer for net in nets for buffer in net.buffers() if buffer.is_floating_point()]
        if self._world == 1 or not buffers:
            return
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.broadcast(flat, 0)
        for buffer, new in zip(buffers, torch.split(flat, [buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(new.view_as(buffer))


class Sharded:
    """The batch is taken in `train.shards` shards, each forward and backward by itself, summed in their order.

    Any number of workers up to the shards gives the same bits: each worker computes some of the shards, sums its own
    slice of all shards' gradients and batch-norm statistics, and gets the other slices from those who summed them
    (all-to-all, then all-gather: with a shard a worker, the traffic of a ring all-reduce).
    """

    def __init__(self, net: nn.Module, train: Train, *, seed: int, rank: int, world: int) -> None:
        if world > train.shards:
            raise ValueError(f"{world} workers for {train.shards} shards")
        self._net, self._train, self._seed, self._world = _compiled(net, train), train, seed, world
        self._device = next(net.parameters()).device
        self._counts = [len(parts(train, worker, world)) for worker in range(world)]
        self._mine = parts(train, rank, world)
        self._parameters = [p for p in net.parameters() if p.requires_grad]
        self._statistics: list[tuple[Tensor, float]] = []  # running mean or variance, and its momentum
        self._counters: list[Tensor] = []
        for norm in net.modules():
            if isinstance(norm, BatchNorm) and norm.track_running_stats:
                momentum = 0.1 if norm.momentum is None else norm.momentum
                self._statistics += [
                    (cast(Tensor, norm.running_mean), momentum),
                    (cast(Tensor, norm.running_var), momentum),
                ]
                self._counters.append(cast(Tensor, norm.num_batches_tracked))
                norm.momentum = 1.0  # a shard's forward then leaves its own statistics in the buffers

    def run(self, get: Get, step: int) -> Tensor:
        """Gradients of step `step`; returns the sum of losses, correct answers and images of all shards, (3,)."""
        before = [buffer.clone() for buffer, _ in self._statistics]
        rows = []
        for shard in self._mine:
            for parameter in self._parameters:
                parameter.grad = None
            _reseed(self._seed, step, shard, self._device)
            sums = _backward(self._net, get(shard, self._train.shards), self._train)
            rows.append(self._flat(sums))
        return self._spread(self._sum(rows), before)

    def gather(self, sums: Tensor) -> Tensor:
        """float64 (3,), which all workers have alike -> (1, 3)."""
        return sums[None].clone()

    def restore(self, rows: Tensor) -> Tensor:
        """The inverse of `gather`."""
        return rows[0].clone()

    def align(self, nets: Sequence[nn.Module]) -> None:
        """All workers have the same already."""

    def _flat(self, sums: Tensor) -> Tensor:
        """All that a shard contributes, as one float32 vector."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        parts += [buffer for buffer, _ in self._statistics]
        return torch.cat([*(part.reshape(-1) for part in parts), sums.float()])

    def _sum(self, rows: list[Tensor]) -> Tensor:
        """The sum over all shards of all workers, in their order."""
        if self._world == 1:
            return _in_order(rows)
        length = len(rows[0])
        size = -(-length // self._world)
        padded = F.pad(torch.stack(rows), (0, size * self._world - length))
        sent = padded.view(len(rows), self._world, size).transpose(0, 1).reshape(-1)
        received = sent.new_empty(self._train.shards * size)
        dist.all_to_all_single(
            received, sent, [count * size for count in self._counts], [len(rows) * size] * self._world
        )
        mine = _in_order(list(received.view(self._train.shards, size)))
        whole = sent.new_empty(self._world * size)
        dist.all_gather_single(whole, mine)
        return whole[:length]

    def _spread(self, whole: Tensor, before: list[Tensor]) -> Tensor:
        """Put the sum where the optimiser and validation look for it; returns what is reported."""
        places = [*self._parameters, *(buffer for buffer, _ in self._statistics)]
        *parts, sums = torch.split(whole, [*(place.numel() for place in places), 3])
        # laid out in memory as the parameters are: torch's fused optimisers on the CPU take that for granted
        means = [
            torch.div(part.view(place.shape), self._train.shards, out=torch.empty_like(place))
            for part, place in zip(parts, places, strict=True)
        ]
        count = len(self._parameters)
        for parameter, grad in zip(self._parameters, means[:count], strict=True):
            parameter.grad = grad
        for (buffer, momentum), old, new in zip(self._statistics, before, means[count:], strict=True):
            buffer.copy_(old.lerp_(new, momentum))
        for counter in self._counters:
            counter.sub_(len(self._mine) - 1)  # counted once a step, whatever this worker's number of shards
        return sums.double()


def _backward(net: nn.Module, batch: Batch, train: Train) -> Tensor:
    """Add the mean gradient of `batch` to `.grad`, in `train.accumulate` pieces; returns what is reported, float64."""
    pieces = zip(*(part.chunk(train.accumulate) for part in batch), strict=True)
    total = torch.zeros(3, dtype=torch.float64, device=batch.images.device)
    for number, (images, targets) in enumerate(pieces, 1):
        is_last = number == train.accumulate
        several = net if isinstance(net, nn.parallel.DistributedDataParallel) else None
        with several.no_sync() if several and not is_last else nullcontext():
            with torch.autocast(images.device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
                logits = net(images)
            logits = logits.float()
            loss = F.cross_entropy(logits, targets, label_smoothing=train.label_smoothing)
            (loss / train.accumulate if train.accumulate > 1 else loss).backward()  # type: ignore[no-untyped-call]
        truth = targets if targets.ndim == 1 else targets.argmax(1)  # of a mixture, what there is most of
        correct = (logits.argmax(1) == truth).sum()
        count = torch.full_like(correct, len(truth), dtype=torch.float64)
        total += torch.stack([loss.detach() * count, correct.double(), count])
    return total


def _compiled(net: nn.Module, train: Train) -> nn.Module:
    """What computes as `net` does, with its parameters; `net` itself stays as it is, for validation and copies."""
    if not train.compile:
        return net
    # tells the compiler too
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
    on_gpu = next(net.parameters()).device.type == "cuda"
    if not on_gpu:
        _check_compiler()
    # CUDA graphs reuse the memory of the gradients they return, which accumulated pieces would still need
    graphs = on_gpu and train.accumulate == 1
    # for one size of batch; else bits would depend on which sizes this process met before
    return cast(nn.Module, torch.compile(net, dynamic=False, mode="reduce-overhead" if graphs else "default"))


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        mend = "Install g++ (or name another one in CXX), or set it to false"
        raise SetupError("train.compile", "is true, but there is no working C++ compiler", mend) from error


def _let_messages_wait() -> None:
    """Have gloo's thread for messages wait for a core that others use, rather than take it (docs/log.md).

    It may find a connection locked by another of gloo's threads; it then looks again at once, until it gets the lock
    (gloo, transport/tcp/pair.cc, `Pair::handleEvents`). Woken on the very core of that other one it would take the core
    from it, and look in vain until the kernel's next tick. Threads of SCHED_BATCH that wake up take no core from others
    (Linux, kernel/sched/fair.c).
    """
    for thread in Path("/proc/self/task").glob("*"):  # none but on Linux
        with suppress(OSError):  # it has ended, or this may not be asked for here: then training is slower, no more
            if (thread / "comm").read_bytes() == b"gloo_tcp_loop\n":
                os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))


def _in_order(rows: list[Tensor]) -> Tensor:
    whole = rows[0].clone()
    for row in rows[1:]:
        whole += row
    return whole


def _reseed(seed: int, step: int, part: int, device: torch.device) -> None:
    """Let dropout draw the same for a part of a step whoever computes it, and however often a run was interrupted."""
    drawn = int(np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    if device.type == "cpu":
        torch.default_generator.manual_seed(drawn)  # torch.manual_seed formats a traceback for each kind of GPU
    else:
        torch.manual_seed(drawn)
