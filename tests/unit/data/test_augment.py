"""Each augmentation of a batch against a reference that treats one image at a time, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from resflow.data.augment import ERASED_AREA, ERASED_ASPECT, Batch, Draws, augment, draw
from tests.unit.training.small import settings

HEIGHT, WIDTH = 9, 12
MEAN, STD = (0.2, 0.6), (0.1, 0.4)
PIXELS: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (64, HEIGHT, WIDTH, 2), dtype=np.uint8)
LABELS = (np.arange(64) % 3).astype(np.int64)


def drawn(count: int = 64, seed: int = 1, size: tuple[int, int] = (HEIGHT, WIDTH), **changes: Any) -> Draws:
    return draw(np.random.default_rng(seed), count, settings(**changes), size)


def made(draws: Draws, pixels: NDArray[np.uint8] = PIXELS, **changes: Any) -> Batch:
    given = torch.from_numpy(pixels), torch.from_numpy(LABELS[: len(pixels)])
    return augment(*given, draws, settings(**changes), MEAN, STD, classes=3)


def image(batch: Batch, number: int) -> NDArray[np.float32]:
    """(H, W, C)."""
    return batch.images[number].permute(1, 2, 0).numpy()  # type: ignore[no-any-return]


def normal(pixels: NDArray[Any]) -> NDArray[np.float64]:
    return (pixels / 255 - MEAN) / STD  # type: ignore[no-any-return]


def turned(pixels: NDArray[np.uint8], angle: float, zoom: float) -> NDArray[np.float64]:
    """Rotated by `angle` and enlarged by `zoom` about its centre, each pixel between the four next to its origin."""
    height, width = pixels.shape[:2]
    result = np.zeros(pixels.shape)
    for row in range(height):
        for column in range(width):
            y, x = row - (height - 1) / 2, column - (width - 1) / 2
            from_y = (np.cos(angle) * y - np.sin(angle) * x) / zoom + (height - 1) / 2
            from_x = (np.sin(angle) * y + np.cos(angle) * x) / zoom + (width - 1) / 2
            top, left = int(np.floor(from_y)), int(np.floor(from_x))
            for near_y in (top, top + 1):
                for near_x in (left, left + 1):
                    if 0 <= near_y < height and 0 <= near_x < width:
                        share = (1 - abs(from_y - near_y)) * (1 - abs(from_x - near_x))
                        result[row, column] += share * pixels[near_y, near_x]
    return result


class Greatest:
    """A generator that draws the greatest number each time."""

    def uniform(self, low: float, high: float, count: int) -> NDArray[np.float64]:
        return np.full(count, high)


# --- off --------------------------------------------------------------------------------------------------------------

ONE_EACH = {"shift": 1, "flip": True, "rotate": 5.0, "scale": 0.1, "erase": 0.5, "mixup": 0.2}


def test_what_is_off_is_not_drawn_and_leaves_the_images_as_they_are() -> None:
    draws = drawn()
    assert set(vars(draws).values()) == {None}
    batch = made(draws)
    assert np.allclose(batch.images.permute(0, 2, 3, 1), normal(PIXELS), atol=1e-5)
    assert batch.targets.tolist() == LABELS.tolist()


@pytest.mark.parametrize("name", ONE_EACH)
def test_each_parameter_turns_on_its_own_augmentation_and_no_other(name: str) -> None:
    on = {key for key, value in vars(drawn(**{name: ONE_EACH[name]})).items() if value is not None}
    assert on == {{"rotate": "affine", "scale": "affine", "mixup": "mix"}.get(name, name)}


@pytest.mark.parametrize("name", [None, *ONE_EACH])
def test_whatever_is_on_the_images_are_float32_and_channels_last_and_the_pixels_stay(name: str | None) -> None:
    changes, before = {name: ONE_EACH[name]} if name else {}, PIXELS.copy()
    batch = made(drawn(**changes), **changes)
    assert batch.images.dtype == torch.float32
    assert batch.images.shape == (64, 2, HEIGHT, WIDTH)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(PIXELS, before)


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_an_image_is_shifted_by_itself_and_what_comes_in_is_black() -> None:
    draws = drawn(shift=2)
    assert draws.shift is not None
    batch = made(draws, shift=2)
    for number, (down, right) in enumerate(draws.shift):
        padded = np.pad(PIXELS[number], ((2, 2), (2, 2), (0, 0)))
        wanted = normal(padded[down : down + HEIGHT, right : right + WIDTH])
        assert np.allclose(image(batch, number), wanted, atol=1e-5)


def test_the_shifts_of_many_images_are_all_that_there_are_about_equally_often() -> None:
    shifts = drawn(5000, shift=2).shift
    assert shifts is not None
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(shifts.T), 1)
    assert counts.min() > 130  # 200 each, with a deviation of 14
    assert counts.max() < 270


def test_flipped_images_are_mirrored_left_and_right() -> None:
    draws = drawn(flip=True)
    assert draws.flip is not None
    batch = made(draws, flip=True)
    for number, flipped in enumerate(draws.flip):
        wanted = PIXELS[number][:, ::-1] if flipped else PIXELS[number]
        assert np.allclose(image(batch, number), normal(wanted), atol=1e-5)


def test_half_of_many_images_are_flipped() -> None:
    flips = drawn(4000, flip=True).flip
    assert flips is not None
    assert 0.47 < flips.mean() < 0.53


@pytest.mark.parametrize("changes", [{"rotate": 40.0}, {"scale": 0.3}, {"rotate": 180.0, "scale": 0.5}], ids=str)
def test_an_image_is_rotated_and_scaled_about_its_centre(changes: dict[str, float]) -> None:
    draws = drawn(12, **changes)
    assert draws.affine is not None
    batch = made(draws, PIXELS[:12], **changes)
    for number, matrix in enumerate(draws.affine.astype(float)):
        cos, sin = matrix[0, 0], -matrix[1, 0] * HEIGHT / WIDTH  # each divided by the zoom
        angle, zoom = np.arctan2(sin, cos), 1 / np.hypot(cos, sin)
        assert abs(np.rad2deg(angle)) <= changes.get("rotate", 0) + 1e-3
        assert abs(zoom - 1) <= changes.get("scale", 0) + 1e-3
        assert np.allclose(image(batch, number), normal(turned(PIXELS[number], angle, zoom)), atol=2e-3)


def test_angles_and_scales_of_many_images_fill_their_ranges_evenly() -> None:
    matrices = drawn(4000, size=(8, 8), rotate=30.0, scale=0.2).affine
    assert matrices is not None
    angles = np.rad2deg(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    zooms = 1 / np.hypot(matrices[:, 0, 0], matrices[:, 0, 1])
    for values, least, most in ((angles, -30, 30), (zooms, 0.8, 1.2)):
        counts, _ = np.histogram(values, 10, (least, most))
        assert counts.sum() == 4000, "a draw lies outside"
        assert counts.min() > 300  # 400 each, with a deviation of 19


def test_a_right_angle_is_a_quarter_turn_and_a_greater_scale_enlarges() -> None:
    square = np.random.default_rng(2).integers(0, 256, (1, 8, 8, 2), dtype=np.uint8)
    greatest: Any = Greatest()
    quarter = made(draw(greatest, 1, settings(rotate=90.0), (8, 8)), square, rotate=90.0)
    assert np.allclose(image(quarter, 0), normal(np.rot90(square[0], -1)), atol=1e-3)
    spot = np.zeros((1, 9, 9, 2), np.uint8)
    spot[:, 3:6, 3:6] = 255
    larger = image(made(draw(greatest, 1, settings(scale=0.9), (9, 9)), spot, scale=0.9), 0)
    assert (larger > normal(np.full(2, 128))).all(2).sum() > 20


def test_the_erased_rectangle_is_the_mean_and_the_rest_stays() -> None:
    draws = drawn(erase=0.7)
    assert draws.erase is not None
    batch = made(draws, erase=0.7)
    for number, (top, bottom, left, right) in enumerate(draws.erase):
        wanted = normal(PIXELS[number])
        wanted[top:bottom, left:right] = 0
        assert np.allclose(image(batch, number), wanted, atol=1e-5)


def test_rectangles_are_as_frequent_as_asked_and_as_large_and_long_as_in_the_paper() -> None:
    rectangles = drawn(4000, size=(28, 28), erase=0.4).erase
    assert rectangles is not None
    top, bottom, left, right = rectangles.T
    tall, wide = bottom - top, right - left
    erased = tall * wide > 0
    assert 0.37 < erased.mean() < 0.43
    areas, aspects = (tall * wide)[erased] / 28**2, (tall / np.maximum(wide, 1))[erased]
    assert areas.min() > ERASED_AREA[0] / 2  # sides are whole pixels
    assert areas.max() < ERASED_AREA[1] * 1.1
    assert areas.mean() == pytest.approx(np.mean(ERASED_AREA), rel=0.05)
    assert aspects.min() > ERASED_ASPECT / 1.5
    assert aspects.max() < 1.5 / ERASED_ASPECT
    assert min(top.min(), left.min()) == 0
    assert max(bottom.max(), right.max()) == 28
    touched = np.zeros((28, 28), int)
    for a, b, c, d in rectangles[erased]:
        touched[a:b, c:d] += 1
    assert touched.min() > 0, "some pixels are never erased"


def test_an_image_and_its_target_are_mixed_with_the_one_before_in_the_same_shares() -> None:
    draws = drawn(mixup=0.4)
    assert draws.mix is not None
    batch = made(draws, mixup=0.4)
    one_hot = np.eye(3)[LABELS]
    for number, share in enumerate(draws.mix):
        wanted = share * normal(PIXELS[number]) + (1 - share) * normal(PIXELS[number - 1])
        assert np.allclose(image(batch, number), wanted, atol=1e-4)
        target = share * one_hot[number] + (1 - share) * one_hot[number - 1]
        assert np.allclose(batch.targets[number], target, atol=1e-6)
    assert torch.allclose(batch.targets.sum(1), torch.ones(64))


def test_the_shares_of_many_mixtures_have_the_mean_and_variance_of_their_beta_distribution() -> None:
    shares = drawn(4000, mixup=0.4).mix
    assert shares is not None
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.05)


# --- together ---------------------------------------------------------------------------------------------------------


def test_all_at_once_come_in_the_order_shift_flip_turn_erase_mix() -> None:
    changes = ONE_EACH | {"erase": 1.0}
    draws = drawn(**changes)
    arrays = [value for value in vars(draws).values() if value is not None]
    assert len(arrays) == 5
    shift, flip, affine, erase, mix = arrays
    alone = []
    for number in range(64):
        down, right = shift[number]
        pixels = np.pad(PIXELS[number], ((1, 1), (1, 1), (0, 0)))[down : down + HEIGHT, right : right + WIDTH]
        pixels = pixels[:, ::-1] if flip[number] else pixels
        cos, sin = affine[number, 0, 0], -affine[number, 1, 0] * HEIGHT / WIDTH
        whole = normal(turned(pixels, np.arctan2(sin, cos), 1 / np.hypot(cos, sin)))
        top, bottom, left, right = erase[number]
        whole[top:bottom, left:right] = 0
        alone.append(whole)
    batch = made(draws, **changes)
    for number, share in enumerate(mix):
        wanted = share * alone[number] + (1 - share) * alone[number - 1]
        assert np.allclose(image(batch, number), wanted, atol=3e-3)


def test_the_draws_of_a_part_are_those_of_its_images_in_the_whole() -> None:
    whole = drawn(**ONE_EACH)
    for parts in (2, 4, 8):
        size = 64 // parts
        pieces = [whole.part(slice(part * size, (part + 1) * size)) for part in range(parts)]
        for name, values in vars(whole).items():
            assert np.array_equal(np.concatenate([getattr(piece, name) for piece in pieces]), values)
    assert set(vars(drawn().part(slice(0, 3))).values()) == {None}
