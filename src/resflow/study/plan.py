"""A search without an engine: what is varied, which trainings are known, and which are on the front.

    plan = Plan(params=params, base=job, folder=root / ".resflow/study", address=None)
    if remaining(plan):
        ...                     # `search.run_trials`
    chosen = front(plan)

Trainings are found again by the hash of what they depend on, so that a search that was killed goes on, and one with a
wider space, other budgets or more trials begins with what is there.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from resflow.errors import NetError, ParamsError, SetupError, StoreError, TrainingError
from resflow.params import Params
from resflow.study import budget, space, trial
from resflow.study.budget import Price
from resflow.study.front import first_front
from resflow.study.space import Point
from resflow.study.trial import Training
from resflow.training.job import Job
from resflow.training.remote import LOCK, Bucket, BucketFolder

__all__ = [
    "Holds",
    "Plan",
    "allowed",
    "clear",
    "finals_left",
    "finals_of",
    "front",
    "known",
    "no_front",
    "objectives",
    "remaining",
    "sweep",
]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search: what it varies, and where it keeps what it has found."""

    params: Params
    base: Job
    """The job of the stage `train`, whose network and parameters points replace."""
    folder: Path
    address: str | None
    """Of the Ray cluster, or None."""
    held: Callable[..., AbstractContextManager[None]]
    """`runs.held` of the folder or bucket of `base.runs`: given the name of a training, it keeps others from that."""
    first: Point | None = None
    """Values of `net` which meet the budgets, to begin with where no trial is known that does."""

    @property
    def trials(self) -> Path:
        """Records of the trials."""
        return self.folder / "trials"

    @property
    def finals(self) -> Path:
        """Records and models of the points that are trained again."""
        return self.folder / "finals"

    @property
    def rule(self) -> tuple[int, int]:
        """By which trials are stopped."""
        return self.params.search.grace_epochs, self.params.search.reduction

    def resolved(self, point: Point) -> Params:
        """All parameters of the trial at a point."""
        return space.resolved(self.params, point, seed=self.params.seed, epochs=self.params.search.epochs)

    def job(self, point: Point) -> Job:
        """The trial at a point. Raises `ParamsError` or `NetError` for what does not go together."""
        return trial.job_of(self.base, self.params, point, seed=self.params.seed, epochs=self.params.search.epochs)


def known(plan: Plan) -> list[Training]:
    """The trials at points of this space that were begun, by whatever search, with this code, data and parameters."""
    return [record for record in trial.read(plan.trials) if _is_ours(plan, record)]


def _is_ours(plan: Plan, record: Training) -> bool:
    if not space.contains(plan.params.search.space, record.point):
        return False
    try:
        name = plan.job(record.point).name
    except (ParamsError, NetError):
        return False
    if record.status == "stopped":  # others might let it go on
        return name == record.name and record.rule == plan.rule
    if record.status == "slow":
        return name == record.name and _is_slow(plan, record)
    return name == record.name


def _is_slow(plan: Plan, record: Training) -> bool:
    most = plan.params.search.max_seconds
    return most is not None and record.seconds is not None and record.seconds > most


def allowed(plan: Plan, record: Training) -> bool:
    """Whether a trial is within the budgets."""
    price = Price(parameters=record.parameters, macs=record.macs, latency_ms=record.latency_ms)
    return budget.excess(plan.params.search, price) is None and not _is_slow(plan, record)


def objectives(accuracy: float, macs: int, latency_ms: float) -> tuple[float, float, float]:
    """What a front is of, to be minimised. Latencies count to two digits: more of them are noise."""
    return -accuracy, macs, float(f"{latency_ms:.2g}")


def remaining(plan: Plan) -> int:
    """Trials that are still to be trained, or again where memory did not do."""
    done = sum(record.status not in trial.OPEN and allowed(plan, record) for record in known(plan))
    return max(0, plan.params.search.trials - done)


def front(plan: Plan) -> list[Training]:
    """The trials that no other beats in accuracy, MACs and latency together, the most accurate first.

    Those within the budgets count that nothing stopped.
    """
    whole = [record for record in known(plan) if record.status == "done" and allowed(plan, record)]
    chosen = first_front([objectives(record.accuracy, record.macs, record.latency_ms) for record in whole])
    return sorted((whole[at] for at in chosen), key=lambda record: (-record.accuracy, record.macs, record.number))


def no_front(elsewhere: int) -> TrainingError:
    """Why there is none, where other processes train so many points of the space."""
    if elsewhere:
        problem = f"no trial reached its end here: other processes train {elsewhere} of its points"
        return TrainingError("search", problem, "Wait for them to end, then run again")
    problem = "no trial reached its end: all diverged, ran out of memory, or took longer than search.max_seconds"
    return TrainingError("search", problem, "Lower the rates or sizes of the space, or raise search.max_seconds")


def finals_of(plan: Plan, record: Training) -> list[Job]:
    """The trainings of a point with seeds of their own, and for `train.epochs`: its first seed is why it was chosen."""
    first, epochs = plan.params.seed + 1, plan.params.train.epochs
    seeds = [seed % 2**32 for seed in range(first, first + plan.params.search.final_seeds)]
    return [trial.job_of(plan.base, plan.params, record.point, seed=seed, epochs=epochs) for seed in seeds]


def finals_left(plan: Plan, chosen: list[Training]) -> dict[str, tuple[Training, Job]]:
    """What is still to be trained of `finals_of` the chosen points, by name, each with its point."""
    there = {record.name for record in trial.read(plan.finals) if record.status not in trial.OPEN}
    pairs = ((record, job) for record in chosen for job in finals_of(plan, record))
    return {job.name: (record, job) for record, job in pairs if job.name not in there}


class Holds(AbstractContextManager["Holds"]):
    """The trainings that this process does, from which it keeps others, of other projects too, until it leaves them."""

    def __init__(self, plan: Plan) -> None:
        self._held, self._stacks = plan.held, dict[str, ExitStack]()

    def take(self, name: str, **how: float) -> None:
        """Keep others from this one; `how` is for `Plan.held`. Raises `TrainingError` where another does it."""
        stack = ExitStack()
        stack.enter_context(self._held(name, **how))
        self._stacks[name] = stack

    def takes(self, name: str, wait: float = 0) -> bool:
        """Whether nobody else does this one, or not for so many more seconds; others are kept from it then."""
        try:
            self.take(name, wait=wait)
        except TrainingError:
            return False
        return True

    def taken(self, names: Iterable[str]) -> Iterator[list[str]]:
        """All of these, some at a time: first those that nobody else does, then what others leave, which is waited for.

        Those of one time are left before the next: two searches that hold what they wait for would wait for ever.
        """
        left = list(names)
        while left:
            free = [name for name in left if self.takes(name)]
            if not free:
                self.take(left[0], wait=math.inf)
                free = left[:1]
            left = [name for name in left if name not in free]
            yield free

    def leave(self, name: str) -> None:
        """Leave it to others."""
        self._stacks.pop(name).close()

    def __exit__(self, *error: object) -> None:
        while self._stacks:
            self.leave(next(iter(self._stacks)))


def clear(base: Job, name: str) -> None:
    """Remove the checkpoints of a training that has ended, which we hold."""
    folder = replace(base, name=name).folder()
    if isinstance(folder, BucketFolder):
        folder.remove(keep=LOCK)
    else:
        shutil.rmtree(str(folder), ignore_errors=True)


def sweep(plan: Plan) -> None:
    """Remove what is left of trainings that have their result: a worker that is stopped may still write a checkpoint.

    What another search trains stays.
    """
    ended = {one.name for one in (*trial.read(plan.trials), *trial.read(plan.finals))}
    ended -= {one.name for one in trial.read(plan.trials) if one.status == "running"}
    try:
        with Holds(plan) as holds:
            for name in sorted(ended & _left(plan.base.runs)):
                if holds.takes(name):
                    clear(plan.base, name)
                    holds.leave(name)
    except (SetupError, StoreError) as error:  # the result is there: that is worth a line, and no failure
        print(f"old checkpoints stay where they are: {error}", file=sys.stderr)


def _left(runs: Path | Bucket) -> set[str]:
    """The runs of which there is more than a lock: in a bucket, each is a request or more to take."""
    if not isinstance(runs, Bucket):
        return {path.name for path in runs.glob("*/")}
    return {run for run, _, file in (name.partition("/") for name in runs.folder("").names()) if file != LOCK}
