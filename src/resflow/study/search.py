"""The trainings of a search on Ray: Tune proposes points by Optuna, ASHA stops the worse early, many run at a time.

    with session.connected(plan.base, address):
        from resflow.study import search  # Ray reads some of its settings when it is imported

        search.run_trials(plan, print)
        search.run_finals(plan, front(plan), print)

What Tune keeps of itself is not used: a search goes on from the records of its trainings (`plan`). One training is
`trial.train`. No other module of the study imports Ray.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import ray
from ray import tune
from ray.exceptions import OutOfMemoryError, RayError
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from resflow import compute
from resflow.errors import NetError, ParamsError, ResflowError
from resflow.nets import file as model_file
from resflow.params import Range
from resflow.processes import WAIT_SECONDS
from resflow.study import budget, space, trial
from resflow.study.plan import Holds, Plan, allowed, clear, finals_left, known, remaining
from resflow.study.space import Point
from resflow.study.trial import Outcome, Status, Training
from resflow.training.cluster.reader import cause
from resflow.training.job import Job

__all__ = ["Keeper", "Proposals", "run_finals", "run_trials"]

METRICS, MODES = ["accuracy", "macs", "latency_ms"], ["max", "min", "min"]
QUIET = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the command's
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # which tells its settings even where it is to tell nothing
}
SLOW = 10
"""Trials in a row that would take longer than `search.max_seconds`, after which none is taken to be fast enough."""
KILLED = "running low on memory"
"""What Ray says of a worker that it has killed for the memory of its machine."""
TRIES, GUIDED = 200, 20
"""Proposals in a row that are nothing new, after which the space is taken to hold no more; and how many of them are by
what is known: Optuna may insist on what does not go together, such as two stages with three widths, since nothing tells
it why that is not trained. The others are drawn by chance."""


def run_trials(plan: Plan, say: Callable[[str], None]) -> int:
    """Train what `search.trials` still lacks, on the Ray that this process is connected to.

    Returns how many points were passed over, since other processes train them. Raises what a trial raised, or
    `TrainingError` where Ray gave up.
    """
    os.environ |= QUIET
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what it tells is raised, or misses what is not wanted
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shutil.rmtree(plan.folder / "tune", ignore_errors=True)
    past = known(plan)
    asha = ASHAScheduler(
        time_attr="epoch",
        metric="accuracy",
        mode="max",
        max_t=plan.params.search.epochs + 1,  # a trial ends by itself: at max_t it would count as stopped
        grace_period=plan.params.search.grace_epochs,
        reduction_factor=plan.params.search.reduction,
    )
    holds = Holds(plan)
    proposals = Proposals(plan, past, holds, say)
    keeper = Keeper(plan, proposals, holds, say)
    _replay(asha, past)
    # reuse_actors would save a process for each trial, but fails the next one where the thread of a stopped
    # one takes more than two seconds to end (Ray 2.60)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, plan=plan), _resources(plan)),
        tune_config=tune.TuneConfig(search_alg=proposals, scheduler=asha, num_samples=-1),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(plan.folder / "tune"),
            callbacks=[keeper],
            stop=_Stop(keeper),
            failure_config=tune.FailureConfig(max_failures=plan.params.train.max_failures),
            verbose=0,
        ),
    )
    try:
        with holds:
            results = tuner.fit()
    except RayError as error:
        raise cause("Ray Tune", error) from error
    finally:
        shutil.rmtree(plan.folder / "tune", ignore_errors=True)
    if keeper.failure:
        raise keeper.failure
    if keeper.lost:
        raise cause("Ray Tune", _first(results.errors))
    return len(proposals.elsewhere)


def _trial(config: dict[str, Any], plan: Plan) -> None:
    """What a worker runs. An error of the trial itself is reported, since Ray would try again what is raised."""
    job = plan.job(json.loads(config["point"]))

    def tell(figures: dict[str, Any]) -> None:
        tune.report({**figures, **config["price"], "status": "running"})

    try:
        outcome = trial.train(job, tell, plan.params.search.max_seconds)
    except ResflowError as error:
        tune.report({"failure": error, "status": "running", "accuracies": (), "accuracy": 0.0, **config["price"]})
        return
    tune.report(
        {
            "status": outcome.status,
            "accuracies": outcome.accuracies,
            "accuracy": max(outcome.accuracies, default=0.0) if outcome.status == "done" else 0.0,
            "seconds": outcome.seconds,
            **config["price"],
        }
    )


class Proposals(OptunaSearch):
    """Optuna's proposals but for those that are known, are no network, are above a budget, or are trained elsewhere."""

    def __init__(self, plan: Plan, past: list[Training], holds: Holds, say: Callable[[str], None]) -> None:
        spread = plan.params.search.space
        names: dict[str, Any] = {"storage": optuna.storages.InMemoryStorage(), "study_name": "resflow"}
        directions = ["maximize" if mode == "max" else "minimize" for mode in MODES]
        seed = plan.params.seed + len(past)
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            # together, since what makes a network of one parameter depends on others
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        self._chance = optuna.samplers.RandomSampler(seed)
        self._study = optuna.create_study(sampler=sampler, directions=directions, **names)
        self._distributions = {name: _distribution(values) for name, values in spread.items()}
        for record in past:
            encoded = _encoded(spread, record.point)
            if record.status in trial.OPEN:
                self._study.enqueue_trial(encoded)
            else:
                figures = [record.accuracy, record.macs, record.latency_ms]
                tried = optuna.trial.create_trial(params=encoded, distributions=self._distributions, values=figures)
                self._study.add_trial(tried)
        # not another one with each restart, since latencies are noisy
        if plan.first and not any(allowed(plan, record) for record in past):
            self._study.enqueue_trial(_encoded({name: spread[name] for name in plan.first}, plan.first))
        super().__init__(self._distributions, metric=METRICS, mode=MODES, sampler=sampler, **names)
        self._plan, self._holds, self._say, self.wanted = plan, holds, say, remaining(plan)
        self._names = {record.name for record in past if record.status not in trial.OPEN}
        self._open = {record.name for record in past} - self._names
        self._latencies = {plan.job(record.point).card.structure: record.latency_ms for record in past}
        self._numbers = {record.name: record.number for record in past}
        self._asked: dict[str, str] = {}
        self.begun: dict[str, Training] = {}
        self.elsewhere: dict[str, Point] = {}
        """What other processes train."""

    def suggest(self, trial_id: str) -> Any:
        """A new point as the configuration of a trial, None to wait for those that run, or `FINISHED`."""
        running = any(record.status == "running" for record in self.begun.values())
        if self.wanted <= 0:
            return None if running else Searcher.FINISHED
        given = self._new(trial_id, range(TRIES))
        if given is None and self.elsewhere:  # by now others may be done with these, or dead
            self._names -= self.elsewhere.keys()
            for point in self.elsewhere.values():
                self._study.enqueue_trial(_encoded(self._plan.params.search.space, point))
            given = self._new(trial_id, range(TRIES, TRIES + len(self.elsewhere)))
        if given:
            return given
        but = f", but for {len(self.elsewhere)} that other processes train" if self.elsewhere else ""
        self._say(f"of {TRIES} more points of the space none is new and within the budgets{but}: the search ends here")
        self.wanted = 0
        return None if running else Searcher.FINISHED

    def _new(self, trial_id: str, numbers: range) -> dict[str, Any] | None:
        """The first proposal that is to be trained, of as many as there are numbers."""
        for number in numbers:
            asked = f"{trial_id}.{number}"
            if GUIDED <= number < TRIES:
                self._study.enqueue_trial(self._drawn())
            point = _decoded(self._plan.params.search.space, super().suggest(asked) or {})
            record = self._begin(point)
            if record:
                self._asked[trial_id] = asked
                self.wanted -= 1
                price = {"parameters": record.parameters, "macs": record.macs, "latency_ms": record.latency_ms}
                return {"name": record.name, "point": json.dumps(point), "price": price}
            super().on_trial_complete(asked, error=True)
        return None

    def _drawn(self) -> dict[str, Any]:
        """A point by chance, as Optuna has it."""
        chance: Any = self._chance  # which asks no trial
        drawn = self._distributions.items()
        return {name: chance.sample_independent(self._study, None, name, values) for name, values in drawn}

    def _begin(self, point: Point) -> Training | None:
        plan = self._plan
        try:
            job = plan.job(point)
        except (ParamsError, NetError):
            return None
        paid = budget.price(job.card)
        if job.name in self._names or budget.excess(plan.params.search, paid):
            return None
        self._names.add(job.name)
        # once for a structure, else chance would put one beside itself on the front
        latency_ms = self._latencies.get(job.card.structure) or budget.latency_ms(job.card)
        self._latencies[job.card.structure] = latency_ms
        if budget.excess(plan.params.search, replace(paid, latency_ms=latency_ms)):
            return None
        # one that we began was held by a predecessor, whose lease takes a while to end if that was killed elsewhere
        if not self._holds.takes(job.name, wait=WAIT_SECONDS if job.name in self._open else 0):
            if job.name not in self.elsewhere:
                self._say(f"passed over for now, since another process trains it: {_words(point)}")
            self.elsewhere[job.name] = point
            return None
        self.elsewhere.pop(job.name, None)
        record = Training(
            name=job.name,
            number=self._numbers.setdefault(job.name, 1 + max(self._numbers.values(), default=0)),
            point=point,
            seed=job.seed,
            epochs=job.train.epochs,
            rule=plan.rule,
            status="running",
            accuracies=(),
            seconds=None,
            parameters=paid.parameters,
            macs=paid.macs,
            latency_ms=latency_ms,
        )
        record.keep(plan.trials)  # a search that is killed goes on with it
        self.begun[record.name] = record
        return record

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended."""
        super().on_trial_complete(self._asked[trial_id], result, error)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the records are what is kept."""


class Keeper(tune.Callback):
    """Writes the record of each trial that ends, and removes its checkpoints."""

    def __init__(self, plan: Plan, proposals: Proposals, holds: Holds, say: Callable[[str], None]) -> None:
        self._plan, self._proposals, self._holds, self._say = plan, proposals, holds, say
        self.failure: ResflowError | None = None
        self._too_slow: list[float] = []
        """Seconds that the last trials would take, since one was within the budget."""
        self.lost = False
        """Whether Ray has given a trial up, after as many failures as `train.max_failures` grants."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Look whether it failed."""
        self.failure = self.failure or result.get("failure")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look for trials that were given up: not all of Ray's ways to do that are told to anybody."""
        for given_up in (each for each in trials if each.status == "ERROR"):
            begun = self._proposals.begun[given_up.config["name"]]
            if begun.status == "running" and _was_killed(given_up):
                accuracies = (given_up.last_result or {}).get("accuracies", ())
                self._end(replace(begun, status="memory", accuracies=tuple(accuracies)))
            self.lost = self.lost or self._proposals.begun[begun.name].status == "running"

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep what became of it."""
        result = trial.last_result or {}
        if self.failure or "accuracies" not in result:
            return
        begun = self._proposals.begun[trial.config["name"]]
        status: Status = result["status"]
        if status == "running":  # ASHA has ended it, after its last epoch perhaps
            status = "stopped" if len(result["accuracies"]) < begun.epochs else "done"
        ended = replace(
            begun,
            status=status,
            accuracies=tuple(result["accuracies"]),
            seconds=result["seconds"],
        )
        self._end(ended)

    def _end(self, ended: Training) -> None:
        ended.keep(self._plan.trials)
        self._proposals.begun[ended.name] = ended
        self._proposals.wanted += ended.status == "slow"
        clear(self._plan.base, ended.name)
        self._holds.leave(ended.name)
        self._say(_line(ended))
        self._too_slow = [*self._too_slow, ended.seconds or 0.0] if ended.status == "slow" else []
        if len(self._too_slow) >= SLOW:
            most, least = self._plan.params.search.max_seconds, min(self._too_slow)
            problem = f"is {most:g}, and of the last {SLOW} trials the fastest would take {least:.3g} s"
            self.failure = ParamsError("params.yaml: search.max_seconds", problem, "Raise it, or lower search.epochs")


class _Stop(tune.Stopper):
    """Ends all trials when one failed in a way that concerns all."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether to stop this one: never by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether to stop all."""
        return self._keeper.lost or self._keeper.failure is not None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, for Tune's own file: locks and leases cannot be written there."""
        return {}


def _was_killed(trial_of: Any) -> bool:
    """Whether Ray killed the worker the last time for the memory of its machine, which it tells as text only."""
    told = Path(trial_of.error_file or os.devnull)
    return told.exists() and KILLED in told.read_text().rpartition("Failure # ")[2]


def _first(errors: list[Any]) -> BaseException:
    """Of what Ray says that went wrong; what it cannot pickle it has as text."""
    first = next(iter(errors), "a trial was given up")
    return first if isinstance(first, BaseException) else RuntimeError(first)


def _replay(asha: ASHAScheduler, past: list[Training]) -> None:
    """Tell ASHA what earlier trials reached, so that new ones are held against them too."""
    controller: Any = None  # which it does not ask
    for record in past:
        if record.status in trial.OPEN:
            continue
        trial_of: Any = SimpleNamespace(trial_id=record.name)
        asha.on_trial_add(controller, trial_of)
        for epoch in range(1, len(record.accuracies) + 1):
            figures = {"epoch": epoch, "accuracy": max(record.accuracies[:epoch])}
            asha.on_trial_result(controller, trial_of, figures)


def _resources(plan: Plan) -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    takes_gpu = compute.on_gpu(plan.params.train.device, resources.get("GPU", 0) > 0)
    if not plan.address and plan.params.search.cpus > resources.get("CPU", 0):
        problem = f"is {plan.params.search.cpus}, and this machine has {resources.get('CPU', 0):g} CPUs"
        raise ParamsError("search.cpus", problem, "Lower it, or name a cluster in RAY_ADDRESS")
    return {"cpu": plan.params.search.cpus, **({"gpu": 1} if takes_gpu else {})}


def run_finals(plan: Plan, chosen: list[Training], say: Callable[[str], None]) -> None:
    """Train the chosen points again, as many at a time as Ray has room for. Raises what a training raised."""
    wanted = finals_left(plan, chosen)
    with Holds(plan) as holds:
        for ours in holds.taken(wanted):
            left = finals_left(plan, chosen)  # less what others have trained meanwhile
            for name in set(ours) - left.keys():
                holds.leave(name)
            _train_finals(plan, {name: left[name] for name in ours if name in left}, holds, say)


def _train_finals(
    plan: Plan, wanted: Mapping[str, tuple[Training, Job]], holds: Holds, say: Callable[[str], None]
) -> None:
    needs = _resources(plan)
    train = ray.remote(_final).options(
        num_cpus=needs["cpu"], num_gpus=needs.get("gpu", 0), max_retries=plan.params.train.max_failures
    )
    running = {train.remote(job): job.name for _, job in wanted.values()}
    try:
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            record, job = wanted[running.pop(ready)]
            try:
                outcome = ray.get(ready)
            except OutOfMemoryError as error:
                outcome = Outcome(status="memory", accuracies=(), seconds=None, weights={}, reason=str(error))
            if isinstance(outcome, ResflowError):
                raise outcome
            say(_line(_keep_final(plan, record, job, outcome)))
            holds.leave(job.name)
    except RayError as error:
        raise cause("Ray", error) from error
    finally:
        for waiting in running:
            ray.cancel(waiting, force=True)


def _final(job: Job) -> Outcome | ResflowError:
    try:
        return trial.train(job, lambda figures: None)
    except ResflowError as error:
        return error


def _keep_final(plan: Plan, record: Training, job: Job, outcome: Outcome) -> Training:
    """The model first: the record says that it is there."""
    if outcome.status == "done":
        model_file.save(plan.finals / f"{job.name}.safetensors", outcome.weights, job.card)
    ended = replace(
        record,
        name=job.name,
        seed=job.seed,
        epochs=job.train.epochs,
        status=outcome.status,
        accuracies=outcome.accuracies,
        seconds=outcome.seconds,
    )
    ended.keep(plan.finals)
    clear(plan.base, job.name)
    return ended


def _line(record: Training) -> str:
    reached = f"validation accuracy {record.accuracy:.2%} after {len(record.accuracies)} of {record.epochs} epochs"
    end = "" if record.status == "done" else f", {trial.ENDS[record.status]}"
    return f"trial {record.number}, seed {record.seed}: {reached}{end}  ({_words(record.point)})"


def _words(point: Point) -> str:
    return "  ".join(f"{name.partition('.')[2]} {value}" for name, value in point.items())


def _distribution(values: tuple[Any, ...] | Range) -> optuna.distributions.BaseDistribution:
    if isinstance(values, tuple):
        return optuna.distributions.CategoricalDistribution([json.dumps(value) for value in values])
    if isinstance(values.low, int) and isinstance(values.high, int):
        return optuna.distributions.IntDistribution(values.low, values.high, log=values.log)
    return optuna.distributions.FloatDistribution(float(values.low), float(values.high), log=values.log)


def _encoded(spread: Mapping[str, Any], point: Point) -> dict[str, Any]:
    """A point as Optuna has it: choices as text, since it takes no lists, and as the space writes them."""
    choices = {name: json.loads(json.dumps(values)) for name, values in spread.items() if isinstance(values, tuple)}
    return {
        name: next(json.dumps(one) for one in choices[name] if space.same(one, point[name]))
        if name in choices
        else point[name]
        for name in spread
    }


def _decoded(spread: Mapping[str, Any], proposed: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: json.loads(proposed[name]) if isinstance(values, tuple) else space.rounded(values, proposed[name])
        for name, values in spread.items()
    }
