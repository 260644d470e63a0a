"""What one GPU makes of resflow's loop; needs torch, NumPy and this repository, and nothing else installed.

    PYTHONPATH=src python -m benchmarks.gpu --json gpu.json    # MNIST from data/prepared, and ResNet-50
    PYTHONPATH=src python -m benchmarks.gpu --tiny             # a smoke check in seconds, anywhere; measures nothing
    python -m benchmarks.gpu --record FILE     # with resflow installed: what it printed, into docs/benchmarks.md

Two measurements. MNIST: the recipe of params.yaml over seeds, with its test accuracy and seconds. ResNet-50 at
224x224 in bfloat16: images per second and share of the device's peak, with and without `torch.compile`, from images
that live on the device and from images on the host. Prints Markdown, with the device it ran on, and writes the same as
JSON, from which `benchmarks.scaling` goes on. It has not been run on a GPU yet, only `--tiny` on a CPU. Batches,
gradients and optimiser are those that `resflow.training.loop` uses; the images of ResNet-50 are noise, since only speed
is asked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# cuBLAS reads it once, when it is first used; without it torch refuses deterministic products on a GPU
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import torch
from torch import nn

from benchmarks.steps import stepper
from resflow.data import arrays, batches
from resflow.data.arrays import Split
from resflow.files import json_bytes, write
from resflow.nets import create
from resflow.nets.cost import cost
from resflow.study.peak import SIDES, matmul, wait
from resflow.training import loop

__all__ = ["LARGE", "LARGE_CLASSES", "Sizes", "main", "recipe"]

PARAMS = Path("params.yaml")
TITLE = "# On a GPU"
STARTED = time.perf_counter()
CLASSES = 10
LARGE, LARGE_CLASSES = "resnet50", 1000
TARGET = 0.995
PUBLISHED = {"A100": 312e12, "H100 80GB HBM3": 989e12, "H200": 989e12, "B200": 2250e12}
"""FLOP/s in bfloat16, dense, by a part of the device's name; NVIDIA's data sheets of the SXM modules."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    seeds: Sequence[int] = range(5)
    epochs: int | None = None
    """Of MNIST; None for those of params.yaml."""
    threads: int | None = None
    """Of the host, likewise."""
    images: int = 4096
    """Of ResNet-50, in memory."""
    side: int = 224
    batch: int = 256
    warm: int = 15
    steps: int = 60
    product: int = SIDES["cuda"]
    """Side of the matrices whose product is taken as the measured peak."""


TINY = Sizes(seeds=(0,), epochs=1, threads=1, images=8, side=32, batch=2, warm=1, steps=1, product=128)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a smoke check; its figures mean nothing")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--record", type=Path, help="file with what it printed, to put into docs/benchmarks.md")
    parser.add_argument("--data", type=Path, default=Path("data/prepared"), help="prepared arrays of MNIST")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.record:
        _record(arguments.record)
        return
    device, sizes = torch.device(arguments.device), TINY if arguments.tiny else Sizes()
    if device.type == "cpu" and not arguments.tiny:
        raise SystemExit("There is no GPU here: give --tiny for a smoke check")
    title = "# Smoke check: no figure here means anything" if arguments.tiny else TITLE
    print(f"{title}\n\n{_environment(device)}\n")
    if sizes.threads:
        torch.set_num_threads(sizes.threads)
    given = {name: arrays.load(arguments.data, name) for name in arrays.SPLITS} if not arguments.tiny else _noise()
    compiled = (False,) if device.type == "cpu" else (False, True)
    mnist = [_mnist(given, device, sizes, compile) for compile in compiled]
    found = {"device": _name(device), "mnist": mnist, "resnet50": _resnet50(device, sizes, compiled)}
    if arguments.json:
        write(arguments.json, json_bytes(found))


def _record(path: Path) -> None:
    from benchmarks.report import put

    text = path.read_text()
    if not text.startswith(TITLE):
        raise SystemExit(f"{path} does not hold what this prints on a GPU, which begins with '{TITLE}'")
    put(re.sub(r"(?m)^(?=#)", "#", text))


def recipe(**changes: Any) -> Any:
    """The section `train` of params.yaml, read without the packages that resflow otherwise reads it with.

    That section is plain `key: value` lines and sections of such lines, of which this understands numbers, booleans,
    words, and nothing for null. Nothing is checked.
    """
    body = PARAMS.read_text().partition("\ntrain:\n")[2].partition("\n\n")[0]
    read = inner = SimpleNamespace()
    lines = body.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        key, _, text = line.strip().partition(":")
        place = inner if line.startswith("    ") else read
        if not text and place is read and after.startswith("    "):
            inner = SimpleNamespace()
            setattr(read, key, inner)
        else:
            setattr(place, key, _value(text.strip() or "null"))
    vars(read).update(changes)
    return read


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _structure() -> str:
    return PARAMS.read_text().partition("\nnet:\n  name: ")[2].partition("\n")[0]


def _mnist(given: dict[str, Split], device: torch.device, sizes: Sizes, compile: bool) -> dict[str, Any]:
    changes = {"epochs": sizes.epochs, "threads": sizes.threads}
    train = recipe(compile=compile, **{key: value for key, value in changes.items() if value})
    pixels = given["train"].images / np.float32(255)
    card: Any = SimpleNamespace(classes=range(CLASSES), mean=(float(pixels.mean()),), std=(float(pixels.std()),))
    rows, last = [], []
    for seed in sizes.seeds:
        loop.prepare_torch(seed, train.threads)
        net = create(_structure(), in_channels=1, num_classes=CLASSES)
        moments = [time.perf_counter()]

        def on_epoch(state: loop.State, moments: list[float] = moments) -> None:
            moments.append(time.perf_counter())  # the state was copied to the host: the device is done

        state = loop.train(
            net, given["train"], given["validation"], card, train, seed=seed, device=device, on_epoch=on_epoch
        )
        net.load_state_dict(state.best)
        rows.append((seed, _accuracy(net, given["test"], card, device), moments[-1] - moments[0]))
        last.append(len(given["train"].labels) // train.batch_size * train.batch_size / (moments[-1] - moments[-2]))
    since = f"; the process began {time.perf_counter() - STARTED:.1f} s before this line"
    mean = statistics.mean(accuracy for _, accuracy, _ in rows)
    reached = "reaches" if mean >= TARGET else "does not reach"
    print(f"## MNIST, {train.epochs} epochs{', compiled' if compile else ''}\n")
    print("| seed | test accuracy | seconds of training, compilation included |\n| --- | --- | --- |")
    print(*(f"| {seed} | {accuracy:.2%} | {seconds:.2f} |" for seed, accuracy, seconds in rows), sep="\n")
    median = statistics.median(seconds for _, _, seconds in rows)
    rate = statistics.median(last)
    print(f"\nMean {mean:.3%} (n = {len(rows)}), which {reached} {TARGET:.1%}; median {median:.2f} s{since}.")
    print(f"In the last epoch, its validation included, {rate:,.0f} images/s (median).\n")
    made = {"structure": _structure(), "batch": train.batch_size, "compiled": compile, "images_per_second": rate}
    return made | {"accuracies": [row[1] for row in rows], "seconds": [row[2] for row in rows]}


@torch.inference_mode()
def _accuracy(net: nn.Module, split: Split, card: Any, device: torch.device) -> float:
    net.eval()
    right = 0
    for start in range(0, len(split.labels), 1000):
        part = slice(start, start + 1000)
        answers = net(batches.to_input(split.images[part], card.mean, card.std, device)).argmax(1)
        right += int((answers.cpu().numpy() == split.labels[part]).sum())
    return right / len(split.labels)


def _resnet50(device: torch.device, sizes: Sizes, compiled: Sequence[bool]) -> list[dict[str, Any]]:
    # Only speed is asked for here
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    measured = matmul(torch.bfloat16, device, side=sizes.product, repeats=sizes.warm + sizes.steps)
    published = _published(device)
    macs = cost(LARGE, image_shape=(sizes.side, sizes.side, 3), num_classes=LARGE_CLASSES).macs
    flops = 3 * 2 * macs  # forward, and twice that backward; a multiplication and an addition each
    rows, found = [], list[dict[str, Any]]()
    for compile in compiled:
        for resident in (True, False):
            rate = _speed(device, sizes, compile=compile, resident=resident)
            shares = [f"{rate * flops / peak:.1%}" if peak else "unknown" for peak in (measured, published)]
            where = "device" if resident else "host"
            rows.append(["yes" if compile else "no", where, f"{rate:,.0f}", f"{rate * flops / 1e12:.1f}", *shares])
            how = {"compiled": compile, "resident": resident}
            found.append({**how, "batch": sizes.batch, "images_per_second": rate, "peak": measured})
    print(f"## ResNet-50, {sizes.side}x{sizes.side}, bfloat16, batches of {sizes.batch}\n")
    print("| compiled | images on the | images/s | TFLOP/s | of the measured peak | of the published peak |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(*("| " + " | ".join(row) + " |" for row in rows), sep="\n")
    known = f"{published / 1e12:.0f} TFLOP/s" if published else "unknown for this device"
    size = f"{sizes.product}x{sizes.product}"
    print(f"\nPeak in bfloat16: {measured / 1e12:.1f} TFLOP/s measured (a {size} product); published {known}.")
    print(f"A training step is counted as {flops / 1e9:.1f} GFLOP an image.")
    return found


def _speed(device: torch.device, sizes: Sizes, *, compile: bool, resident: bool) -> float:
    """Training images per second, the augmentation of whole batches included."""
    changes = {"batch_size": sizes.batch, "precision": "bfloat16", "compile": compile, "accumulate": 1, "shards": 0}
    # as published figures: by SGD, mirrored alone, whatever MNIST's recipe does
    changes |= {"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4}
    train = recipe(**changes, flip=True, shift=0, rotate=0.0, scale=0.0, erase=0.0, mixup=0.0)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (sizes.images, sizes.side, sizes.side, 3), dtype=np.uint8)
    labels = draw.integers(0, 256, sizes.images, dtype=np.uint8)
    share = batches.DEVICE_SHARE
    batches.DEVICE_SHARE = 0.9 if resident else 0.0  # above it, images stay on the host
    run = stepper(LARGE, train, Split(images, labels), device, classes=LARGE_CLASSES)
    batches.DEVICE_SHARE = share
    for step in range(sizes.warm + sizes.steps):
        if step == sizes.warm:
            wait(device)
            started = time.perf_counter()
        run(step)
    wait(device)
    seconds = time.perf_counter() - started
    torch._dynamo.reset()
    return sizes.steps * sizes.batch / seconds


def _published(device: torch.device) -> float | None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PUBLISHED.items() if part in name), None)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _environment(device: torch.device) -> str:
    return f"{_name(device)}; Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}"


def _noise() -> dict[str, Split]:
    """In the place of MNIST."""
    draw = np.random.default_rng(0)
    return {
        name: Split(draw.integers(0, 256, (count, 28, 28, 1), np.uint8), draw.integers(0, CLASSES, count, np.uint8))
        for name, count in (("train", 512), ("validation", 64), ("test", 64))
    }


if __name__ == "__main__":
    main()
