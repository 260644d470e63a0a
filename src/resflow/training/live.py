"""Each epoch's figures through DVCLive while a run trains: `Live(folder).show(history)`.

`dvc plots` and the DVC extension of VS Code read them from there. They are no output of the stage: DVC hashes them
nowhere, dvc.yaml only plots them. What the stage hands on is plots/train/curves.csv.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from resflow.errors import SetupError
from resflow.files import explained
from resflow.training.loop import Epoch

__all__ = ["Live"]


class Live:
    """The figures of one run, from its first epoch on, whoever trained it; those of the run before make way."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._shown = folder, 0
        self._log: Any = None

    def show(self, history: Sequence[Epoch]) -> None:
        """Log the epochs that have not been. Raises `SetupError`."""
        with explained(self._folder):
            self._log = self._log or self._start()
            for epoch in history[self._shown :]:
                self._log.step = epoch.epoch
                for split in ("train", "validation"):
                    for figure in ("loss", "accuracy"):
                        self._log.log_metric(f"{split}/{figure}", getattr(epoch, f"{split}_{figure}"))
                self._log.log_metric("learning_rate", epoch.learning_rate)
                self._log.next_step()
            self._shown = len(history)

    def close(self) -> None:
        """Tell who watches that no more will come."""
        if self._log:
            with suppress(OSError):  # `show` has told of a disk that takes no more
                self._log.end()

    def _start(self) -> Any:
        from dvclive.live import Live as Log  # half a second, which a run that is done already need not wait
        from scmrepo.exceptions import SCMError  # comes with DVC

        # dvc.yaml is written by hand, experiments are made by `dvc exp run`. That it opens the repository, most of the
        # half second, serves DVC Studio alone, but without it paths there would be those of this machine
        try:
            return Log(str(self._folder), dvcyaml=False, save_dvc_exp=False)
        except SCMError as error:
            raise SetupError(str(self._folder), f"DVCLive cannot log there ({error})", "Make a first commit") from error
