"""What one process does at a time: its lock, and the folder of that, which goes with what is finished."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from resflow.errors import SetupError, TrainingError
from resflow.processes import alone


def test_a_lock_whose_folder_another_removes_at_that_moment_is_made_again(tmp_path: Path) -> None:
    lock = tmp_path / "runs" / "one" / "lock"

    def finish(_: int) -> None:
        for _ in range(500):
            with suppress(TrainingError), alone(lock, "trains here", wait=0):
                shutil.rmtree(lock.parents[1], ignore_errors=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(finish, range(8)))


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_lock_whose_folder_cannot_be_made_is_told(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "runs").write_text("")
    else:
        (tmp_path / "runs").symlink_to(tmp_path / "nowhere" / "else")
    with pytest.raises(SetupError, match="cannot be written"), alone(tmp_path / "runs" / "lock", "trains here"):
        pass
