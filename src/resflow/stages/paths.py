"""Where the stages of dvc.yaml read and write, relative to the root of the project."""

from __future__ import annotations

from pathlib import Path

__all__ = ["METRICS", "MODEL", "PLOTS", "PREPARED", "RAW", "SHEET", "STATE", "TIMINGS"]

RAW = Path("data/raw")
PREPARED = Path("data/prepared")
SHEET = Path("data/datasheet.json")
MODEL = Path("models/model.safetensors")
METRICS = Path("metrics")
PLOTS = Path("plots")
TIMINGS = Path("timings")
"""Whatever depends on time; git-ignored and in no hashed output."""
STATE = Path(".resflow")
"""What belongs to this machine: the embedded store, its keys, half-finished downloads, checkpoints; git-ignored."""
