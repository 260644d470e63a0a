"""Images per second that are streamed (`data.loader: stream`) against those that lie in memory.

    python -m benchmarks.stream              # five rounds, about 5 minutes
    python -m benchmarks.stream --rounds 1

Training: images of MNIST through Ray Train, one worker, taking turns, each in a process of its own. Feeding: batches of
larger images alone, without a network: what a faster device could be fed with. Needs data/prepared (`dvc repro
prepare`).
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import record, table
from benchmarks.training import _rounds, _shown, _some_images
from resflow import params
from resflow.data import arrays, shards
from resflow.data.arrays import Split
from resflow.data.batches import Feed, InMemory
from resflow.data.stream import Stream
from resflow.files import write_together
from resflow.training.cluster.reader import read_with_ray, store_bytes

TRAINED = {"in memory": ["ray"], "streamed": ["ray", "--loader", "stream"]}
COUNT, SHAPE, BATCH = 32_768, (64, 64, 3), 256
FILE_MIB, SHUFFLE_MIB = 8, 64
"""As in params.yaml."""


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    command = f"python -m benchmarks.stream --rounds {rounds}"
    with tempfile.TemporaryDirectory() as folder:
        place = _some_images(Path(folder))
        write_together(dict(shards.writers(place / "train", *arrays.load(place, "train"), file_mib=1)))  # ten files
        trained = _rounds(TRAINED, place, rounds, [])
    with tempfile.TemporaryDirectory() as folder:
        fed = _feed(Path(folder), rounds)
    load = f"Load of the machine at the end: {os.getloadavg()[0]:.1f}; n = {rounds} rounds.\n"
    told = f"Training, MNIST ({params.load(Path('params.yaml')).net.name}), median of the epochs after the first:\n\n"
    size = f"{COUNT:,} images of {'x'.join(map(str, SHAPE))}, {COUNT * np.prod(SHAPE) / (1 << 20):,.0f} MiB"
    files = f"in files of {FILE_MIB} MiB, shuffled by {SHUFFLE_MIB} MiB"
    alone = f"\nBatches of {BATCH} alone, without a network: {size}, {files}:\n\n"
    record("Streamed images", command, told + _shown(trained) + alone + fed + "\n" + load)


def _feed(folder: Path, rounds: int) -> str:
    import ray

    draw = np.random.default_rng(0)
    split = Split(draw.integers(0, 256, (COUNT, *SHAPE), np.uint8), draw.integers(0, 10, COUNT).astype(np.uint8))
    write_together(
        {
            arrays.images_path(folder, "train"): arrays.writer(split.images),
            arrays.labels_path(folder, "train"): arrays.writer(split.labels),
            **dict(shards.writers(folder / "train", *split, file_mib=FILE_MIB)),
        }
    )
    index = shards.load(folder / "train")
    ray.init(
        address="local",
        object_store_memory=store_bytes(index.file_bytes, 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    read = read_with_ray(folder / "train", index)
    mapped = arrays.load(folder, "train")
    memory = InMemory(mapped, batch_size=BATCH, seed=0, device=torch.device("cpu"))
    rates: dict[str, list[float]] = {"in memory": [], "streamed": []}
    given = {"batch_size": BATCH, "epochs": rounds + 1, "shuffle_mib": SHUFFLE_MIB, "seed": 0, "whole": 1}
    with closing(Stream(index, read, parts=[0], **given)) as stream:
        for epoch in range(rounds + 1):
            for name, feed in (("in memory", memory), ("streamed", stream)):
                rate = _rate(feed, epoch)
                print(f"round {epoch}, batches {name}: {rate:,.0f} images/s", file=sys.stderr, flush=True)
                if epoch:  # the first one starts Ray's processes
                    rates[name].append(rate)
    ray.shutdown()
    rows = []
    for name, found in rates.items():
        ratios = [rate / base for rate, base in zip(found, rates["in memory"], strict=True)]
        median, spread = statistics.median(found), f"{min(ratios):.2f} to {max(ratios):.2f}"
        mib = median * int(np.prod(SHAPE)) / (1 << 20)
        rows.append([name, f"{median:,.0f}", f"{mib:,.0f}", f"{statistics.median(ratios):.3f}", spread])
    return table(["", "images/s", "MiB/s", "of the first", "lowest to highest"], rows)


def _rate(feed: Feed, epoch: int) -> float:
    """Images per second over an epoch."""
    started, steps = time.perf_counter(), feed.count // BATCH
    for step in range(steps):
        feed.take(epoch, step, 0, 1)
    return steps * BATCH / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
