from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image, ImageDraw

from resflow.errors import ImageError
from resflow.evaluation import pictures

SHAPE = (28, 28, 1)


def seven(size=(28, 28), box=(8, 4, 20, 24)):
    """A light seven on dark, drawn inside `box` of a 28x28 grid."""
    scale = 8
    image = Image.new("L", (28 * scale, 28 * scale))
    left, top, right, bottom = (value * scale for value in box)
    ImageDraw.Draw(image).line([(left, top), (right, top), (left + 16, bottom)], fill=255, width=2 * scale)
    return image.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def read(tmp_path):
    def read(image, name="image.png", shape=SHAPE, *, dark_ink=False, **options):
        image.save(tmp_path / name, **options)
        return pictures.read(tmp_path / name, shape, dark_ink=dark_ink)

    return read


def pixels(image):
    return np.asarray(image)[:, :, None]


def difference(picture, other):
    return np.abs(picture.pixels.astype(float) - other.pixels).mean()


def test_an_image_of_the_right_size_is_not_touched(read):
    picture = read(seven())
    assert np.array_equal(picture.pixels, pixels(seven()))
    assert (picture.inverted, picture.centred) == (False, False)


def test_dark_on_light_is_inverted_and_said(read):
    dark = Image.fromarray(255 - np.asarray(seven()))
    picture = read(dark)
    assert np.array_equal(picture.pixels, pixels(seven()))
    assert (picture.inverted, picture.centred) == (True, False)


@pytest.mark.parametrize("size", [(28, 28), (280, 280)])
def test_dark_ink_is_light_ink_turned_over(read, size):
    light, dark = seven(size), Image.fromarray(255 - np.asarray(seven(size)))
    wanted = 255 - read(light).pixels.astype(int)
    for image, inverted in ((light, True), (dark, False)):
        picture = read(image, dark_ink=True)
        assert np.abs(picture.pixels - wanted).max() <= 1
        assert picture.inverted == inverted


@pytest.mark.parametrize("size", [(280, 280), (56, 56), (700, 700), (32, 32), (20, 20)])
def test_an_image_of_another_size_has_its_ink_in_20_by_20_pixels_and_its_centre_of_mass_in_the_middle(read, size):
    picture = read(seven(size))
    ink = picture.pixels[:, :, 0].astype(float)
    box = Image.fromarray(picture.pixels[:, :, 0]).getbbox()
    assert picture.pixels.shape == SHAPE
    assert picture.centred
    assert max(box[2] - box[0], box[3] - box[1]) in (19, 20)
    centre = [(ink.sum(axis=1 - axis) * (np.arange(28) + 0.5)).sum() / ink.sum() for axis in (0, 1)]
    assert centre == pytest.approx([14, 14], abs=0.75)


def test_where_the_digit_stands_and_how_much_ground_is_around_it_makes_no_difference(read):
    corner, wide = Image.new("L", (900, 500), 255), Image.new("L", (300, 700), 255)
    for canvas, place in ((corner, (20, 200)), (wide, (10, 300))):
        canvas.paste(Image.fromarray(255 - np.asarray(seven((224, 224)))), place)
    first, second = read(corner), read(wide)
    assert first.inverted
    assert difference(first, second) < 6


def test_proportions_are_kept(read):
    image = Image.new("L", (400, 100))
    ImageDraw.Draw(image).rectangle((190, 10, 200, 90), fill=255)
    box = Image.fromarray(read(image).pixels[:, :, 0]).getbbox()
    assert box[3] - box[1] == 20
    assert box[2] - box[0] <= 4


def test_a_photograph_with_noise_uneven_light_and_dirt_comes_near_to_the_clean_drawing(read):
    draw = np.random.default_rng(0)
    ink = np.zeros((400, 500))
    ink[50:330, 100:380] = np.asarray(seven((280, 280))) / 255
    paper = 190 + np.linspace(-40, 40, 500) + draw.normal(0, 8, ink.shape)
    photo = Image.fromarray((paper * (1 - ink) + 50 * ink).clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(photo).ellipse((450, 360, 456, 366), fill=40)
    clean = read(seven((280, 280)))
    assert difference(read(photo, "photo.jpg", quality=60), clean) < 8


@pytest.mark.parametrize("ink", [0, 255])
def test_a_transparent_drawing_is_seen_whether_its_ink_is_black_or_white(read, ink):
    image = np.full((224, 224, 4), ink, np.uint8)
    image[:, :, 3] = np.asarray(seven((224, 224)))
    picture = read(Image.fromarray(image))
    assert picture.inverted == (ink == 0)
    assert difference(picture, read(seven((224, 224)))) < 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_modes_that_hold_the_same_picture_give_the_same_pixels(read, mode):
    black = seven().point(lambda value: 255 * (value > 128))
    name = "image.tif" if mode == "CMYK" else "image.png"
    converted = Image.merge("RGB", [black] * 3).convert(mode) if mode == "CMYK" else black.convert(mode)
    assert np.abs(read(converted, name).pixels.astype(int) - pixels(black)).max() <= 1


def test_a_palette_with_a_transparent_colour_is_laid_over_a_ground(read):
    picture = read(Image.fromarray((np.asarray(seven((56, 56))) > 128).astype(np.uint8)).convert("P"), transparency=0)
    assert picture.pixels.max() > 200


def test_16_bits_are_reduced_to_8(read):
    image = Image.fromarray(np.asarray(seven()).astype(np.uint16) * 257)
    assert image.mode == "I;16"
    assert np.array_equal(read(image).pixels, pixels(seven()))


def test_a_photograph_lying_on_its_side_is_turned_by_its_exif(read):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    upright = seven()
    picture = read(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert np.array_equal(picture.pixels, pixels(upright))


def test_a_network_of_colours_gets_the_whole_picture_neither_inverted_nor_cut(read):
    image = Image.new("RGB", (200, 100), (250, 240, 230))
    ImageDraw.Draw(image).rectangle((90, 40, 110, 60), fill=(200, 0, 0))
    picture = read(image, shape=(32, 32, 3))
    assert picture.pixels.shape == (32, 32, 3)
    assert picture.pixels[0, 0].tolist() == [250, 240, 230]
    assert picture.pixels[16, 16, 0] > picture.pixels[16, 16, 1]
    assert (picture.inverted, picture.centred) == (False, False)


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4)])
def test_a_network_of_two_or_four_channels_gets_transparency_as_the_last(read, mode, channels):
    values = np.random.default_rng(0).integers(0, 256, (30, 20, channels), dtype=np.uint8)
    assert np.array_equal(read(Image.fromarray(values), shape=(30, 20, channels)).pixels, values)
    picture = read(Image.new(mode, (200, 100), (90,) * channels), shape=(32, 32, channels))
    assert np.abs(picture.pixels.astype(int) - 90).max() <= 1  # colours are weighted by transparency when resized
    assert (picture.inverted, picture.centred) == (False, False)


def test_grey_with_transparency_is_a_colour_of_its_own_and_colour_is_grey_to_a_network_of_two_channels(read):
    grey = read(Image.new("LA", (8, 8), (90, 40)), shape=(8, 8, 4))
    colour = read(Image.new("RGBA", (8, 8), (90, 90, 90, 40)), shape=(8, 8, 2))
    assert grey.pixels[0, 0].tolist() == [90, 90, 90, 40]
    assert colour.pixels[0, 0].tolist() == [90, 40]


@pytest.mark.parametrize(("mode", "channels"), [("L", 2), ("RGB", 2), ("L", 4), ("RGB", 4), ("CMYK", 4)])
def test_a_picture_without_transparency_is_refused_by_a_network_that_takes_it(read, mode, channels):
    with pytest.raises(ImageError, match=rf"image.tif: has no transparency, .* {channels} channels.*alpha channel"):
        read(Image.new(mode, (8, 8)), "image.tif", shape=(8, 8, channels))


def test_that_no_picture_has_as_many_channels_as_the_network_takes_is_said(read):
    with pytest.raises(ImageError, match=r"image.png: cannot hold the 5 channels .*inference.logits"):
        read(Image.new("RGBA", (8, 8)), shape=(8, 8, 5))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_large_image_of_the_right_size_is_not_touched(read, channels):
    values = np.zeros((700, 600, channels), np.uint8)
    values[100:600, 200:400] = np.random.default_rng(0).integers(1, 256, (500, 200, channels))
    image = Image.fromarray(values[:, :, 0] if channels == 1 else values)
    assert np.array_equal(read(image, shape=values.shape).pixels, values)


def test_a_picture_that_is_reduced_does_not_count_as_one_of_the_right_size(read):
    assert read(seven((1024, 1024)), shape=(512, 512, 1)).centred


def test_a_large_picture_is_fitted_from_all_of_its_pixels(read):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1200, 900, 3), dtype=np.uint8))
    image.paste((9, 99, 199), (0, 0, 900, 20))
    fitted = read(image, shape=(600, 600, 3)).pixels[:, 75:525]
    assert np.array_equal(fitted, np.asarray(image.resize((450, 600), Image.Resampling.BICUBIC)))


def test_a_large_transparent_picture_lies_on_its_ground_with_all_of_its_pixels(read):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 4), dtype=np.uint8))
    white = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(white, image).convert("RGB")
    assert np.array_equal(read(image, shape=(600, 600, 3)).pixels, np.asarray(expected))


def test_ink_for_a_network_of_large_images_keeps_what_is_fine(read):
    values = np.zeros((1120, 1120), np.uint8)
    values[160:960, 160:960] = 255 * (np.arange(800) // 4 % 2 == 0)  # two pixels each, once they are half as large
    ink = read(Image.fromarray(values), shape=(560, 560, 1)).pixels[200:360, 200:360, 0]
    assert np.mean((ink < 16) | (ink > 239)) > 0.9


def test_a_large_image_is_read_at_once(read):
    assert difference(read(seven((4000, 4000))), read(seven((500, 500)))) < 2


@pytest.mark.parametrize("size", [(28, 28), (100, 60), (1, 1)])
def test_an_image_of_one_colour_is_refused(read, size):
    with pytest.raises(ImageError, match="nothing that stands out"):
        read(Image.new("L", size, 77))


def test_a_speck_that_vanishes_when_blurred_is_refused(read):
    image = Image.new("L", (500, 500))
    image.putpixel((250, 250), 60)
    with pytest.raises(ImageError, match="stands out"):
        read(image)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.gif"])
def test_a_truncated_image_is_one_error(tmp_path, name):
    seven((200, 200)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (len(whole) // 2, len(whole) * 9 // 10):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ImageError, match=f"{name}: is damaged"):
            pictures.read(tmp_path / name, SHAPE)


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG"])
def test_a_file_that_is_no_image_is_one_error(tmp_path, content):
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"notes.png: is (no image|damaged)"):
        pictures.read(path, SHAPE)


def test_a_missing_file_a_folder_and_a_pipe_are_told_apart(tmp_path):
    with pytest.raises(ImageError, match="does not exist"):
        pictures.read(tmp_path / "none.png", SHAPE)
    with pytest.raises(ImageError, match="is a folder"):
        pictures.read(tmp_path, SHAPE)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is no regular file"):
        pictures.read(tmp_path / "pipe.png", SHAPE)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="pixels"):
        pictures.read(tmp_path / "bomb.png", SHAPE)
