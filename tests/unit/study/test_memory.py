"""What memory is free, where a container or a batch job may take less than the machine has."""

from __future__ import annotations

from pathlib import Path

import torch

from resflow.study.memory import free, left_by_groups


def group(folder: Path, limit: str, used: int, cached: int) -> None:
    """A control group as version 2 shows it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile 9\ninactive_anon 7\ninactive_file {cached}\nactive_file 1\n")


def test_each_group_with_a_limit_counts_and_cached_files_are_free(tmp_path: Path) -> None:
    groups, own = tmp_path / "fs" / "cgroup", tmp_path / "own"
    own.write_text("0::/slurm/job\n")
    group(groups / "slurm" / "job", "max", 10, 0)
    group(groups / "slurm", "1000", 900, 49)
    group(groups / "other", "1", 1, 0)
    group(tmp_path, "1", 1, 0)  # outside
    assert list(left_by_groups(own, groups)) == [150]
    group(groups / "slurm" / "job", "500", 490, 0)
    assert sorted(left_by_groups(own, groups)) == [11, 150]


def test_a_container_finds_its_limit_where_it_sees_its_group(tmp_path: Path) -> None:
    own = tmp_path / "own"
    group(tmp_path / "cgroup", "2000", 500, 0)
    for path in ("/", "/../..", "/kubepods/a/b"):
        own.write_text(f"1:cpu:/x\n0::{path}\n")
        assert list(left_by_groups(own, tmp_path / "cgroup")) == [1501]


def test_a_machine_without_groups_has_what_it_says(tmp_path: Path) -> None:
    assert list(left_by_groups(tmp_path / "none", tmp_path)) == []
    assert (free(torch.device("cpu")) or 1) > 0
