"""A progress bar in the Prefect UI, moved by what a stage prints after each epoch."""

from __future__ import annotations

import re
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

__all__ = ["Progress"]

EPOCH = re.compile(r"epoch (\d+)/(\d+)  (.+)")
"""The line of `resflow.training.display`."""


class Progress:
    """The progress of one stage, as an artifact named for it; made when its first epoch is done."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: UUID | None = None

    def see(self, line: str) -> None:
        """Look at a line of the stage's output, and move the bar if it tells of an epoch."""
        found = EPOCH.fullmatch(line)
        if not found:
            return
        done, epochs, figures = int(found[1]), int(found[2]), found[3]
        share, told = 100 * done / epochs, f"epoch {done} of {epochs}: {figures}"
        try:
            if self._artifact:
                update_progress_artifact(self._artifact, share, told)
            else:
                made = create_progress_artifact(share, f"{self._stage}-progress", told)
                self._artifact = cast(UUID, made)  # a coroutine only where called from one
        except (httpx.HTTPError, PrefectException):
            return  # a server that does not answer for a moment is no reason to end training
