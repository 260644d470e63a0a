"""What a structure costs on this machine, by its clock and its allocator: `measure(card, train, analyze)`.

Training is the pipeline's own step (`training.gradients`, `training.optimizer`) by one worker on a batch that is
already on the device and not augmented; inference is that of `evaluation.inference`, norms folded into convolutions.
Both compute on random images: only their shape matters. What follows from the shape alone is `size`.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from resflow import compute
from resflow.data.augment import Batch
from resflow.errors import SetupError
from resflow.nets.fusion import fused
from resflow.study import memory, peak
from resflow.study.kinds import kind
from resflow.study.size import size
from resflow.training import optimizer as optimizers
from resflow.training.gradients import gradients

if TYPE_CHECKING:
    from resflow.nets.file import ModelCard
    from resflow.params import Analyze, Train

__all__ = ["Part", "Speed", "inference_seconds", "machine_peak", "measure"]

LEAST, LEAST_LATENCY = 3, 20
"""Calls that are timed, also where they take longer than `analyze.seconds`; more for a percentile."""
WARM = 2
"""Calls before those that count: kernels are chosen and memory is taken in the first."""
PROFILED = 5
"""Steps of training that are taken apart."""
NEUTRAL = {"lr": 0.0, "shards": 0, "accumulate": 1, "compile": False}
"""Weights stay as they are, and one worker takes the batch whole."""


class Part(NamedTuple):
    """A part of a training step."""

    phase: str
    """`forward`, `backward` or `update`."""
    kind: str
    """Of `kinds`; the loss is among the rest."""
    milliseconds: float
    share: float
    """Of all parts together."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured of a structure."""

    latency_ms: float
    """Median of the time from one image to its logits."""
    latency_p99_ms: float
    """99th percentile."""
    latency_calls: int
    """That both are of."""
    images_per_second: dict[int, float]
    """In inference, by size of batch: from the median time of a batch."""
    training_images_per_second: float
    """From the median time of a step."""
    training_peak_bytes: int
    """The most that torch's allocator had given out at once in steps from the first on: weights, gradients, the
    optimiser's state, activations, and what kernels take through it."""
    training_flops: float
    """A second, as `peak` counts: 6 for each multiply-accumulate, 2 forward and 4 backward."""
    parts: tuple[Part, ...]
    """Where the time of a training step goes."""


def machine_peak(train: Train) -> float:
    """FLOP/s of products of matrices in the number format of training, on its device and threads."""
    with compute.deterministic(train.threads):
        return peak.matmul(getattr(torch, train.precision), torch.device(compute.device(train.device)))


def measure(card: ModelCard, train: Train, settings: Analyze, name: str) -> Speed:
    """Measure the network of `card`, which errors call `name`; takes `settings.seconds` for each figure.

    Raises `NetError` for a structure that is unknown or does not fit, `SetupError` where memory does not suffice.
    """
    device, macs = torch.device(compute.device(train.device)), size(card).macs
    with compute.deterministic(train.threads):
        latencies = inference_seconds(card, 1, settings.seconds, device, name)
        rates = {
            count: count / statistics.median(inference_seconds(card, count, settings.seconds, device, name))
            for count in settings.batch_sizes
        }
        with _enough_memory(card, train.batch_size, device, name, train):
            most = _training_peak(card, train, device)
            step = _Step(card, train, device)
            rate = train.batch_size / statistics.median(_seconds(step, settings.seconds, device))
            parts = _parts(step, device)
    return Speed(
        latency_ms=1000 * statistics.median(latencies),
        latency_p99_ms=1000 * float(np.percentile(latencies, 99)),
        latency_calls=len(latencies),
        images_per_second=rates,
        training_images_per_second=rate,
        training_peak_bytes=most,
        training_flops=6 * macs * rate,
        parts=parts,
    )


class _Step:
    """A training step, again and again on one batch."""

    def __init__(self, card: ModelCard, train: Train, device: torch.device) -> None:
        train = train.model_copy(update=NEUTRAL)
        net = card.network().to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        labels = torch.arange(train.batch_size, device=device) % len(card.classes)
        self._batch = Batch(_images(card, train.batch_size, device), labels)
        self._compute = gradients(net, train, seed=0, rank=0, world=1)
        self._optimizer = optimizers.make(net, train)

    def __call__(self) -> None:
        self._compute.run(lambda part, parts: self._batch, 0)
        self._optimizer.step()


def inference_seconds(
    card: ModelCard, count: int, seconds: float, device: torch.device, name: str
) -> list[float]:  # fmt: skip
    """Times of forward passes of so many images, norms folded into convolutions, until `seconds` have passed.

    Errors call the network `name`. Raises `NetError` for a structure that does not fit, `SetupError` where memory does
    not suffice.
    """
    with _enough_memory(card, count, device, name), torch.inference_mode():
        net = card.network().to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        net, images = fused(net), _images(card, count, device)
        return _seconds(lambda: net(images), seconds, device, LEAST_LATENCY if count == 1 else LEAST)


def _seconds(call: Callable[[], object], seconds: float, device: torch.device, least: int = LEAST) -> list[float]:
    """Times of calls, one after the other, until so many seconds have passed."""
    for _ in range(WARM):
        call()
    peak.wait(device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        peak.wait(device)
        times.append(time.perf_counter() - started)
    return times


def _images(card: ModelCard, count: int, device: torch.device) -> Tensor:
    height, width, channels = card.image_shape
    return torch.randn(count, channels, height, width, device=device).to(memory_format=torch.channels_last)


def _training_peak(card: ModelCard, train: Train, device: torch.device) -> int:
    """Bytes; the second step has all that the first leaves behind."""

    def two_steps() -> None:
        step = _Step(card, train, device)
        step()
        step()

    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        two_steps()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()  # else what was there before may be freed meanwhile, of which torch warns
    with _profiler(device, profile_memory=True) as profiler:
        two_steps()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in changes]).max(initial=0))


def _parts(step: Callable[[], None], device: torch.device) -> tuple[Part, ...]:
    """The parts of a training step that take any time, the longest first."""
    with _profiler(device) as profiler:
        for _ in range(PROFILED):
            step()
        peak.wait(device)
    spent: Counter[tuple[str, str]] = Counter()
    for event in profiler.events():
        if event.cpu_parent is None and event.name != "[memory]" and str(event.device_type) == "DeviceType.CPU":
            microseconds = event.device_time_total if device.type == "cuda" else event.cpu_time_total
            spent[_phase(event.name), kind(event.name)] += microseconds
    whole = sum(spent.values()) or 1
    return tuple(
        Part(*which, microseconds / PROFILED / 1000, microseconds / whole)
        for which, microseconds in spent.most_common()
        if microseconds
    )


def _phase(operation: str) -> str:
    if operation.startswith("Optimizer."):
        return "update"
    return "backward" if operation.startswith("autograd::") else "forward"


def _profiler(device: torch.device, *, profile_memory: bool = False) -> torch.profiler.profile:
    # else it tells on standard error that it starts and stops
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, profile_memory=profile_memory)


@contextmanager
def _enough_memory(
    card: ModelCard, count: int, device: torch.device, name: str, train: Train | None = None
) -> Iterator[None]:  # fmt: skip
    """Raise `SetupError` where a batch needs more memory than there is: before, since Linux would end the process.

    It is one of training with `train`, of inference without.
    """
    what = "training" if train else "inference"
    setting = "train.batch_size" if train else "analyze.batch_sizes (--batch-sizes)"
    exact = size(card)
    needed = count * exact.inference_bytes + 4 * exact.parameters
    if train:  # with gradients; what the optimiser and kernels take comes on top. bfloat16 keeps half as much at best
        kept = exact.kept_bytes // (2 if train.precision == "bfloat16" else 1)
        needed = count * kept + 2 * 4 * exact.parameters
    free = memory.free(device)
    if free is not None and needed > free:
        problem = f"{what} on batches of {count} takes more than {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} are free"
        raise SetupError(name, problem, f"Lower {setting}")
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not compute.is_out_of_memory(error):
            raise
        problem = f"{what} on batches of {count} does not fit in memory"
        raise SetupError(name, problem, f"Lower {setting}") from error
