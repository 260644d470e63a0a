"""What Optuna may propose: new points that are networks within the budgets, those first that a kill cut short."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

from ray.tune.search import Searcher

from resflow.study import budget, search, trial
from resflow.study import plan as plans
from resflow.study.plan import Plan
from tests.unit.study.searched import plan, record

FEW = {"net.blocks": [[1, 1], [1, 1, 1]], "net.widths": [[4, 8], [4, 8, 8]]}
"""Of whose four points two are networks."""


def proposals(of: Plan, said: list[str]) -> search.Proposals:
    return search.Proposals(of, plans.known(of), plans.Holds(of), said.append)


def test_only_points_that_are_networks_are_proposed_each_once_until_there_are_no_more(tmp_path: Path) -> None:
    said: list[str] = []
    asked = proposals(plan(tmp_path, space=FEW, trials=9), said)
    given = [asked.suggest(str(number)) for number in range(2)]
    assert {one["point"] for one in given} == {
        '{"net.blocks": [1, 1], "net.widths": [4, 8]}',
        '{"net.blocks": [1, 1, 1], "net.widths": [4, 8, 8]}',
    }
    assert asked.suggest("2") is None  # one that runs may prove too slow, and make room
    assert said == ["of 200 more points of the space none is new and within the budgets: the search ends here"]
    kept = trial.read(tmp_path / "study/trials")
    assert [(one.number, one.status) for one in kept] == [(1, "running"), (2, "running")]


MANY = {
    "net.blocks": [[1, 1], [1, 1, 1], [2, 2, 2]],
    "net.widths": [[4, 8], [8, 16], [2, 4, 8], [4, 8, 16]],
    "train.lr": {"low": 0.05, "high": 0.2, "log": True},
}
REACHED = [
    ([2, 2, 2], [2, 4, 8], 0.112, 950, 0.563),
    ([2, 2, 2], [4, 8, 16], 0.994, 3744, 0.833),
    ([2, 2, 2], [2, 4, 8], 0.989, 950, 0.560),
    ([1, 1, 1], [2, 4, 8], 0.972, 453, 0.327),
    ([1, 1, 1], [2, 4, 8], 0.978, 453, 0.361),
    ([2, 2, 2], [2, 4, 8], 0.974, 950, 0.506),
    ([1, 1, 1], [2, 4, 8], 0.975, 443, 0.307),
    ([1, 1, 1], [2, 4, 8], 0.968, 453, 0.286),
    ([2, 2, 2], [2, 4, 8], 0.991, 950, 0.496),
    ([1, 1], [8, 16], 0.995, 4760, 0.316),
    ([2, 2, 2], [4, 8, 16], 0.787, 3744, 0.864),
    ([1, 1, 1], [4, 8, 16], 0.991, 1753, 0.338),
]
"""Blocks, widths, accuracy, operations and milliseconds of a search whose every further proposal was no network."""


def test_points_that_are_networks_are_proposed_whatever_did_best_before(tmp_path: Path) -> None:
    of = plan(tmp_path, space=MANY, trials=40)
    for number, (blocks, widths, accuracy, macs, latency_ms) in enumerate(REACHED, 1):
        point = {"net.blocks": blocks, "net.widths": widths, "train.lr": round(0.08 + number / 1000, 3)}
        figures = {"accuracies": (accuracy,), "macs": macs, "latency_ms": latency_ms}
        record(of, number, point=point, name=of.job(point).name, **figures)
    asked = proposals(of, said := [])
    for turn in range(10):
        asked.suggest(str(turn))
    assert said == []
    assert len(asked.begun) == 10


def test_what_is_above_a_budget_is_not_proposed(tmp_path: Path) -> None:
    free = plan(tmp_path / "free", space=FEW)
    smallest = budget.price(free.job({"net.blocks": [1, 1], "net.widths": [4, 8]}).card).macs
    asked = proposals(plan(tmp_path, space=FEW, max_macs=smallest), [])
    assert asked.suggest("0")["price"]["macs"] == smallest
    assert asked.suggest("1") is None


def test_a_structure_that_meets_the_budgets_is_proposed_first(tmp_path: Path) -> None:
    light = {"net.blocks": [1, 1, 1], "net.widths": [4, 8, 8]}
    of = replace(plan(tmp_path), first=light)
    (given, other) = (json.loads(proposals(of, []).suggest(str(turn))["point"]) for turn in range(2))
    assert light.items() <= given.items()
    assert 0.05 <= given["train.lr"] <= 0.2
    assert other == given  # it was begun


def test_a_structure_is_tried_for_the_budgets_only_where_no_trial_meets_them(tmp_path: Path) -> None:
    many = {"net.blocks": [[1, 1]], "net.widths": [[4, width] for width in range(8, 40)]}
    known, light = ({"net.blocks": [1, 1], "net.widths": [4, width]} for width in (8, 39))
    of = replace(plan(tmp_path, space=many, max_latency_ms=1000.0), first=light)
    for latency_ms, is_light in ((1001.0, True), (999.0, False)):
        shutil.rmtree(of.folder, ignore_errors=True)
        record(of, 1, point=known, name=of.job(known).name, latency_ms=latency_ms)
        assert (json.loads(proposals(of, []).suggest("0")["point"]) == light) == is_light


def test_a_trial_that_a_kill_cut_short_comes_first_and_those_that_ended_never(tmp_path: Path) -> None:
    of = plan(tmp_path, trials=2)
    record(of, 1)
    begun = record(of, 2, status="running", accuracies=())
    asked = proposals(of, [])
    assert asked.suggest("0")["name"] == begun.name
    assert asked.suggest("1") is None
    assert trial.read(of.trials)[1].number == 2


def test_a_trial_that_memory_did_not_hold_is_tried_again_by_the_next_search_once(tmp_path: Path) -> None:
    of = plan(tmp_path, space=FEW, trials=3)
    small = {"net.blocks": [1, 1], "net.widths": [4, 8]}
    record(of, 1, point=small, name=of.job(small).name, status="memory", accuracies=())
    asked = proposals(of, [])
    given = asked.suggest("0")
    assert json.loads(given["point"]) == small
    asked.on_trial_complete("0", {"accuracy": 0.0, **given["price"]})
    assert json.loads(asked.suggest("1")["point"]) != small
    assert asked.suggest("2") is None
    assert [one.number for one in trial.read(of.trials)] == [1, 2]


def test_a_trial_is_known_however_the_space_writes_its_values(tmp_path: Path) -> None:
    before = plan(tmp_path, space={"train.lr": [1, 0.5]})
    done = record(before, 1, point={"train.lr": 1}, name=before.job({"train.lr": 1}).name)
    of = plan(tmp_path, space={"train.lr": [1.0, 0.5]}, trials=2)
    assert plans.known(of) == [done]
    asked = proposals(of, [])
    assert json.loads(asked.suggest("0")["point"]) == {"train.lr": 0.5}


def test_what_another_process_trains_is_passed_over(tmp_path: Path) -> None:
    of = plan(tmp_path, space=FEW)
    small, large = ({"net.blocks": blocks, "net.widths": widths} for blocks, widths in zip(*FEW.values(), strict=True))
    said: list[str] = []
    asked = proposals(of, said)
    with of.held(of.job(small).name):
        assert asked.suggest("0")["name"] == of.job(large).name
        assert asked.suggest("1") is None
    assert said == [
        "passed over for now, since another process trains it: blocks [1, 1]  widths [4, 8]",
        "of 200 more points of the space none is new and within the budgets, but for 1 that other processes train: the "
        "search ends here",
    ]
    assert [one.point for one in trial.read(of.trials)] == [large]
    other = replace(plan(tmp_path, space=FEW), folder=tmp_path / "another project")
    assert proposals(other, []).suggest("0")["name"] == of.job(small).name


def test_what_another_process_trained_is_asked_for_again_once_nothing_else_is_left(tmp_path: Path) -> None:
    small, large = ({"net.blocks": blocks, "net.widths": widths} for blocks, widths in zip(*FEW.values(), strict=True))
    of = replace(plan(tmp_path, space=FEW), first=small)
    said: list[str] = []
    asked = proposals(of, said)
    with of.held(of.job(small).name):
        assert asked.suggest("0")["name"] == of.job(large).name
    given = asked.suggest("1")
    assert given["name"] == of.job(small).name
    asked.on_trial_complete("1", {"accuracy": 0.5, **given["price"]})
    assert asked.suggest("2") is None
    assert said[1:] == ["of 200 more points of the space none is new and within the budgets: the search ends here"]


def test_a_search_waits_for_the_hold_that_its_killed_predecessor_has_left(tmp_path: Path) -> None:
    of = plan(tmp_path)
    begun = record(of, 1, status="running", accuracies=())
    with ExitStack() as predecessor:
        predecessor.enter_context(of.held(begun.name))

        def held(name: str, **how: float) -> AbstractContextManager[None]:
            if how["wait"]:  # a lease runs out meanwhile
                predecessor.close()
            return of.held(name, **how)

        assert proposals(replace(of, held=held), []).suggest("0")["name"] == begun.name


def test_a_search_whose_trials_are_all_there_is_finished(tmp_path: Path) -> None:
    of = plan(tmp_path, trials=1)
    record(of, 1)
    assert proposals(of, []).suggest("0") == Searcher.FINISHED
