"""One worker's training on a few small images: exact after any stop, what is validated and kept, divergence."""

from __future__ import annotations

import copy
import itertools
import math
import os
import platform
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resflow.data.arrays import Split
from resflow.errors import SetupError, TrainingError
from resflow.nets import Structure, altered
from resflow.training import loop
from resflow.training.loop import State
from tests.unit.training.small import (
    SETTINGS,
    STEPS,
    TRAINING,
    VALIDATION,
    Always,
    Every,
    accuracy,
    differences,
    run,
    settings,
)

AUGMENTED = {"shift": 1, "flip": True, "rotate": 10.0, "scale": 0.1, "erase": 0.5, "mixup": 0.2}
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "lr": 0.002, "schedule": "cosine"},
    "muon": {"optimizer": "muon", "lr": 0.02},
    "average": {"ema": 0.8, "schedule": "constant"},
    "augmented": AUGMENTED,
    "bfloat16": {"precision": "bfloat16", "schedule": "step"},
    "clipped": {"clip_norm": 0.5, "accumulate": 2},
    "adversarial": {"adversarial": {**SETTINGS["adversarial"], "epsilon": 0.1}, "epochs": 2, "ema": 0.8},
    "shards": {"shards": 4, "ema": 0.8, **AUGMENTED},
}

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch.compile needs a C++ compiler: no g++ here, nor CXX",
)


def weights(state: State) -> dict[str, Tensor]:
    assert state.net is not None
    return state.net


# --- exact ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_stopped_after_any_step_goes_on_to_the_same_bits_of_everything(recipe: str) -> None:
    keeper, train = Every(), settings(**RECIPES[recipe])
    whole = run(train, keeper=keeper)
    assert [state.step for state in keeper.states] == list(range(1, train.epochs * STEPS + 1))
    for number, stopped in enumerate(keeper.states):
        again = Every()
        assert differences(run(train, state=copy.deepcopy(stopped), keeper=again), whole) == []
        for one, other in zip(again.states, keeper.states[number + 1 :], strict=True):
            assert differences(one, other) == []


@pytest.mark.parametrize("recipe", ["average", "bfloat16", "adversarial", "shards"])
def test_a_run_stopped_within_a_validation_goes_on_to_the_same_bits_of_everything(
    monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setattr(loop, "VALIDATION_BATCH", 8)
    keeper, train = Always(), settings(**RECIPES[recipe])
    whole = run(train, keeper=keeper)
    within = [state for state in keeper.states if state.step == (len(state.history) + 1) * STEPS]
    assert len(within) == train.epochs * 3, "after the last step, and two of three batches of validation"
    for stopped in within:
        assert differences(run(train, state=stopped), whole) == []


@pytest.mark.parametrize("shards", [0, 2])
def test_dropout_draws_the_same_when_a_run_goes_on(shards: int) -> None:
    keeper, train = Every(), settings(optimizer="adamw", lr=0.002, epochs=2, shards=shards)
    whole = run(train, structure="article_cnn", keeper=keeper)
    for stopped in keeper.states[::3]:
        assert differences(run(train, structure="article_cnn", state=stopped), whole) == []


@pytest.mark.parametrize("shards", [0, 2])
def test_stochastic_depth_draws_the_same_when_a_run_goes_on(shards: int) -> None:
    keeper, train = Every(), settings(epochs=2, shards=shards)
    deep = altered("resnet8_avg", {"stochastic_depth": 0.5})
    whole = run(train, structure=deep, keeper=keeper)
    assert differences(whole, run(train)) != []
    for stopped in keeper.states[::3]:
        assert differences(run(train, structure=deep, state=stopped), whole) == []


def test_the_same_parameters_give_the_same_bits_and_another_seed_others() -> None:
    assert differences(run(settings()), run(settings())) == []
    assert differences(run(settings()), run(settings(), seed=1)) != []


def test_a_kept_state_is_not_changed_by_the_steps_after_it() -> None:
    class Copies(Every):
        def keep(self, state: State) -> None:
            super().keep(state)
            copies.append(copy.deepcopy(state))

    copies: list[State] = []
    keeper = Copies()
    run(settings(ema=0.5), keeper=keeper)
    for kept, copied in zip(keeper.states, copies, strict=True):
        assert differences(kept, copied) == []


def test_keeping_checkpoints_changes_no_bits() -> None:
    assert differences(run(settings(), keeper=Every()), run(settings())) == []


def test_a_finished_run_that_is_started_again_does_nothing_and_gives_its_state_back() -> None:
    whole = run(settings())
    seen: list[int] = []
    again = run(settings(), state=whole, on_step=lambda step, sums: seen.append(step))
    assert again is whole
    assert seen == []


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_state_is_kept_when_it_is_due_and_after_each_epoch() -> None:
    class Sometimes(Every):
        def due_by_steps(self, step: int) -> bool:
            return step % 3 == 0

        def due_by_time(self) -> bool:
            asked.append(True)
            return len(asked) in (4, 5)

    asked: list[bool] = []
    keeper = Sometimes()
    run(settings(), keeper=keeper)
    places = [(state.step, len(state.history)) for state in keeper.states]
    # asked after each step; the last one of an epoch is kept once, validated
    assert places == [(3, 0), (4, 1), (5, 1), (6, 1), (8, 2), (9, 2), (12, 3)]
    assert len(asked) == 3 * STEPS


def test_each_step_is_told_with_the_sums_since_the_epoch_began() -> None:
    seen: list[tuple[int, float]] = []
    run(settings(), on_step=lambda step, sums: seen.append((step, sums[2].item())))
    assert seen == [(step + 1, 16.0 * (step % STEPS + 1)) for step in range(3 * STEPS)]


# --- recipe -----------------------------------------------------------------------------------------------------------


def test_training_learns_and_keeps_the_earliest_epoch_that_validates_best() -> None:
    states: list[State] = []
    state = run(settings(epochs=8), on_epoch=states.append)
    accuracies = [epoch.validation_accuracy for epoch in state.history]
    best = accuracies.index(max(accuracies))
    assert max(accuracies) > 0.6
    assert state.best_epoch.epoch == best + 1
    assert differences(state.best, weights(states[best])) == []
    assert [epoch.epoch for epoch in state.history] == list(range(1, 9))


def test_an_epoch_that_validates_as_well_as_an_earlier_one_does_not_take_its_place() -> None:
    states: list[State] = []
    still = run(settings(lr=1e-12, weight_decay=0.0, schedule="constant"), on_epoch=states.append, validation=ONE)
    assert len({epoch.validation_accuracy for epoch in still.history}) == 1
    assert still.best_epoch.epoch == 1
    assert differences(still.best, weights(states[0])) == []


ONE = Split(VALIDATION.images[:1], VALIDATION.labels[:1])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_accuracy_kept_is_that_of_the_weights_kept(ema: float) -> None:
    state = run(settings(ema=ema))
    assert state.best_epoch.validation_accuracy == pytest.approx(accuracy(state.best))


def test_an_epoch_tells_the_mean_loss_and_accuracy_of_its_own_images() -> None:
    class Still(nn.Module):
        """Always answers the same, so that the figures can be counted."""

        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), 3)

    state = run(settings(epochs=1, lr=1e-12, label_smoothing=0.0, batch_size=70), net=Still())
    (epoch,) = state.history
    likely = math.log(2 + math.e)
    for labels, right, loss in (
        (TRAINING.labels, epoch.train_accuracy, epoch.train_loss),
        (VALIDATION.labels, epoch.validation_accuracy, epoch.validation_loss),
    ):
        share = float((labels == 1).mean())
        assert right == pytest.approx(share)
        assert loss == pytest.approx(likely - share, abs=1e-6)


def test_the_average_is_that_of_the_weights_after_each_step_and_is_what_is_kept() -> None:
    keeper = Every()
    state = run(settings(ema=0.7), keeper=keeper)
    wanted: dict[str, Tensor] = {}
    best: dict[int, dict[str, Tensor]] = {}
    for kept in keeper.states:
        floats = {name: value for name, value in weights(kept).items() if value.is_floating_point()}
        wanted = {name: 0.7 * wanted[name] + 0.3 * value if wanted else value for name, value in floats.items()}
        assert kept.average is not None
        for name, value in wanted.items():
            assert torch.allclose(kept.average[f"module.{name}"], value, atol=1e-5)
        best.setdefault(len(kept.history), dict(kept.average))
    averaged = best[state.best_epoch.epoch]
    assert differences(state.best, {name: averaged[f"module.{name}"] for name in state.best}) == []


def test_the_learning_rate_of_an_epoch_is_that_of_its_last_step() -> None:
    state = run(settings(lr=0.1))
    assert [epoch.learning_rate for epoch in state.history] == pytest.approx([0.1 * left / 10 for left in (9, 5, 1)])


def test_a_clipped_step_is_no_longer_than_the_rate_times_the_norm() -> None:
    keeper = Every()
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    plain = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "lr": 0.1}
    run(settings(clip_norm=0.01, **plain), net=net, keeper=keeper)
    for before, after in itertools.pairwise(keeper.states):
        moved = [weights(after)[name] - weights(before)[name] for name in weights(after)]
        assert torch.cat([one.flatten() for one in moved]).norm().item() == pytest.approx(0.001, rel=1e-3)


def test_a_norm_that_no_gradient_reaches_clips_nothing() -> None:
    large = run(settings(clip_norm=1e6))
    assert differences(large, run(settings())) == []


def test_accumulated_pieces_train_a_network_without_batch_norm_as_one_batch_does() -> None:
    whole = run(settings(), structure="article_cnn", net=plain())
    taken = run(settings(accumulate=4), structure="article_cnn", net=plain())
    for name, value in weights(whole).items():
        assert torch.allclose(weights(taken)[name], value, atol=1e-5)
    assert [epoch.train_loss for epoch in taken.history] == pytest.approx([one.train_loss for one in whole.history])


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 20), nn.ReLU(), nn.Linear(20, 3))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_one_shard_trains_as_the_whole_batch_does(optimizer: str) -> None:
    grouped = Structure(block="bottleneck", blocks=(1, 1), widths=(8, 16), groups=2)
    whole, shard = (run(settings(optimizer=optimizer, shards=n, epochs=1), structure=grouped) for n in (0, 1))
    for name, weight in weights(whole).items():
        assert torch.allclose(weights(shard)[name], weight, atol=1e-5), name


def test_bfloat16_learns_as_float32_does() -> None:
    rough, exact = run(settings(epochs=8, precision="bfloat16")), run(settings(epochs=8))
    assert rough.best_epoch.validation_accuracy > 0.6
    assert rough.history[-1].train_loss == pytest.approx(exact.history[-1].train_loss, rel=0.2)
    assert {value.dtype for value in rough.best.values() if value.is_floating_point()} == {torch.float32}


def test_batch_norm_counts_a_step_once() -> None:
    for train in (settings(), settings(shards=4)):
        counted = {value.item() for name, value in weights(run(train)).items() if "num_batches_tracked" in name}
        assert counted == {3 * STEPS}


# --- compiled ---------------------------------------------------------------------------------------------------------


def small_net() -> nn.Module:
    """Compiled in a quarter of the time that a named structure takes."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)]
    return nn.Sequential(*layers)


@needs_compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, of what its compiler imports
def test_a_compiled_run_stopped_goes_on_to_the_same_bits_and_learns_as_one_that_is_not_compiled() -> None:
    keeper, train = Every(), settings(compile=True, ema=0.8)
    whole = run(train, net=small_net(), keeper=keeper)
    stopped = next(state for state in keeper.states if state.step == STEPS + 2)
    assert differences(run(train, net=small_net(), state=stopped), whole) == []
    plain = run(settings(ema=0.8), net=small_net())
    for one, other in ((whole.net, plain.net), (whole.average, plain.average)):
        assert one is not None
        assert other is not None
        assert one.keys() == other.keys(), "compiling changed what is kept"
        assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_compiling_without_a_compiler_is_one_error_before_training() -> None:
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(SetupError) as caught:
        run(settings(compile=True), net=small_net())
    assert caught.value.where == "train.compile"
    assert "no working C++ compiler" in str(caught.value)
    assert "g++" in caught.value.mend


# --- fast ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told to keep memory")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    program = """
import resource, torch
from resflow.training import loop
loop.prepare_torch(0, 1)
def step():
    activations = [torch.ones(4 << 20, dtype=torch.uint8) for _ in range(8)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (20 * (32 << 20)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.1, "of what steps use, this share came anew from the system"


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:overflow")
def test_divergence_is_an_error_that_names_step_learning_rate_and_the_last_good_checkpoint() -> None:
    good = run(settings(epochs=1, lr=0.001, schedule="constant"))
    said = r"is (nan|inf) after step \d+ at lr 1e\+30; the last good checkpoint is that of step 4. Lower train\.lr"
    with pytest.raises(TrainingError, match=f"train: the .* {said}") as raised:
        run(settings(lr=1e30, schedule="constant"), state=good)
    assert not raised.value.retryable


def test_divergence_is_seen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MEETING_SECONDS", 0.0)
    with pytest.raises(TrainingError, match=r"after step [23] at lr 1e\+30"):
        run(settings(lr=1e30, schedule="constant"))


def test_divergence_before_any_checkpoint_says_that_there_is_none() -> None:
    with pytest.raises(TrainingError, match=r"at lr 1e\+30; no checkpoint was kept before"):
        run(settings(lr=1e30, schedule="constant"))


@pytest.mark.parametrize("lr", [1e10, 1e30, 3e38])
@pytest.mark.parametrize("changes", [{}, {"shards": 2}, {"ema": 0.9}, {"precision": "bfloat16"}], ids=str)
def test_a_state_with_numbers_that_are_not_finite_is_never_kept(lr: float, changes: dict[str, Any]) -> None:
    """The loss of a step is measured before the step that spoils the weights."""
    keeper = Every()
    with pytest.raises(TrainingError, match=r"Lower train\.lr"):
        run(settings(lr=lr, schedule="constant", epochs=20, **changes), keeper=keeper)
    for state in keeper.states:
        for tree in (state.net, state.average or {}, state.best):
            assert all(value.isfinite().all() for value in tree.values()), f"kept after step {state.step}"
        assert all(math.isfinite(value) for epoch in state.history for value in vars(epoch).values())


def test_a_batch_larger_than_the_split_is_one_error() -> None:
    with pytest.raises(TrainingError, match=r"train.batch_size: is 80, but the training split has 70 images. Lower it"):
        run(settings(batch_size=80))
