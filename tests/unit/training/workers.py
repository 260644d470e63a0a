"""Real processes that train together through gloo, for `test_workers`.

Starting a process costs a second, so that four of them play all that is asked of them, one after the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from resflow.nets import Structure
from resflow.training import loop
from resflow.training.loop import State
from tests.unit.training.small import Always, Every, run, settings, split

MOST = 4
VALIDATION_BATCH, VALIDATION = 300, split(1100, 1)
"""Four batches of validation, the last one smaller."""


@dataclass(frozen=True, kw_only=True)
class Play:
    """One training. Its first worker's kept states go to a file."""

    name: str
    changes: Mapping[str, Any]
    world: Sequence[tuple[int, int | None]]
    """How many workers train until which step; None is the end. The next go on from what the first worker kept."""
    structure: str | Structure = "resnet8_avg"
    after: tuple[str, int] | None = None
    """Go on from the state that another one kept after this step."""
    always: bool = False
    """Keep one whenever workers meet, and within validation."""


@dataclass(frozen=True)
class Played:
    """What became of it."""

    states: list[State]
    """All that were kept, of each step, maybe within validation, and after it."""
    last: list[State]
    """The last one of each worker."""
    schedulers: dict[str, int]
    """Of each thread of the first worker at the end, by its name; empty where the system has no /proc."""


class Stopped(Exception):
    """Told to stop here."""


def play(plays: Sequence[Play], folder: Path) -> dict[str, Played]:
    """Play all of them; the result of each by its name."""
    for number, one in enumerate(plays):
        (folder / str(number)).mkdir()
        torch.save([other.name for other in plays], folder / "names")
        assert one.after is None or one.after[0] in [other.name for other in plays[:number]]
    barrier = multiprocessing.get_context("spawn").Barrier(MOST)
    multiprocessing.spawn(_work, (list(plays), folder, barrier), nprocs=MOST)
    return {one.name: _read(folder / str(number)) for number, one in enumerate(plays)}


def _read(folder: Path) -> Played:
    last = [_load(path) for path in sorted(folder.glob("last-*"))]
    return Played(_load(folder / "kept"), last, _load(folder / "schedulers"))


def _load(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def _work(rank: int, plays: Sequence[Play], folder: Path, barrier: Any) -> None:
    loop.VALIDATION_BATCH = VALIDATION_BATCH
    places = {one.name: folder / str(number) for number, one in enumerate(plays)}
    for one in plays:
        place, state = places[one.name], None
        if one.after:
            name, step = one.after
            state = next(kept for kept in _load(places[name] / "kept") if kept.step == step)
        for number, (world, until) in enumerate(one.world):
            if rank < world:
                _train(rank, world, one, state, until, place, number)
            barrier.wait()
            if until is not None:
                state = _load(place / "kept")[-1]
    barrier.wait()


def _train(rank: int, world: int, one: Play, state: State | None, until: int | None, place: Path, number: int) -> None:
    def on_step(step: int, sums: Tensor) -> None:
        if until is not None and step > until:
            raise Stopped  # what was kept after `until` is all that is left

    keeper = Always() if one.always else Every()
    if number:
        keeper.states = _load(place / "kept")
    if world > 1:
        dist.init_process_group("gloo", f"file://{place}/meet-{number}", rank=rank, world_size=world)
    try:
        last = run(
            settings(**one.changes),
            structure=one.structure,
            state=state,
            keeper=keeper,
            validation=VALIDATION,
            rank=rank,
            world=world,
            on_step=on_step,
        )
        torch.save(last, place / f"last-{rank}")
    except Stopped:
        pass
    finally:
        schedulers = {
            (thread / "comm").read_text().strip(): os.sched_getscheduler(int(thread.name))
            for thread in Path("/proc/self/task").glob("*")
        }
        if world > 1:
            dist.destroy_process_group()
    if rank == 0:
        torch.save(keeper.states, place / "kept")
        torch.save(schedulers, place / "schedulers")
