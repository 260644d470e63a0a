"""Several workers, as real processes: with shards the bits of one, without them bits of their own."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch

from resflow.nets import altered
from tests.unit.training.small import SETTINGS, STEPS, accuracy, differences
from tests.unit.training.workers import VALIDATION, Play, Played, play

AUGMENTED = {"shift": 1, "flip": True, "rotate": 10.0, "erase": 0.5, "mixup": 0.2}
SHARDS: dict[str, Any] = {"epochs": 2, "shards": 4, "ema": 0.8, "clip_norm": 2.0, **AUGMENTED}
DROPOUT: dict[str, Any] = {"epochs": 1, "shards": 4, "optimizer": "adamw", "lr": 0.002}
DEPTH: dict[str, Any] = {"epochs": 1, "shards": 4, "optimizer": "muon"}
DEEP = altered("resnet8_avg", {"stochastic_depth": 0.5, "norm": "group"})
ATTACK: dict[str, Any] = {**SETTINGS["adversarial"], "epsilon": 0.1}
ATTACKED: dict[str, Any] = {"epochs": 1, "shards": 4, "adversarial": ATTACK}
SHARED: dict[str, Any] = {"epochs": 2, "ema": 0.8, "shift": 1}
APART_NET = altered("resnet8_avg", {"norm": "group"})
"""Images do not meet in it, so that it does not matter how a batch is divided."""
APART: dict[str, Any] = {"epochs": 2, "optimizer": "sgd", "lr": 0.05, "ema": 0.8, "clip_norm": 1.0, "shift": 1}
HALT = 6
"""A step within the second epoch."""
END: int | None = None
PLAYS = [
    *(Play(name=f"shards on {world}", changes=SHARDS, world=[(world, END)]) for world in (1, 2, 3, 4)),
    Play(name="growing and shrinking", changes=SHARDS, world=[(1, 2), (4, STEPS), (2, HALT), (3, END)]),
    *(Play(name=f"dropout on {n}", changes=DROPOUT, world=[(n, END)], structure="article_cnn") for n in (1, 3)),
    *(Play(name=f"depth on {n}", changes=DEPTH, world=[(n, END)], structure=DEEP) for n in (1, 3)),
    *(Play(name=f"attacked on {n}", changes=ATTACKED, world=[(n, END)]) for n in (1, 3)),
    Play(name="shared", changes=SHARED, world=[(2, END)]),
    Play(name="shared, gone on", changes=SHARED, world=[(2, END)], after=("shared", HALT)),
    Play(name="shared, stopped and gone on", changes=SHARED, world=[(2, 3), (2, END)]),
    *(
        Play(name=f"{name}, kept in validation", changes=changes, world=[(world, END)], always=True)
        for name, changes, world in (("shared", SHARED, 2), ("shards", SHARDS, 3))
    ),
    *(
        Play(
            name=f"{name}, gone on in validation",
            changes=changes,
            world=[(2, END)],
            after=(f"{name}, kept in validation", STEPS),
        )
        for name, changes in (("shared", SHARED), ("shards", SHARDS))
    ),
    Play(name="shared by three", changes=SHARED, world=[(3, END)]),
    Play(name="shared by three, stopped and gone on", changes=SHARED, world=[(3, 3), (3, END)]),
    *(
        Play(name=f"apart on {n}", changes={**APART, "accumulate": n}, world=[(n, END)], structure=APART_NET)
        for n in (1, 2)
    ),
    Play(name="attacked", changes={**SHARED, "adversarial": ATTACK}, world=[(2, END)]),
    Play(name="attacked, stopped and gone on", changes={**SHARED, "adversarial": ATTACK}, world=[(2, 3), (2, END)]),
]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Played]:
    return play(PLAYS, tmp_path_factory.mktemp("workers"))


# --- with shards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3, 4])
def test_any_number_of_workers_ends_in_the_bits_of_one(played: dict[str, Played], world: int) -> None:
    alone, together = played["shards on 1"], played[f"shards on {world}"]
    assert len(together.last) == world
    for state in together.last:
        assert differences(state, alone.last[0]) == []
    for state, wanted in zip(together.states, alone.states, strict=True):
        assert differences(state, wanted) == []


def test_a_number_of_workers_that_changes_in_the_middle_changes_no_bits(played: dict[str, Played]) -> None:
    alone, changing = played["shards on 1"], played["growing and shrinking"]
    assert differences(changing.last[0], alone.last[0]) == []
    assert [state.step for state in changing.states] == [state.step for state in alone.states]
    for state, wanted in zip(changing.states, alone.states, strict=True):
        assert differences(state, wanted) == []


def test_a_run_stopped_within_a_validation_goes_on_with_other_workers_to_the_same_bits(
    played: dict[str, Played],
) -> None:
    for name in ("shards, kept in validation", "shards, gone on in validation"):
        assert differences(played[name].last[0], played["shards on 1"].last[0]) == []


@pytest.mark.parametrize("name", ["shared, kept in validation", "shards, kept in validation"])
def test_workers_may_stop_between_the_batches_of_a_validation_also_where_some_have_none_left(
    played: dict[str, Played], name: str
) -> None:
    """Two have two batches each; of three, the first has one more than the others."""
    assert [len(state.history) for state in played[name].states if state.step == STEPS] == [0, 1]


def test_dropout_does_not_depend_on_who_computes_a_shard(played: dict[str, Played]) -> None:
    assert differences(played["dropout on 3"].last[0], played["dropout on 1"].last[0]) == []


def test_stochastic_depth_does_not_depend_on_who_computes_a_shard(played: dict[str, Played]) -> None:
    assert differences(played["depth on 3"].last[0], played["depth on 1"].last[0]) == []


def test_an_attack_does_not_depend_on_who_computes_a_shard_or_validates_a_batch(played: dict[str, Played]) -> None:
    alone, together = played["attacked on 1"].last[0], played["attacked on 3"].last[0]
    assert differences(together, alone) == []


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_batch_norm_counts_a_step_once_for_any_number_of_shards_a_worker(played: dict[str, Played], world: int) -> None:
    for state in played[f"shards on {world}"].states:
        assert state.net is not None
        counted = {value.item() for name, value in state.net.items() if "num_batches_tracked" in name}
        assert counted == {state.step}


# --- without ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "shared, gone on",
        "shared, stopped and gone on",
        "shared, kept in validation",
        "shared, gone on in validation",
    ],
)
def test_workers_without_shards_give_the_same_bits_also_when_they_were_stopped(
    played: dict[str, Played], name: str
) -> None:
    assert differences(played[name].last[0], played["shared"].last[0]) == []


def test_attacked_workers_without_shards_that_were_stopped_give_the_same_bits(played: dict[str, Played]) -> None:
    assert differences(played["attacked, stopped and gone on"].last[0], played["attacked"].last[0]) == []


def test_three_workers_without_shards_that_were_stopped_give_the_same_bits(played: dict[str, Played]) -> None:
    """Of two, sums are the same in any order."""
    assert differences(played["shared by three, stopped and gone on"].last[0], played["shared by three"].last[0]) == []


def test_workers_without_shards_learn_as_one_does_whatever_pieces_they_take(played: dict[str, Played]) -> None:
    """But for rounding: another order of the same sums."""
    (alone,), together = played["apart on 1"].last, played["apart on 2"].last
    assert differences(together[0].net, together[1].net) == []
    for wanted, found in ((alone.net, together[0].net), (alone.average, together[0].average)):
        assert wanted
        assert found
        for name, tensor in wanted.items():
            assert torch.allclose(found[name], tensor, rtol=1e-3, atol=1e-5), name
    for one, other in zip(alone.history, together[0].history, strict=True):
        assert (other.train_loss, other.validation_loss) == pytest.approx(
            (one.train_loss, one.validation_loss), rel=1e-4
        )


@pytest.mark.skipif(sys.platform != "linux", reason="threads have schedulers of their own on Linux alone")
@pytest.mark.parametrize("name", ["shared", "shards on 2"])
def test_the_thread_that_moves_messages_takes_no_core_from_those_that_compute(
    played: dict[str, Played], name: str
) -> None:
    assert played[name].schedulers["gloo_tcp_loop"] == os.SCHED_BATCH
    assert played[name].schedulers["pt_gloo_runloop"] == os.SCHED_OTHER


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shards on 1", "shards on 3", "shared", "apart on 1"])
def test_all_workers_end_with_the_same_network_and_figures(played: dict[str, Played], name: str) -> None:
    first, *others = played[name].last
    for other in others:
        for part in ("net", "average", "best", "optimizer", "history"):
            assert differences(getattr(other, part), getattr(first, part)) == [], part


@pytest.mark.parametrize("name", ["shards on 1", "shards on 4", "shared"])
def test_validation_counts_each_image_once_and_measures_the_weights_kept(played: dict[str, Played], name: str) -> None:
    state = played[name].last[0]
    assert state.best_epoch.validation_accuracy == pytest.approx(accuracy(state.best, VALIDATION), abs=1e-9)


@pytest.mark.parametrize("name", ["shards on 3", "shared"])
def test_an_epoch_counts_the_training_images_of_all_workers(played: dict[str, Played], name: str) -> None:
    for state in played[name].states:
        images = 16 * (state.step % STEPS)
        assert (0 if state.sums is None else state.sums[:, 2].sum().item()) == images
