"""The article's network in its own framework, Keras: accuracy and seconds of its ten epochs.

    python -m benchmarks.keras_article              # about 3 minutes on two cores
    python -m benchmarks.keras_article --epochs 1   # a look at the speed
    python -m benchmarks.keras_article --backend torch

The network is that of `resflow.nets.article`, dropout before the last layer. Needs data/prepared and `make peers`.
"""

from __future__ import annotations

import argparse
import os
import time
from importlib import import_module
from pathlib import Path

import numpy as np

from benchmarks.report import record, table
from resflow.data import arrays

BACKENDS = ("tensorflow", "torch", "jax")
"""Keras's engines, the quickest on a CPU first (docs/log.md); JAX is not among the peers."""


def main() -> None:
    """Train, evaluate and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0])
    arguments = parser.parse_args()
    epochs, backend = arguments.epochs, arguments.backend
    os.environ["KERAS_BACKEND"] = backend
    import keras

    keras.utils.set_random_seed(0)
    splits = {name: arrays.load(Path("data/prepared"), name) for name in ("train", "test")}
    images = {name: np.asarray(split.images, np.float32) / 255 for name, split in splits.items()}
    layers: list[keras.Layer] = [keras.Input((28, 28, 1))]
    for width in (32, 64, 128):
        layers += [keras.layers.Conv2D(width, 3, padding="same", activation="relu"), keras.layers.MaxPooling2D(2)]
    layers += [keras.layers.Flatten(), keras.layers.Dense(256, activation="relu"), keras.layers.Dropout(0.5)]
    net = keras.Sequential([*layers, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(optimizer=keras.optimizers.Adam(0.001), loss=loss, metrics=["accuracy"])
    started = time.perf_counter()
    net.fit(images["train"], splits["train"].labels, batch_size=64, epochs=epochs, verbose=2)
    seconds = time.perf_counter() - started
    accuracy = net.evaluate(images["test"], splits["test"].labels, batch_size=1000, verbose=0)[1]
    rows = [[str(epochs), f"{accuracy:.2%}", f"{seconds:.1f}", f"{epochs * len(images['train']) / seconds:,.0f}"]]
    body = table(["epochs", "test accuracy (n = 1)", "training (s)", "images/s"], rows)
    versions = f"Keras {keras.__version__}, {backend} {import_module(backend).__version__}"
    load = f"{versions}; load of the machine at the end: {os.getloadavg()[0]:.1f}.\n"
    title, command = "Keras, the article's network", f"python -m benchmarks.keras_article --epochs {epochs}"
    if backend != BACKENDS[0]:
        title, command = f"{title}, on {backend}", f"{command} --backend {backend}"
    record(title, command, f"{body}\n{load}")


if __name__ == "__main__":
    main()
