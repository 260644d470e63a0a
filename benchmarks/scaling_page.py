"""docs/scaling.md: what `benchmarks.scaling` measured, what its model says of it, and what that means for 1 to 64 GPUs.

Holds the published figures that stand in for GPUs which have not been measured.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.gpu import LARGE, LARGE_CLASSES
from benchmarks.report import environment, table
from benchmarks.step_model import Cluster, Link, Work, ddp_step, messages, sharded_step
from resflow.files import write
from resflow.nets import create

__all__ = ["DGX", "LARGER", "NVLINK", "WORKERS", "Case", "Measured", "page"]

FIGURE = Path("docs/images/scaling.png")
WORKERS = (1, 2, 4, 8, 16, 32, 64)
LARGER = "resnet56"

PUBLISHED = {"images_per_second": 2470.0, "batch": 256, "eight": 16_621.0}
"""Training of ResNet-50 v1.5 at 224x224 in mixed precision on one and on eight A100 80GB of a DGX A100: NVIDIA,
DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5/README.md, container pytorch-21.03 (March 2021)."""
SOURCE = "NVIDIA, DeepLearningExamples, ResNet50 v1.5 for PyTorch, container pytorch-21.03, DGX A100 80GB"
NVLINK = Link(235e9, 3.4e-6)
HOP = 9.6e-6
"""Bandwidth of a ring of A100s in a node, latency of a hop there, and of one over the network: NCCL's own estimate,
src/graph/tuning.cc, commit 01afd20 (`busBw`, `hwLat`)."""
DGX = Cluster(name="DGX A100, 8 x 200 Gb/s", per_node=8, inside=NVLINK, between=Link(8 * 25e9, HOP))
"""Eight GPUs and eight InfiniBand HDR interfaces: NVIDIA, "Defining AI Innovation with NVIDIA DGX A100", 2020."""


class Case(NamedTuple):
    """What was measured of two workers: seconds of the slower one's step, medians."""

    structure: str
    batch: int
    """Images of each worker."""
    apart: float
    """Each trains for itself, at the same time: what they share is the machine, and nothing is sent."""
    ddp: float
    shards: float


class Measured(NamedTuple):
    """All that was measured here."""

    structure: str
    """That of params.yaml, and its batch size."""
    batch: int
    alone: dict[int, float]
    """Seconds of a step of one worker, by how many workers would share that batch."""
    rings: dict[int, float]
    """Seconds of an all-reduce between two processes, by its bytes."""
    cases: list[Case]
    steps: int
    """Of which a case is the median."""


TEXT = """# Scaling

What to expect from 1 to 64 GPUs, by a model of what workers send each other in a step. **No step of a GPU below was
measured by this project{but}**; what a CPU can show of the model was, and is held against it.

Written in one run of `{command}` on {environment}.
Options replace the links' rates, and `--gpu FILE` the published step times by those of
`python -m benchmarks.gpu --json FILE`.

## The model

`benchmarks/step_model.py`, tested on cases whose answer is known. N workers, each with its own images:

- **All-reduce** of B bytes in a ring: 2(N-1)/N x B / bandwidth + 2(N-1) x latency. Across nodes the slowest link sets
  the bandwidth, and 2(nodes-1) of the latencies are the network's.
- **Without `train.shards`** DistributedDataParallel sends gradients in messages (1 MiB, then 25 MiB each) while it goes
  backward. The backward pass is two thirds of a step, gradients become ready evenly over it, and sending costs
  computation nothing; a step ends when the last message is there. A network below 1 MiB of gradients is one message:
  nothing overlaps. With `train.compile` gradients may arrive all at once, which comes to the same.
- **With `train.shards: V`** an all-to-all of V/N x B bytes and an all-gather of B follow the last backward pass, batch
  norm's statistics included; nothing overlaps. Within a node V = N costs the bytes of a ring. Between nodes the
  all-to-all costs more: its parts all leave a node by the network, where a ring passes most of them on inside.
- **Left out**: reading data, waiting for the slowest of many workers, copies into messages and back, other traffic on
  the links, NCCL's trees (which shorten latency at many nodes), and validation and checkpoints.

## What was measured here

{steps}
Between two processes gloo's smallest all-reduce took {smallest:.0f} us, which makes a latency of {latency:.0f} us, and
its largest, {largest:.0f} MiB, {largest_ms:.1f} ms: {bandwidth:.2f} GB/s.

{sizes}
## Does it hold? Two workers of one thread

Predicted from the step of two processes that train apart, the bytes, and gloo's bandwidth and latency; the slower
worker's step, medians of {count} steps. On loopback the bytes are moved by the same cores that compute, so that overlap
is not free here, unlike on a GPU.

{held}
Measured steps differ from the predicted ones by {low:+.0%} to {high:+.0%}; load of the machine at the end {load:.1f}.

## ResNet-50, 224x224, {gpu_batch} images a GPU

A step of one GPU: {gpu_ms:.1f} ms ({gpu_source}).
Gradients of {gpu_bytes:.1f} MB, in float32. Efficiency is N GPUs' images per second by N times one GPU's; with shards,
`train.shards` is N. Links of the first cluster: within a node, and latencies, NCCL's own estimate (src/graph/tuning.cc,
commit 01afd20); between nodes, NVIDIA's description of the DGX A100 (2020). Those of the second are assumptions, for
options to replace.

{resnet}
![Efficiency by number of GPUs](images/scaling.png)

{check}
## The network of params.yaml

Its batch of {batch} images shared by N workers, each one core of a machine as this one, a host of its own, with
{hosts_gbit:g} Gb/s and {hosts_us:g} us between hosts. What batch/N images take is measured, the rest is the model's.

{small}
{small_gpu}
"""


def page(measured: Measured, clusters: list[Cluster], hosts: Link, gpu: Any) -> str:
    """The page; draws its figure. `clusters` are two, `gpu` is what `benchmarks.gpu` measured, or None.

    `hosts` is the link between hosts that train on one CPU core each.
    """
    loopback = _loopback(measured.rings)
    smallest, largest = min(measured.rings), max(measured.rings)
    work, batch, source = _resnet50(gpu)
    shown, off = _held(measured.cases, loopback)
    _draw(work, clusters)
    return TEXT.format(
        but=f" but those of {gpu['device']}" if gpu else "",
        command=" ".join(["python -m benchmarks.scaling", *sys.argv[1:]]),
        environment=environment(),
        steps=_steps(measured),
        smallest=1e6 * measured.rings[smallest],
        latency=1e6 * loopback.inside.latency,
        largest=largest / 2**20,
        largest_ms=1e3 * measured.rings[largest],
        bandwidth=loopback.inside.bandwidth / 1e9,
        sizes=_sizes(measured),
        count=measured.steps,
        held=shown,
        low=min(off),
        high=max(off),
        load=os.getloadavg()[0],
        gpu_batch=batch,
        gpu_ms=1e3 * work.compute,
        gpu_source=source,
        gpu_bytes=work.gradients / 1e6,
        resnet="\n".join(_scaled(work, batch, cluster) for cluster in clusters),
        check="" if gpu else _check(work, batch, clusters[0]),
        batch=measured.batch,
        hosts_gbit=8 * hosts.bandwidth / 1e9,
        hosts_us=1e6 * hosts.latency,
        small=_shared(measured, Cluster(name="hosts", per_node=1, inside=hosts, between=hosts)),
        small_gpu=_small_gpu(gpu, clusters[0]),
    )


def _loopback(rings: dict[int, float]) -> Cluster:
    """Two processes of this machine: the latency is that of the smallest message, the bandwidth that of the largest."""
    smallest, largest = min(rings), max(rings)
    link = Link(largest / (rings[largest] - rings[smallest]), rings[smallest] / 2)  # two rounds
    return Cluster(name="gloo on loopback", per_node=2, inside=link, between=link)


def _net(structure: str) -> nn.Module:
    channels, classes = (3, LARGE_CLASSES) if structure == LARGE else (1, 10)
    with torch.device("meta"):  # sizes without numbers
        return create(structure, in_channels=channels, num_classes=classes)


def _work_of(net: nn.Module, compute: float) -> Work:
    statistics = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    gradients, kept = (sum(4 * each.numel() for each in some) for some in (net.parameters(), statistics))
    return Work(compute=compute, gradients=gradients, statistics=kept)


def _resnet50(gpu: Any) -> tuple[Work, int, str]:
    """With its images a GPU, and whence its step time is."""
    net = _net(LARGE)
    if gpu:
        best = max(gpu["resnet50"], key=lambda row: float(row["images_per_second"]))
        how = f"{'compiled, ' if best['compiled'] else ''}images on the {'device' if best['resident'] else 'host'}"
        return _work_of(net, best["batch"] / best["images_per_second"]), best["batch"], f"{gpu['device']}, {how}"
    batch, rate = int(PUBLISHED["batch"]), PUBLISHED["images_per_second"]
    return _work_of(net, batch / rate), batch, f"not measured by us: {rate:,.0f} images/s, {SOURCE}"


def _steps(measured: Measured) -> str:
    rows = []
    for workers, seconds in measured.alone.items():
        batch = measured.batch // workers
        rows.append([measured.structure, str(batch), f"{1e3 * seconds:.2f}", f"{batch / seconds:,.0f}"])
    return table(["network", "images", "step of one worker of one thread (ms)", "images/s"], rows)


def _sizes(measured: Measured) -> str:
    rows = []
    for name in dict.fromkeys([measured.structure, LARGER, LARGE]):
        work = _work_of(_net(name), 0.0)
        shown = "ResNet-50" if name == LARGE else name
        rows.append([shown, f"{work.gradients:,}", f"{work.statistics:,}", str(len(messages(work.gradients)))])
    header = ["network", "bytes of gradients", "bytes of batch-norm statistics", "messages of DistributedDataParallel"]
    return table(header, rows)


def _held(cases: list[Case], loopback: Cluster) -> tuple[str, list[float]]:
    """The table, and by what share each measured step lies beside the predicted one."""
    rows, off = [], []
    for case in cases:
        work = _work_of(_net(case.structure), case.apart)
        predicted = ddp_step(work, 2, loopback), sharded_step(work, 2, loopback, 2)
        cells = []
        for seconds, foreseen in zip((case.ddp, case.shards), predicted, strict=True):
            off.append(seconds / foreseen - 1)
            cells += [f"{1e3 * seconds:.2f}", f"{1e3 * foreseen:.2f}"]
            cells += [f"{case.apart / seconds:.0%}", f"{case.apart / foreseen:.0%}"]
        rows.append([case.structure, str(case.batch), f"{1e3 * case.apart:.2f}", *cells])
    each = ["step (ms)", "predicted", "efficiency", "predicted"]
    kinds = [f"{kind}: {what}" for kind in ("without shards", "2 shards") for what in each]
    return table(["network", "images a worker", "apart (ms)", *kinds], rows), off


def _scaled(work: Work, batch: int, cluster: Cluster) -> str:
    rows = []
    for workers in WORKERS:
        row = [str(workers), str(cluster.nodes(workers))]
        for step in (ddp_step(work, workers, cluster), sharded_step(work, workers, cluster, workers)):
            rate, share = workers * batch / step, work.compute / step
            row += [f"{1e3 * step:.1f}", f"{rate:,.0f}", f"{share:.1%}"]
        rows.append(row)
    kinds = [f"{kind}{what}" for kind in ("", "shards: ") for what in ("step (ms)", "images/s", "efficiency")]
    links = (
        f"within a node {cluster.inside.bandwidth / 1e9:g} GB/s and {cluster.inside.latency * 1e6:g} us, "
        f"between nodes {cluster.between.bandwidth / 1e9:g} GB/s and {cluster.between.latency * 1e6:g} us"
    )
    return f"### {cluster.name}\n\n{links}.\n\n" + table(["GPUs", "nodes", *kinds], rows)


def _check(work: Work, batch: int, cluster: Cluster) -> str:
    """What the publisher of the step time measured on eight GPUs."""
    eight, one = PUBLISHED["eight"], PUBLISHED["images_per_second"]
    share = work.compute / ddp_step(work, 8, cluster)
    return (
        f"**What the model leaves out counts**: for eight of these GPUs the same source gives {eight:,.0f} images/s,\n"
        f"an efficiency of {eight / (8 * one):.1%}, where the model says {share:.1%}. That training also reads and\n"
        "decodes its images. Take the tables for what the links of a cluster allow, not for what a run will reach.\n"
    )


def _shared(measured: Measured, cluster: Cluster) -> str:
    rows, net = [], _net(measured.structure)
    first = measured.alone[1]
    for workers, seconds in measured.alone.items():
        work = _work_of(net, seconds)
        steps = ddp_step(work, workers, cluster), sharded_step(work, workers, cluster, workers)
        cells = [f"{1e3 * step:.2f}" for step in steps] + [f"{first / step:.1f}" for step in steps]
        rows.append([str(workers), str(measured.batch // workers), f"{1e3 * seconds:.2f}", *cells])
    header = ["workers", "images each", "computation (ms)", "step (ms)", "shards: step (ms)", "times as fast"]
    return table([*header, "shards: times as fast"], rows)


def _small_gpu(gpu: Any, cluster: Cluster) -> str:
    if not gpu:
        return "On GPUs its step is not known here: no published figure is of this network, and none was measured yet."
    best = max(gpu["mnist"], key=lambda row: float(row["images_per_second"]))
    work = _work_of(_net(best["structure"]), best["batch"] / best["images_per_second"])
    return f"On {gpu['device']}, {best['batch']} images each:\n\n" + _scaled(work, best["batch"], cluster)


def _draw(work: Work, clusters: list[Cluster]) -> None:
    """The efficiencies of ResNet-50 as a PNG whose bytes depend on nothing but them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for cluster, colour in zip(clusters, ("#202020", "#b02020"), strict=True):
        ddp = [work.compute / ddp_step(work, workers, cluster) for workers in WORKERS]
        shards = [work.compute / sharded_step(work, workers, cluster, workers) for workers in WORKERS]
        axes.plot(WORKERS, ddp, color=colour, marker="o", label=cluster.name)
        axes.plot(WORKERS, shards, color=colour, marker="s", linestyle="--", label=f"{cluster.name}, train.shards: N")
    axes.set_xscale("log", base=2)
    axes.set_xticks(WORKERS, [str(workers) for workers in WORKERS])
    axes.set(xlabel="GPUs", ylabel="efficiency, predicted", ylim=(0, 1.05))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    write(FIGURE, buffer.getvalue())
