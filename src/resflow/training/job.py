"""A training as those who run it need to know it: what is trained, on what, and where its checkpoints lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from resflow.nets.file import ModelCard
from resflow.params import Checkpoint, Train
from resflow.training.checkpoint import Folder, LocalFolder
from resflow.training.remote import Arrays, Bucket

__all__ = ["Job"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to know; sent to it as it is."""

    train: Train
    checkpoint: Checkpoint
    seed: int
    card: ModelCard
    initial: Mapping[str, Tensor]
    """Weights that a new run starts from, by name; the others are drawn."""
    arrays: Arrays
    loader: Literal["memory", "stream"]
    shuffle_mib: int
    runs: Path | Bucket
    """Holds the checkpoints of unfinished runs, one folder a run."""
    name: str
    """The hash of all that the result depends on."""

    def folder(self) -> Folder:
        """Where this run's checkpoints lie."""
        return self.runs.folder(self.name) if isinstance(self.runs, Bucket) else LocalFolder(self.runs / self.name)
