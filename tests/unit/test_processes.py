"""What one process does at a time: its lock, and the folder of that, which goes with what is finished."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
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


def test_a_lock_on_a_full_disk_is_held_all_the_same(tmp_path: Path) -> None:
    """Who holds it is written there for others to read, no more."""
    hold = """
import resource, sys
from pathlib import Path
from resflow.processes import alone
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # not a byte can be written
with alone(Path(sys.argv[1]), "trains here"):
    print("held")
"""
    done = subprocess.run([sys.executable, "-c", hold, str(tmp_path / "lock")], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("held\n", "")


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))  # as where one is mounted over a network

    monkeypatch.setattr(fcntl, "flock", flock)
    told = r"lock: cannot be written: No locks available\. Put that folder on a file system with locks"
    with pytest.raises(SetupError, match=told), alone(tmp_path / "lock", "trains here"):
        pass


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_lock_whose_folder_cannot_be_made_is_told(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "runs").write_text("")
    else:
        (tmp_path / "runs").symlink_to(tmp_path / "nowhere" / "else")
    with pytest.raises(SetupError, match="cannot be written"), alone(tmp_path / "runs" / "lock", "trains here"):
        pass
