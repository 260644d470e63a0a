"""A progress bar in the Prefect UI, moved by the lines in which a stage tells how far it is."""

from __future__ import annotations

from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

from resflow.training.lines import Told

__all__ = ["Progress"]


class Progress:
    """The progress of one stage, as an artifact named for it; made when it first tells of any."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: UUID | None = None

    def show(self, told: Told) -> None:
        """Move the bar to where the stage is."""
        percent = 100 * told.share
        try:
            if self._artifact:
                update_progress_artifact(self._artifact, percent, told.description)
            else:
                made = create_progress_artifact(percent, f"{self._stage}-progress", told.description)
                self._artifact = cast(UUID, made)  # a coroutine only where called from one
        except (httpx.HTTPError, PrefectException):
            return  # a server that does not answer for a moment is no reason to end training
