from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from resflow.errors import DataError, ImageError
from resflow.evaluation import inference, metrics
from resflow.evaluation.predict import predict
from resflow.nets.file import ModelCard, load, save

CARD = ModelCard(
    structure="resnet8_max", image_shape=(28, 28, 1), classes=("zero", "one", "two"), mean=(0.13,), std=(0.31,)
)


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    save(tmp_path / "model.safetensors", CARD.network().state_dict(), CARD)
    return tmp_path / "model.safetensors"


@pytest.fixture
def images(tmp_path):
    paths = []
    for seed in range(3):
        pixels = np.zeros((28, 28), np.uint8)
        pixels[6:22, 6:22] = np.random.default_rng(seed).integers(0, 256, (16, 16))
        paths.append(tmp_path / f"{seed}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_answers_are_those_of_the_network_for_the_pixels_of_the_files_in_their_order(model, images):
    net, card = load(model)
    stack = np.stack([np.asarray(Image.open(path))[:, :, None] for path in images])
    expected = metrics.softmax(inference.logits(net, stack, card, 10))
    found = predict(images, model)
    assert [answer.path for answer in found] == images
    for answer, row in zip(found, expected, strict=True):
        assert answer.label == CARD.classes[row.argmax()]
        assert answer.probability == pytest.approx(row.max())
        assert dict(answer.top) == pytest.approx(dict(zip(CARD.classes, row, strict=True)))
        assert answer.top[0] == (answer.label, answer.probability)
        assert not answer.inverted
        assert not answer.centred


def test_top_is_sorted_and_no_longer_than_asked_for_or_than_there_are_classes(model, images):
    assert [len(predict(images[:1], model, top=top)[0].top) for top in (1, 2, 3, 10)] == [1, 2, 3, 3]
    shares = [share for _, share in predict(images[:1], model)[0].top]
    assert shares == sorted(shares, reverse=True)


def test_a_network_that_learnt_dark_on_light_is_given_that(images, tmp_path):
    torch.manual_seed(0)
    card = dataclasses.replace(CARD, mean=(0.87,))
    save(tmp_path / "dark.safetensors", card.network().state_dict(), card)
    net, _ = load(tmp_path / "dark.safetensors")
    light = [np.asarray(Image.open(path))[:, :, None] for path in images]
    expected = metrics.softmax(inference.logits(net, 255 - np.stack(light), card, 10))
    dark = [path.with_suffix(".dark.png") for path in images]
    for path, pixels in zip(dark, light, strict=True):
        Image.fromarray(255 - pixels[:, :, 0]).save(path)
    for paths, inverted in ((dark, False), (images, True)):
        for answer, row in zip(predict(paths, tmp_path / "dark.safetensors"), expected, strict=True):
            assert dict(answer.top) == pytest.approx(dict(zip(CARD.classes, row, strict=True)))
            assert answer.inverted == inverted


def test_an_inverted_image_is_answered_as_its_original_and_says_so(model, images, tmp_path):
    Image.fromarray(255 - np.asarray(Image.open(images[0]))).save(tmp_path / "dark.png")
    plain, dark = predict([images[0], tmp_path / "dark.png"], model)
    assert dark.inverted
    assert dict(dark.top) == pytest.approx(dict(plain.top))


def test_no_files_give_no_answers(model):
    assert predict([], model) == []


def test_one_bad_file_among_good_ones_is_the_error(model, images, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(ImageError, match=r"bad\.png"):
        predict([images[0], tmp_path / "bad.png"], model)


def test_a_missing_model_is_an_error_of_its_own(images, tmp_path):
    with pytest.raises(DataError, match="no such model"):
        predict(images, tmp_path / "none.safetensors")
