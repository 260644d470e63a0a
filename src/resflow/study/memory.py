"""How much memory this process could still take: that of a GPU, or of the machine within the limits of containers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["free", "left_by_groups"]


def free(device: torch.device) -> int | None:
    """In bytes; None where nobody says."""
    if device.type == "cuda":
        kept_for_later = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept_for_later
    with suppress(OSError):  # else no Linux
        if available := 1024 * _number("MemAvailable:", Path("/proc/meminfo").read_text()):
            return min((available, *left_by_groups()))
    return None


def left_by_groups(
    own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:  # fmt: skip
    """What each control group above this process leaves it, of those with a limit (version 2).

    Linux drops cached files before it refuses memory, so they count as free.
    """
    with suppress(OSError):
        place = re.search("^0::/(.*)$", own.read_text(), re.MULTILINE)
        folder = groups / (place[1] if place else "")
        # a container sees its own group as the uppermost one, whatever its path is outside
        for group in {folder, *folder.parents, groups}:
            with suppress(OSError, ValueError):  # none with a limit: there is no such file, or it says "max"
                if group.is_relative_to(groups):
                    limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
                    statistics = (group / "memory.stat").read_text()
                    yield limit - used + _number("active_file", statistics) + _number("inactive_file", statistics)


def _number(name: str, text: str) -> int:
    """Of the line that begins with `name`; 0 where there is none."""
    found = re.search(rf"^{name}\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0
