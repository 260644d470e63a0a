"""One worker's training on a few small images: schedule, optimiser, batches, resuming, validation, divergence."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from resflow.data.arrays import Split
from resflow.data.batches import Batches, to_input
from resflow.errors import TrainingError
from resflow.nets import create
from resflow.nets.file import ModelCard
from resflow.params import Train
from resflow.training import loop
from resflow.training.loop import Progress

CARD = ModelCard(structure="resnet8_avg", image_shape=(12, 12, 1), classes=("a", "b", "c"), mean=(0.3,), std=(0.3,))
SETTINGS = {
    "epochs": 3,
    "batch_size": 16,
    "optimizer": "sgd",
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "schedule": "triangular",
    "warmup_fraction": 0.25,
    "label_smoothing": 0.1,
    "shift": 1,
    "precision": "float32",
    "device": "cpu",
    "num_workers": 1,
    "threads": 1,
    "max_failures": 0,
}


def settings(**changes: Any) -> Train:
    return Train.model_validate({**SETTINGS, **changes})


def split(count: int, seed: int = 0) -> Split:
    """Images whose label is the third that is bright."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, count, dtype=np.uint8)
    images = draw.integers(0, 80, (count, 12, 12, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 150
    return Split(images, labels)


TRAINING, VALIDATION = split(70), split(23, 1)


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def train(train: Train, progress: Progress | None = None, structure: str = "resnet8_avg", **options: Any) -> Progress:
    loop.prepare_torch(0, train.threads)
    net = create(structure, in_channels=1, num_classes=3)
    place = {"seed": 0, "device": torch.device("cpu"), "progress": progress or Progress()}
    return loop.train(net, TRAINING, VALIDATION, CARD, train, **place, **options)


# --- schedule and optimiser -------------------------------------------------------------------------------------------


def test_a_triangular_schedule_rises_to_its_peak_and_falls_towards_zero() -> None:
    rates = [loop.learning_rate(settings(lr=0.4), step, 40) for step in range(40)]
    top = int(np.argmax(rates))
    assert top + 1 == 10  # a quarter of the steps
    assert rates[top] <= 0.4
    assert rates[top] == pytest.approx(0.4, rel=0.05)
    assert np.all(np.diff(rates[: top + 1]) > 0)
    assert np.all(np.diff(rates[top:]) < 0)
    assert np.ptp(np.diff(rates[:top])) < 1e-9
    assert np.ptp(np.diff(rates[top:])) < 1e-9
    assert 0 < rates[-1] < 0.02


@pytest.mark.parametrize("warmup", [0.0, 0.001, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
def test_no_rate_is_negative_or_beyond_the_peak(warmup: float, steps: int) -> None:
    rates = [loop.learning_rate(settings(lr=0.4, warmup_fraction=warmup), step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.4 + 1e-12 for rate in rates)


def test_a_constant_schedule_is_constant() -> None:
    assert {loop.learning_rate(settings(schedule="constant"), step, 9) for step in range(9)} == {0.05}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weight_decay_spares_norms_and_biases(optimizer: str) -> None:
    net = create("resnet8_avg", in_channels=1, num_classes=3)
    decayed, spared = loop.make_optimizer(net, settings(optimizer=optimizer)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert all("bn" not in names[id(p)] and not names[id(p)].endswith("bias") for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert {names[id(p)] for p in spared["params"]} >= {"bn1.weight", "bn1.bias", "fc.bias"}


# --- batches ----------------------------------------------------------------------------------------------------------


def batches(world: int = 1, rank: int = 0, shift: int = 1, count: int = 70) -> Batches:
    return Batches(*split(count), batch_size=16, shift=shift, seed=5, rank=rank, world=world)


@pytest.mark.parametrize("world", [2, 4])
def test_the_workers_slices_together_are_the_batch_of_one_worker(world: int) -> None:
    whole = list(batches().epoch(1))
    parts = [list(batches(world, rank).epoch(1)) for rank in range(world)]
    for step, (images, labels) in enumerate(whole):
        assert np.array_equal(np.concatenate([part[step][0] for part in parts]), images)
        assert np.array_equal(np.concatenate([part[step][1] for part in parts]), labels)


def test_an_epoch_shows_each_image_once_but_for_those_that_do_not_fill_a_batch() -> None:
    numbered = Split(np.arange(70, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 1), np.uint8), TRAINING[1])
    made = Batches(*numbered, batch_size=16, shift=0, seed=0)
    orders = [np.concatenate([images[:, 0, 0, 0] for images, _ in made.epoch(number)]) for number in (0, 1, 0)]
    assert all(len(order) == 64 == len(set(order)) for order in orders)
    assert made.steps == 4
    assert np.array_equal(orders[0], orders[2])
    assert not np.array_equal(orders[0], orders[1])


def test_each_image_is_shifted_by_itself_and_filled_with_zeros() -> None:
    shift, (images, labels) = 2, split(70)
    edge = ((shift, shift), (shift, shift), (0, 0))
    seen = set()
    for shifted, chosen in itertools.islice(batches(shift=shift).epoch(0), 2):
        for one, label in zip(shifted, chosen, strict=True):
            places = [
                (number, down, right)
                for number in np.flatnonzero(labels == label)
                for down in range(5)
                for right in range(5)
                if np.array_equal(np.pad(images[number], edge)[down : down + 12, right : right + 12], one)
            ]
            assert len(places) == 1
            seen.add(places[0][1:])
    assert len(seen) > 12  # of 25: 32 images draw theirs independently


def test_pixels_are_normalised_channel_by_channel_and_channels_last() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 2), dtype=np.uint8)
    mean, std = (0.2, 0.6), (0.1, 0.4)
    given = to_input(images, mean, std, torch.device("cpu"))
    wanted = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert np.allclose(given.numpy(), wanted, atol=1e-5)
    assert given.is_contiguous(memory_format=torch.channels_last)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("structure", "optimizer"), [("resnet8_avg", "sgd"), ("article_cnn", "adam")])
def test_a_run_stopped_after_any_epoch_goes_on_to_the_same_bits(structure: str, optimizer: str) -> None:
    recipe = settings(optimizer=optimizer, lr=0.002) if optimizer == "adam" else settings()
    kept: list[Progress] = []
    whole = train(recipe, structure=structure, on_epoch=lambda progress: kept.append(copy.deepcopy(progress)))
    for stopped in kept:
        resumed = train(recipe, stopped, structure=structure)
        assert resumed.history == whole.history
        assert all(torch.equal(resumed.best[name], weights) for name, weights in whole.best.items())
        assert all(torch.equal(resumed.net[name], weights) for name, weights in whole.net.items())  # type: ignore[index, union-attr]


def test_training_learns_and_keeps_the_earliest_epoch_that_validates_best() -> None:
    weights: list[dict[str, torch.Tensor]] = []
    progress = train(settings(epochs=8), on_epoch=lambda progress: weights.append(copy.deepcopy(progress.net or {})))
    accuracies = [epoch.validation_accuracy for epoch in progress.history]
    best = accuracies.index(max(accuracies))
    assert max(accuracies) > 0.6
    assert progress.best_epoch.epoch == best + 1
    assert all(torch.equal(progress.best[name], value) for name, value in weights[best].items())
    assert [epoch.epoch for epoch in progress.history] == list(range(1, 9))


def test_the_accuracy_kept_is_that_of_the_weights_kept() -> None:
    progress = train(settings())
    net = create("resnet8_avg", in_channels=1, num_classes=3)
    net.load_state_dict(progress.best)
    with torch.inference_mode():
        answers = net.eval()(to_input(VALIDATION.images, CARD.mean, CARD.std, torch.device("cpu"))).argmax(1).numpy()
    assert progress.best_epoch.validation_accuracy == pytest.approx((answers == VALIDATION.labels).mean())


@pytest.mark.parametrize("world", [2, 3, 5])
def test_validation_counts_each_image_once_for_any_number_of_workers(world: int) -> None:
    counts: list[list[float]] = [[], []]

    def measure(rank: int, world: int, into: list[float]) -> None:
        net = create("resnet8_avg", in_channels=1, num_classes=3)
        net.load_state_dict(weights)
        place = (torch.device("cpu"), rank, world, lambda sums: (into.append(sums.clone()), sums)[1])
        loop._validate(net, VALIDATION, CARD, settings(), *place)  # type: ignore[arg-type]

    weights = train(settings(epochs=1)).best
    measure(0, 1, counts[0])
    for rank in range(world):
        measure(rank, world, counts[1])
    alone, together = counts[0][0], torch.stack(counts[1]).sum(0)  # type: ignore[arg-type]
    assert together[2] == alone[2] == 23  # type: ignore[index]
    assert together[1] == alone[1]  # type: ignore[index]
    assert together[0] == pytest.approx(alone[0].item())  # type: ignore[index, attr-defined]


@pytest.mark.filterwarnings("ignore:overflow")
def test_divergence_is_an_error_that_names_the_learning_rate() -> None:
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) after epoch 1 at lr .* Lower train\.lr") as raised:
        train(settings(lr=1e30, schedule="constant"))
    assert not raised.value.retryable
