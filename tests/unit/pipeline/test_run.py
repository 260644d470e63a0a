"""How a failed stage is told."""

from __future__ import annotations

import pytest

from resflow.errors import RETRYABLE, StageError
from resflow.pipeline import run


@pytest.mark.parametrize(
    ("lines", "said", "retryable"),
    [
        (
            ["fetch: all sources: refused. Try later", "ERROR: exited with 75"],
            "fetch: all sources: refused. Try later",
            True,
        ),
        (["train: train: lr is 9. Lower it", "ERROR: exited with 1"], "train: train: lr is 9. Lower it", False),
        (["ERROR: cannot stat model"], "train: cannot stat model. Its output is above", False),
        (["Traceback"], "train: exit code 1. Its output is above", False),
        (["ERROR: [Errno 28] No space left on device"], "Free disk space and run again", False),
        (["'./dvc.lock' validation failed.", "required key not provided"], "train: dvc.lock is damaged. Run", False),
        (["ERROR: 'a' is busy, it is being blocked by PID 7"], "another DVC command is running", False),
    ],
)
def test_a_failed_stage_is_told_in_its_own_words(lines: list[str], said: str, retryable: bool) -> None:
    assert RETRYABLE == 75
    error = run._failure(said.partition(":")[0] if ": " in said else "train", 1, lines)
    assert isinstance(error, StageError)
    assert said in str(error)
    assert error.retryable is retryable
