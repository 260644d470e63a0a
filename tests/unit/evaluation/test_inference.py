from __future__ import annotations

import numpy as np
import pytest
import torch

from resflow.data.batches import to_input
from resflow.evaluation import inference
from resflow.nets import create
from resflow.nets.file import ModelCard

CARD = ModelCard(structure="tiny", image_shape=(8, 6, 2), classes=("a", "b", "c"), mean=(0.25, 0.5), std=(0.5, 0.25))


class Tiny(torch.nn.Module):
    """Mean of each channel, then a bias for a third class; records how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(0.9)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return self.dropout(torch.nn.functional.pad(x.mean(dim=(2, 3)), (0, 1), value=7.0))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 8, 6, 2), dtype=np.uint8)


def test_pixels_are_normalised_by_channel(images):
    answers = inference.logits(Tiny(), images, CARD, batch_size=4, device="cpu")
    expected = ((images / 255).mean(axis=(1, 2)) - CARD.mean) / CARD.std
    assert answers.dtype == np.float32
    assert answers[:, :2] == pytest.approx(expected, abs=1e-5)
    assert (answers[:, 2] == 7).all()


def test_the_network_gets_channels_last_batches_and_no_gradient(images):
    net = Tiny()
    inference.logits(net, images, CARD, batch_size=4)
    assert [tuple(x.shape) for x in net.seen] == [(4, 2, 8, 6), (4, 2, 8, 6), (2, 2, 8, 6)]
    assert all(x.is_contiguous(memory_format=torch.channels_last) and x.is_inference() for x in net.seen)


def test_a_network_with_batch_norm_answers_as_it_does_by_itself(images):
    torch.manual_seed(0)
    net = create("resnet8_max", in_channels=2, num_classes=3)
    with torch.no_grad():
        net(torch.randn(16, 2, 8, 6))
    answers = inference.logits(net, images, CARD, batch_size=4)
    with torch.inference_mode():
        wanted = net.eval()(to_input(images, CARD.mean, CARD.std, torch.device("cpu")))
    assert answers == pytest.approx(wanted.numpy(), abs=1e-4)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules()), "the given one stays as it was"


def test_a_memory_mapped_array_is_read_and_left_as_it_was(images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert np.array_equal(inference.logits(Tiny(), mapped, CARD, 4), inference.logits(Tiny(), images, CARD, 4))
    assert np.array_equal(mapped, images)


def test_no_images_give_no_answers_of_the_right_shape(images):
    assert inference.logits(Tiny(), images[:0], CARD, 4).shape == (0, 3)
