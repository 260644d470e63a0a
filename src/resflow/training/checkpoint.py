"""Save and restore the progress of one training run.

A checkpoint is one file that appears whole or not at all, and is read only if its own digest agrees. Bringing it to
other hosts is `training.cluster`; what belongs into it is `training.loop.Progress`.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from resflow.files import explained
from resflow.training.loop import Epoch, Progress

__all__ = ["load", "save"]

FILE = "progress.pt"
FORMAT = b"resflow-progress-1\n"  # raise when the layout changes; load() passes over others


def save(progress: Progress, folder: Path) -> None:
    """Write `progress` into `folder`, in the place of an older one. Raises `SetupError`."""
    state = {**vars(progress), "history": [asdict(epoch) for epoch in progress.history]}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    temporary = folder / (FILE + ".part")
    with explained(folder / FILE):
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(FORMAT + hashlib.sha256(content).digest() + content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / FILE)


def load(folder: Path) -> Progress | None:
    """The progress kept in `folder`; None where there is none, and, with a warning, where it is not whole."""
    try:
        raw = (folder / FILE).read_bytes()
    except OSError:
        return None
    head, digest, content = raw[: len(FORMAT)], raw[len(FORMAT) : len(FORMAT) + 32], raw[len(FORMAT) + 32 :]
    if head != FORMAT or hashlib.sha256(content).digest() != digest:
        print(f"{folder / FILE} is damaged or of another version: training starts afresh", file=sys.stderr)
        return None
    state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    return Progress(**{**state, "history": [Epoch(**epoch) for epoch in state["history"]]})
