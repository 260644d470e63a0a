"""Corruptions: what each does where the answer is known, and that a severity adds to the one before."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from resflow.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corrupted

Images = NDArray[np.uint8]
GREY: Images = np.zeros((6, 28, 28, 1), np.uint8)
GREY[:, 4:24, 12:15] = np.linspace(100, 240, 6).astype(np.uint8)[:, None, None, None]
GREY[:, 20:23, 11:20] = 150
COLOUR: Images = np.random.default_rng(0).integers(0, 256, (2, 20, 33, 3), dtype=np.uint8)
FIVE: Images = np.random.default_rng(0).integers(0, 256, (2, 20, 33, 5), dtype=np.uint8)


def distance(one: Images, other: Images) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("images", [GREY, COLOUR, COLOUR[:, :5, :9], FIVE], ids=["grey", "colour", "tiny", "five"])
def test_images_of_any_size_and_channels_keep_shape_and_type_and_the_seed_decides(name: str, images: Images) -> None:
    before = images.copy()
    first = corrupt(images, name, 5, seed=0)
    assert (first.shape, first.dtype) == (images.shape, np.uint8)
    assert np.array_equal(images, before)
    assert not np.array_equal(first, images)
    assert np.array_equal(corrupt(images, name, 5, seed=0), first)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_corrupted_at_once_are_so_however_many_come_after_them(name: str) -> None:
    large = np.tile(COLOUR[:1, :16, :16], (3, 16, 64, 1))  # two are as many as are corrupted at once
    found = corrupt(large, name, 3, seed=0)
    assert np.array_equal(found[:2], corrupt(large[:2], name, 3, seed=0))
    if name == "gaussian_noise":
        assert not np.array_equal(found[0], found[2])  # chance does not begin anew


@pytest.mark.skipif(sys.platform != "linux", reason="the most memory of a process is Linux's to say")
def test_memory_is_taken_for_some_images_at_a_time() -> None:
    script = r"""
import re, numpy as np
from pathlib import Path
from resflow.evaluation.corruptions import corrupt
def most():
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
images = np.full((48, 512, 1024, 1), 99, np.uint8)
corrupt(images[:1], "fog", 3, seed=0)
before = most()
corrupt(images, "fog", 3, seed=0)
print(most() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100  # MiB; the images themselves take 24, and as floats 96, several times


# what coarser squares change depends on where their edges fall
@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"pixelate"}))
def test_each_severity_is_farther_from_the_image_than_the_one_before(name: str) -> None:
    far = [distance(corrupt(GREY, name, severity, seed=0), GREY) for severity in SEVERITIES]
    assert far[0] > 0
    assert all(less < more for less, more in itertools.pairwise(far)), far


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"shot_noise"}))
def test_at_level_0_nothing_happens(name: str) -> None:
    assert distance(corrupted(GREY, name, 0, seed=0), GREY) < 0.5  # rounding of what moves by no pixel


def test_noises_have_the_spread_they_are_asked_for() -> None:
    flat: Images = np.full((20, 28, 28, 1), 128, np.uint8)
    assert np.std(corrupted(flat, "gaussian_noise", 0.1, 0) / 255) == pytest.approx(0.1, rel=0.05)
    counts = corrupted(flat, "shot_noise", 1 / 60, 0) / 255
    assert np.mean(counts) == pytest.approx(128 / 255, rel=0.01)
    assert np.std(counts) == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.05)
    struck = corrupted(flat, "impulse_noise", 0.2, 0)
    assert [np.mean(struck == value) for value in (0, 255)] == pytest.approx([0.1, 0.1], abs=0.01)


def test_light_is_changed_by_the_level() -> None:
    assert np.array_equal(corrupted(GREY, "brightness", 0.2, 0), np.minimum(GREY.astype(int) + 51, 255))
    flat = corrupted(COLOUR, "contrast", 1.0, 0)
    assert np.array_equal(flat, np.broadcast_to(COLOUR.mean((1, 2), keepdims=True).round(), COLOUR.shape))


def test_a_quarter_turn_is_numpy_s_in_one_direction_or_the_other() -> None:
    turned = corrupted(GREY, "rotate", np.pi / 2, 0)
    for image, found in zip(GREY, turned, strict=True):
        assert min(distance(found, np.rot90(image, k)) for k in (1, 3)) < 0.1
    colour = np.ascontiguousarray(COLOUR[:, :, :20])
    for image, found in zip(colour, corrupted(colour, "rotate", np.pi / 2, 0), strict=True):
        assert min(distance(found, np.rot90(image, k)) for k in (1, 3)) < 0.1


def test_half_the_size_stands_in_the_middle() -> None:
    small = corrupted(np.full((1, 28, 28, 1), 200, np.uint8), "scale", 0.5, 0)[0, :, :, 0]
    assert (small[8:20, 8:20] == 200).all()
    assert not small[:6].any()
    assert not small[:, -6:].any()


def test_the_middle_of_what_is_moved_moves_by_the_level() -> None:
    def middle(images: Images) -> NDArray[np.float64]:
        rows, columns = np.indices(images.shape[1:3]) + 0.5
        mass = images[..., 0] / images[..., 0].sum((1, 2), keepdims=True)
        return np.stack([(mass * rows).sum((1, 2)), (mass * columns).sum((1, 2))], 1)

    moved = middle(corrupted(GREY, "translate", 4, 0)) - middle(GREY)
    assert np.hypot(*moved.T) == pytest.approx(np.full(len(GREY), 4.0), abs=0.05)


def test_blurs_keep_the_mass_of_what_lies_in_the_middle_and_leave_a_flat_image_alone() -> None:
    point: Images = np.zeros((4, 29, 29, 1), np.uint8)
    point[:, 13:16, 13:16] = 255
    for name, level in (("gaussian_blur", 2), ("motion_blur", 7)):
        assert corrupted(point, name, level, 0).sum((1, 2, 3)) == pytest.approx(np.full(4, 9 * 255), rel=0.05)
    flat: Images = np.full((2, 28, 28, 3), 77, np.uint8)
    for name in ("gaussian_blur", "glass_blur", "pixelate"):
        assert (corrupt(flat, name, 5, 0) == 77).all()


def test_what_stands_in_the_way_covers_the_share_asked_for() -> None:
    black: Images = np.zeros((5, 60, 60, 1), np.uint8)
    assert np.mean(corrupted(black, "spatter", 0.2, 0) == 63) == pytest.approx(0.2, abs=0.01)
    striped = corrupted(black, "stripe", 0.3, 0)
    assert np.mean(striped == 255) == pytest.approx(0.3, abs=0.05)
    assert (striped == striped[:, :1]).all()
    one, two = (corrupted(black, "zigzag", lines, 0) for lines in (1, 2))
    assert (one == 255).any(1).all()
    assert (two >= one).all()


def test_pixelate_at_half_has_squares_of_two() -> None:
    image = COLOUR[:, :, :32]
    found = corrupted(image, "pixelate", 0.5, 0)
    mean = image.reshape(2, 10, 2, 16, 2, 3).mean((2, 4))
    assert distance(found, mean.repeat(2, 1).repeat(2, 2)) < 0.5


def test_pixelate_leaves_fewer_squares_at_each_severity() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 1), dtype=np.uint8)
    sides = [len(np.unique(corrupt(image, "pixelate", severity, 0)[0, :, :, 0], axis=0)) for severity in SEVERITIES]
    assert sides == [17, 14, 11, 8, 7]
