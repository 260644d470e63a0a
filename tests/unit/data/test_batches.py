"""Which images stand in which batch, and that it never depends on who asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resflow.data import arrays
from resflow.data.arrays import Split
from resflow.data.augment import Batch
from resflow.data.batches import Batches, to_input
from resflow.files import write_together
from tests.unit.training.small import CPU, STEPS, settings, split

NUMBERED = Split(
    np.arange(70, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 1), np.uint8), np.arange(70, dtype=np.uint8)
)
"""Each image and its label are its number."""
ALL = {"shift": 1, "flip": True, "rotate": 10.0, "scale": 0.1, "erase": 0.5}


def batches(given: Split = NUMBERED, seed: int = 5, **changes: Any) -> Batches:
    return Batches(given, settings(**changes), mean=(0.0,), std=(1 / 255,), classes=70, seed=seed, device=CPU)


def epoch(made: Batches, number: int) -> list[Batch]:
    return [made.get(number, step) for step in range(made.steps)]


def labels(made: list[Batch]) -> list[int]:
    return [int(label) for batch in made for label in batch.targets]


def test_pixels_are_normalised_channel_by_channel_and_channels_last() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 2), dtype=np.uint8)
    mean, std = (0.2, 0.6), (0.1, 0.4)
    given = to_input(images, mean, std, CPU)
    wanted = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert np.allclose(given.numpy(), wanted, atol=1e-5)
    assert given.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_shows_each_image_once_but_for_those_that_do_not_fill_a_batch() -> None:
    made = batches()
    assert made.steps == STEPS
    orders = [labels(epoch(made, number)) for number in (0, 1, 0)]
    assert all(len(order) == 64 == len(set(order)) for order in orders)
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert len({label for number in range(10) for label in labels(epoch(made, number))}) == 70


def test_the_order_is_that_of_the_seed() -> None:
    assert labels(epoch(batches(seed=6), 0)) != labels(epoch(batches(), 0))
    assert labels(epoch(batches(), 0)) == labels(epoch(batches(), 0))


def test_an_image_comes_with_its_own_label_and_as_it_is() -> None:
    for batch in epoch(batches(), 2):
        assert torch.equal(batch.images, batch.targets[:, None, None, None].expand(16, 1, 2, 2).float())
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("parts", [2, 4, 8, 16])
def test_the_parts_of_a_batch_together_are_the_batch(parts: int) -> None:
    made = batches(split(70), **ALL)
    for number, step in ((0, 0), (1, 3)):
        whole = made.get(number, step)
        pieces = [made.get(number, step, part, parts) for part in range(parts)]
        assert torch.equal(torch.cat([piece.targets for piece in pieces]), whole.targets)
        assert torch.allclose(torch.cat([piece.images for piece in pieces]), whole.images, atol=1e-3)


def test_a_part_mixes_its_own_images_in_the_shares_drawn_for_them() -> None:
    made, numbers = batches(mixup=0.3), batches().get(0, 1).targets
    whole = made.get(0, 1)
    for part in range(4):
        mine = slice(4 * part, 4 * part + 4)
        own = whole.targets[torch.arange(16), numbers][mine]
        piece = made.get(0, 1, part, 4)
        assert torch.equal(piece.targets[torch.arange(4), numbers[mine]], own)
        assert set(piece.targets.nonzero()[:, 1].tolist()) == set(numbers[mine].tolist())


def test_a_batch_is_the_same_whatever_was_asked_for_before() -> None:
    straight, jumping = batches(split(70), **ALL), batches(split(70), **ALL)
    wanted = [straight.get(number, step) for number in range(2) for step in range(STEPS)]
    for place in (7, 2, 2, 5, 0):
        assert torch.equal(jumping.get(*divmod(place, STEPS)).images, wanted[place].images)


def test_every_step_of_every_epoch_draws_anew() -> None:
    one = Split(np.full((16, 8, 8, 1), 255, np.uint8), np.zeros(16, np.uint8))
    made = batches(one, shift=3)
    seen = {made.get(number, 0).images.numpy().tobytes() for number in range(8)}
    assert len(seen) == 8


def test_the_draws_of_a_batch_are_not_made_from_the_numbers_that_order_the_epoch() -> None:
    """NumPy seeds the same stream from [seed, epoch] and [seed, epoch, 0]."""

    def stream() -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([5, 2]))

    numbers = batches().get(2, 0).targets
    assert numbers.tolist() == stream().permutation(70)[:16].tolist()
    shares = batches(mixup=0.5).get(2, 0).targets[torch.arange(16), numbers]
    assert not np.allclose(shares, stream().beta(0.5, 0.5, 16))


def test_a_memory_mapped_split_is_read_and_left_as_it_was(tmp_path: Path) -> None:
    given = split(70)
    write_together(
        {
            arrays.images_path(tmp_path, "train"): arrays.writer(given.images),
            arrays.labels_path(tmp_path, "train"): arrays.writer(given.labels),
        }
    )
    mapped = arrays.load(tmp_path, "train")
    assert torch.equal(batches(mapped, **ALL).get(0, 0).images, batches(given, **ALL).get(0, 0).images)
    assert np.array_equal(mapped.images, given.images)
