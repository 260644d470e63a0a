"""Every error that resflow reports without a traceback.

    ResflowError            where, problem, mend
    ├── ParamsError         params.yaml or an override
    ├── DataError           a raw or prepared file
    │   └── SourceError     one or all of the sources of `fetch` (retryable)
    ├── NetError            a structure that is unknown or does not fit
    ├── TrainingError       training diverged, or its parameters do not go together
    │   └── ClusterError    Ray failed, or a node of its cluster (retryable)
    ├── ImageError          an image given to `predict`
    ├── StageError          a DVC stage or command that failed
    ├── GateError           a model that is not good enough to be released
    ├── RegistryError       git, GTO, versions
    ├── StoreError          the S3-compatible store
    │   └── StoreUnavailable  the store does not answer (retryable)
    └── SetupError          the machine: ports, disk, Prefect server, missing commands

All take the same three positional arguments, so all survive pickling on their way out of a Ray worker.
`cli.main` is the one place that turns them into a line and an exit code.
"""

from __future__ import annotations

__all__ = [
    "ClusterError",
    "DataError",
    "GateError",
    "ImageError",
    "NetError",
    "ParamsError",
    "RegistryError",
    "ResflowError",
    "SetupError",
    "SourceError",
    "StageError",
    "StoreError",
    "StoreUnavailable",
    "TrainingError",
]

RETRYABLE = 75
"""Exit code of a stage for which trying again may help: EX_TEMPFAIL of sysexits.h."""


class ResflowError(Exception):
    """A failure that the user can mend.

    `where` names the file, field, endpoint or command; `problem` says what was seen and what was expected; `mend` says
    what to do about it. `retryable` tells a task whether trying again can help.
    """

    retryable = False

    def __init__(self, where: str, problem: str, mend: str) -> None:
        super().__init__(where, problem, mend)
        self.where, self.problem, self.mend = where, problem, mend

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}. {self.mend}"


class ParamsError(ResflowError):
    """params.yaml, or an override of it, is not what resflow understands."""


class DataError(ResflowError):
    """A raw or prepared file is missing, damaged, or not what its name says."""


class SourceError(DataError):
    """A source of raw files failed, or all of them did."""

    retryable = True


class NetError(ResflowError):
    """A structure is unknown or does not fit the images."""


class TrainingError(ResflowError):
    """Training diverged, or cannot be done as the parameters have it: what all workers of a run meet alike."""


class ClusterError(TrainingError):
    """Ray failed, or a node of its cluster: the run goes on where it stopped."""

    retryable = True


class ImageError(ResflowError):
    """A file given to `predict` is no image."""


class StageError(ResflowError):
    """A DVC stage or command ended with an error."""


class GateError(ResflowError):
    """The model is not good enough to be released."""


class RegistryError(ResflowError):
    """Git or GTO refused, or a version does not exist."""


class StoreError(ResflowError):
    """The S3-compatible store refused: wrong keys, missing bucket, damaged object."""


class StoreUnavailable(StoreError):
    """The store does not answer."""

    retryable = True


class SetupError(ResflowError):
    """The machine lacks something: a port, disk space, a server, a command."""
