"""A work tree beside the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from resflow import params, pipeline
from tests.unit.pipeline.projects import command, declare


@pytest.mark.parametrize(("level", "below"), [("--local", ""), ("--global", "a folder/below")])
def test_a_work_tree_shares_the_cache_that_the_user_has_set_also_below_the_folder_of_its_repository(
    level: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    top, large = tmp_path / "project", tmp_path / "large"
    root = top / below
    root.mkdir(parents=True)
    declare(root, {"a": {"cmd": "echo made > out", "outs": ["out"]}})
    command(top, "git", "init", "-q")
    command(root, "dvc", "init", "-q", *(["--subdir"] if below else []))
    command(root, "dvc", "cache", "dir", level, "../large" if level == "--local" else str(large))
    pipeline.run_stage(root, "a", lambda line: None)
    command(top, "git", "add", "-A")
    command(top, "git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "commit", "-qm", "Start")

    with pipeline.worktree(root, "HEAD", "# mine") as folder:
        assert (folder / "out").read_text() == "made\n"
        assert (folder / "params.yaml").read_text() == "# mine"
        assert params.project_of(folder) == root
    assert list((root / params.RUN_TREES).iterdir()) == [root / params.RUN_TREES / "lock"]
    assert pipeline.in_git(root) == (top, Path(below))

    assert large.is_dir()
    assert not (root / ".dvc" / "cache").exists()
