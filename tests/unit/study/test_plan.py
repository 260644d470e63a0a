"""Which trainings a search finds, which it still has to do, and which are on its front."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from resflow.data import arrays
from resflow.files import write_together
from resflow.stages import runs
from resflow.stages.train import job_of
from resflow.study import plan as plans
from resflow.training.checkpoint import LocalFolder
from resflow.training.remote import Bucket
from tests.unit.study.searched import POINT, SPACE, plan, record
from tests.unit.training.small import CARD


def test_trials_are_found_again_and_only_the_rest_is_left(tmp_path: Path) -> None:
    of = plan(tmp_path)
    assert plans.remaining(of) == 3
    done, begun = record(of, 1), record(of, 2, status="running", accuracies=())
    assert plans.known(of) == [done, begun]
    assert plans.remaining(of) == 2


def test_more_trials_a_wider_space_and_other_seeds_begin_with_what_is_there(tmp_path: Path) -> None:
    done = record(plan(tmp_path), 1)
    wider = {**SPACE, "net.blocks": [[1, 1], [1, 1, 1], [2, 2]]}
    assert plans.known(plan(tmp_path, trials=9, final_seeds=5, space=wider)) == [done]


def test_another_space_longer_trials_or_other_data_begin_anew(tmp_path: Path) -> None:
    of = plan(tmp_path)
    record(of, 1)
    assert plans.known(plan(tmp_path, space={**SPACE, "net.widths": [[8, 8]]})) == []
    assert plans.known(plan(tmp_path, epochs=3)) == []
    other = replace(of.base, arrays=replace(of.base.arrays, digests={"train/images.npy": "0"}))
    assert plans.known(replace(of, base=other)) == []


def test_a_training_is_known_by_the_splits_that_it_reads(tmp_path: Path) -> None:
    """Which the stage `train` tells, whose job is the base of a search."""
    of = plan(tmp_path / "data")  # its arrays lie where the stage looks for them
    sheet = {"image_shape": CARD.image_shape, "classes": CARD.classes, "mean": CARD.mean, "std": CARD.std}
    (tmp_path / "data/datasheet.json").write_text(json.dumps(sheet))

    def name_after(changed: str) -> str:
        path = arrays.labels_path(of.base.arrays.folder, changed)
        write_together({path: arrays.writer(1 - np.load(path) % 2)})
        return replace(of, base=job_of(tmp_path, of.params)).job(POINT).name

    first = name_after("train")
    assert name_after("test") == first
    assert name_after("validation") != first


def test_a_training_is_done_by_one_search_at_a_time_until_that_leaves_it_or_ends(tmp_path: Path) -> None:
    of = plan(tmp_path)
    with plans.Holds(of) as mine, plans.Holds(of) as others:
        assert [mine.takes("0" * 16), mine.takes("1" * 16)] == [True, True]
        assert [others.takes("0" * 16), others.takes("1" * 16)] == [False, False]
        plans.clear(of.base, "0" * 16)
        mine.leave("0" * 16)
        assert others.takes("0" * 16)
        mine.__exit__()
        assert others.takes("1" * 16)


def test_what_another_search_trains_is_waited_for_after_all_that_is_free(tmp_path: Path) -> None:
    of = plan(tmp_path)
    one, two, three = ("0" * 16, "1" * 16, "2" * 16)
    with plans.Holds(of) as others:
        assert others.takes(one)
        assert others.takes(three)

        def held(name: str, **how: float) -> AbstractContextManager[None]:
            if how["wait"]:  # they end meanwhile, long after
                assert how["wait"] == math.inf
                others.__exit__()
            return of.held(name, **how)

        with plans.Holds(replace(of, held=held)) as mine:
            given = []
            for names in mine.taken([one, two, three]):
                given.append(names)
                for name in names:
                    mine.leave(name)
        assert given == [[two], [one], [three]]


def test_only_finals_without_a_result_are_left(tmp_path: Path) -> None:
    of = plan(tmp_path)
    point = record(of, 1)
    first, second = plans.finals_of(of, point)
    assert plans.finals_left(of, [point]) == {first.name: (point, first), second.name: (point, second)}
    replace(point, name=first.name, seed=first.seed).keep(of.finals)
    replace(point, name=second.name, seed=second.seed, status="memory").keep(of.finals)  # it is tried again
    assert list(plans.finals_left(of, [point])) == [second.name]


def test_what_is_left_of_trainings_that_ended_is_swept_up(tmp_path: Path) -> None:
    of = plan(tmp_path)
    stopped, begun = record(of, 1, status="stopped"), record(of, 2, status="running", accuracies=())
    elsewhere, final = record(of, 3), "f" * 16
    replace(stopped, name=final, status="done").keep(of.finals)
    others = "e" * 16
    for name in (stopped.name, begun.name, elsewhere.name, final, others):
        LocalFolder(tmp_path / "runs" / name).write("000000004-00001.cpu.pt", b"state")
    with of.held(elsewhere.name):
        plans.sweep(of)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {begun.name, elsewhere.name, others}


def test_a_search_keeps_its_result_where_nothing_can_be_swept_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = plan(tmp_path)
    record(of, 1)
    nowhere = {"access_key": "a", "secret_key": "b", "session_token": None, "region": "us-east-1"}
    bucket = Bucket(url="s3://bucket/runs", endpoint="http://127.0.0.1:9", **nowhere)
    plans.sweep(replace(of, base=replace(of.base, runs=bucket), held=partial(runs.held, bucket)))
    assert "old checkpoints stay where they are: s3://bucket/runs: cannot be used" in capsys.readouterr().err


def test_a_stopped_trial_counts_as_long_as_the_rule_that_stopped_it(tmp_path: Path) -> None:
    record(plan(tmp_path), 1, status="stopped", accuracies=(0.4,))
    assert plans.remaining(plan(tmp_path)) == 2
    assert plans.remaining(plan(tmp_path, reduction=2)) == 3


def test_a_trial_above_a_budget_is_known_but_does_not_count(tmp_path: Path) -> None:
    record(plan(tmp_path), 1, macs=5000, seconds=10.0)
    for budget in ({"max_macs": 4999}, {"max_seconds": 9.0}, {"max_latency_ms": 0.5}, {"max_parameters": 999}):
        tight = plan(tmp_path, **budget)
        assert len(plans.known(tight)) == 1
        assert plans.remaining(tight) == 3
        assert plans.front(tight) == []


def test_a_trial_that_was_too_slow_is_tried_again_with_a_larger_budget_only(tmp_path: Path) -> None:
    record(plan(tmp_path), 1, status="slow", accuracies=(0.4,), seconds=20.0)
    assert len(plans.known(plan(tmp_path, max_seconds=10.0))) == 1
    assert plans.known(plan(tmp_path, max_seconds=30.0)) == plans.known(plan(tmp_path)) == []


def test_the_front_is_of_whole_trials_the_most_accurate_first(tmp_path: Path) -> None:
    of = plan(tmp_path)
    small = record(of, 1, accuracies=(0.5, 0.8), macs=1000)
    record(of, 2, accuracies=(0.5, 0.8), macs=1500)
    best = record(of, 3, accuracies=(0.95, 0.9), macs=2000)
    record(of, 4, status="stopped", accuracies=(0.99,), macs=10)
    assert plans.front(of) == [best, small]


def test_a_search_without_a_front_says_whether_others_train_it(tmp_path: Path) -> None:
    assert "search: no trial reached its end: all diverged, ran out of memory, or took" in str(plans.no_front(0))
    assert str(plans.no_front(2)).startswith("search: no trial reached its end here: other processes train 2 of its po")


def test_the_front_is_trained_again_with_seeds_of_its_own(tmp_path: Path) -> None:
    of = plan(tmp_path)
    point = record(of, 1)
    jobs = plans.finals_of(of, point)
    assert [(job.seed, job.train.epochs) for job in jobs] == [(1, 3), (2, 3)]
    assert len({point.name, *(job.name for job in jobs)}) == 3
