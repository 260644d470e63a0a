"""How long a training step of several workers takes, by a model of its communication; measures nothing itself.

    step = ddp_step(Work(compute=0.1, gradients=102_228_128, statistics=212_480), 16, cluster)

Data-parallel training sums the gradients of all workers in each step. Without `train.shards`, DistributedDataParallel
all-reduces them in messages while it goes backward; with it, an all-to-all and an all-gather follow the last backward
(`resflow.training.gradients`). Left out: input, waiting for the slowest worker, and what copying gradients into
messages and back costs a worker. `benchmarks.scaling` holds the model against measurements and writes docs/scaling.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "Cluster",
    "Link",
    "Work",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "ddp_step",
    "messages",
    "sharded_step",
]

BACKWARD = 2 / 3
"""Share of a step's computation that is its backward pass: twice the multiplications of the forward pass."""
FIRST_MESSAGE, MESSAGE = 2**20, 25 * 2**20
"""Bytes of DistributedDataParallel's first message and of each further one: `dist._DEFAULT_FIRST_BUCKET_BYTES`, and
`bucket_cap_mb` in torch's documentation (Li et al. 2020, "PyTorch Distributed", says why)."""


class Link(NamedTuple):
    """A way between workers."""

    bandwidth: float
    """Bytes per second, in each direction."""
    latency: float
    """Seconds that a message takes beside its bytes."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes of equally many workers; they are filled one after the other."""

    name: str
    per_node: int
    """Workers of a node."""
    inside: Link
    """From each worker to another of its node."""
    between: Link
    """From a node to another: all its network interfaces together."""

    def nodes(self, workers: int) -> int:
        """That many workers need."""
        return -(-workers // self.per_node)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one worker does in a step."""

    compute: float
    """Seconds of a step of one worker alone."""
    gradients: int
    """Bytes."""
    statistics: int
    """Bytes of running means and variances of batch norms, which only shards sum."""


def all_reduce(size: float, workers: int, cluster: Cluster) -> float:
    """Seconds in which `size` bytes of each worker become their sum for all, in a ring.

    2(N-1) rounds, in each of which every worker sends a part of `size`/N bytes to the next (Patarasuk and Yuan 2009,
    "Bandwidth optimal all-reduce algorithms"). The slowest link in the ring sets the bandwidth. Each part
    passes 2(N-1) links, of which 2(nodes-1) lie between nodes, as NCCL's own estimate counts (src/graph/tuning.cc).
    """
    return 2 * all_gather(size, workers, cluster)


def all_gather(size: float, workers: int, cluster: Cluster) -> float:
    """Seconds in which all get all of `size` bytes, of which each has its part: half of an all-reduce."""
    nodes = cluster.nodes(workers)
    links = [cluster.inside, cluster.between] if nodes > 1 else [cluster.inside]
    bandwidth = min(link.bandwidth for link in links)
    latency = (workers - nodes) * cluster.inside.latency + (nodes - 1) * cluster.between.latency
    return (workers - 1) / workers * size / bandwidth + latency


def all_to_all(size: float, workers: int, cluster: Cluster) -> float:
    """Seconds in which each worker sends each other one its part of `size` bytes, every part by its own way.

    A node's workers share its way out, over which nearly all parts go, where a ring passes them on inside.
    """
    near = min(workers, cluster.per_node)
    far = workers - near
    inside = (near - 1) / workers * size / cluster.inside.bandwidth
    between = near * far / workers * size / cluster.between.bandwidth
    return max(inside, between) + (near - 1) * cluster.inside.latency + far * cluster.between.latency


def ddp_step(work: Work, workers: int, cluster: Cluster) -> float:
    """Seconds of a step of DistributedDataParallel.

    Gradients become ready evenly over the backward pass. A message goes out when its last gradient is ready and the one
    before it is done, while the backward pass goes on; what is left at its end is waited for.
    """
    forward, backward = (1 - BACKWARD) * work.compute, BACKWARD * work.compute
    done, sent = forward, 0
    for size in messages(work.gradients):
        sent += size
        done = max(done, forward + backward * sent / work.gradients) + all_reduce(size, workers, cluster)
    return done


def sharded_step(work: Work, workers: int, cluster: Cluster, shards: int) -> float:
    """Seconds of a step in `shards` shards: nothing is sent before the last of them is computed."""
    size = work.gradients + work.statistics
    summed = all_to_all(size * shards / workers, workers, cluster)
    return work.compute + summed + all_gather(size, workers, cluster)


def messages(size: int) -> list[int]:
    """Bytes of each of the messages in which DistributedDataParallel sends `size` bytes."""
    whole, rest = divmod(max(size - FIRST_MESSAGE, 0), MESSAGE)
    return [min(size, FIRST_MESSAGE), *[MESSAGE] * whole, *([rest] if rest else [])]
