"""Classify image files with a trained model: `predict([Path("seven.png")], Path("models/model.safetensors"))`.

How a file becomes the network's input is `pictures`; showing the answers is the command line's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resflow.evaluation import inference, metrics, pictures
from resflow.nets import file

__all__ = ["Prediction", "predict"]

BATCH = 256


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    path: Path
    label: str
    """Name of the likeliest class."""
    probability: float
    """Its probability, a fraction of 1."""
    top: tuple[tuple[str, float], ...]
    """The likeliest classes and their probabilities, the first first."""
    inverted: bool
    """The image was turned over first: dark on light, where the network has learnt light on dark, or the reverse."""
    centred: bool
    """The image had another size than the model's: it was cut to its ink, resized and centred first."""


def predict(paths: Sequence[Path], model: Path, top: int = 3) -> list[Prediction]:
    """Classify image files, in their order; `top` classes each, at most as many as there are.

    Raises `ImageError` for the first file that cannot be read as an image of the model's channels, `DataError` for a
    model that cannot be read.
    """
    if not paths:
        return []
    net, card = file.load(model)
    dark_ink = card.mean[0] > 0.5  # the ground takes most of an image
    read = [pictures.read(path, card.image_shape, dark_ink=dark_ink) for path in paths]
    logits = inference.logits(net, np.stack([picture.pixels for picture in read]), card, BATCH)
    answers = []
    for path, picture, row in zip(paths, read, metrics.softmax(logits), strict=True):
        order = np.argsort(-row, kind="stable")[: max(1, top)]
        best = tuple((card.classes[k], float(row[k])) for k in order)
        answers.append(Prediction(path, *best[0], top=best, inverted=picture.inverted, centred=picture.centred))
    return answers
