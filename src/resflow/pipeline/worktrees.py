"""A second work tree, in which an experiment runs while the user's files stay as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from resflow.errors import StageError
from resflow.params import RUN_TREES
from resflow.pipeline.command import dvc, last_error

__all__ = ["in_git", "worktree"]


@contextmanager
def worktree(root: Path, commit: str, params_text: str) -> Iterator[Path]:
    """A second work tree of `commit` with its own params.yaml, sharing DVC's cache; removed at the end.

    Experiments run there, so that the user's files stay as they are. That of a killed process is removed by the next.
    Given is the project's folder in it, which may lie below that of the repository. Raises `StageError`.
    """
    cache = _cache(root)
    folder = root / RUN_TREES / f"{os.getpid()}-{time.time_ns()}"
    with _worktree_kept(root, folder):
        _git(root, "worktree", "add", "--quiet", "--detach", str(folder), commit)
        place = folder / in_git(root)[1]
        (place / "params.yaml").write_text(params_text)
        local = root / ".dvc" / "config.local"
        if local.is_file():
            shutil.copy(local, place / ".dvc" / "config.local")
        dvc(place, ["cache", "dir", "--local", cache], lambda line: None, None)
        # what the last run made, else every stage with an output that DVC does not cache would run again
        dvc(place, ["checkout", "--quiet", "--allow-missing"], lambda line: None, None)
        yield place


def in_git(root: Path) -> tuple[Path, Path]:
    """The folder of the git repository of a project, and where in it the project lies. Raises `StageError`."""
    top, prefix = _git(root, "rev-parse", "--show-toplevel", "--show-prefix").split("\n")[:2]
    return Path(top), Path(prefix)


def _cache(root: Path) -> str:
    """Where DVC keeps what stages made: .dvc/cache, or what any of the user's settings of DVC names instead."""
    code, lines = dvc(root, ["cache", "dir"], lambda line: None, None)
    folders = [line for line in lines if Path(line).is_absolute()]  # DVC may warn of something else around it
    if code or not folders:
        raise StageError("dvc cache dir", last_error(lines) or "it named no folder", "Mend that and run again")
    return folders[-1]


@contextmanager
def _worktree_kept(root: Path, folder: Path) -> Iterator[None]:
    """Hold a lock that says the work tree is in use, and remove it in the end. First remove those that nobody holds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    mine = FileLock(folder.with_suffix(".lock"))
    with FileLock(folder.parent / "lock"):
        for other in filter(Path.is_dir, folder.parent.iterdir()):
            with suppress(Timeout), FileLock(other.with_suffix(".lock"), timeout=0):
                _remove_worktree(root, other)
        mine.acquire()
    try:
        yield
    finally:
        _remove_worktree(root, folder)
        mine.release()


def _remove_worktree(root: Path, folder: Path) -> None:
    # twice: git holds one locked that was never finished; where git knows of none, the files go all the same
    subprocess.run(["git", "worktree", "remove", "--force", "--force", str(folder)], cwd=root, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise StageError(f"git {arguments[0]}", done.stderr.strip(), "Mend that and run again")
    return done.stdout
