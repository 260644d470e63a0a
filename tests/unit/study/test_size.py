"""What follows from a structure's shape: counted by hand, and held against what autograd keeps and files take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resflow.errors import NetError
from resflow.nets import Structure, file
from resflow.nets.file import ModelCard
from resflow.study.kinds import KINDS, kind
from resflow.study.size import Layer, layers, size
from tests.unit.nets.thin import ALL

SMALL = Structure(blocks=(1,), widths=(4,))
MAP = 4 * 8 * 8 * 4
"""Bytes of 4 channels of 8x8 pixels in float32."""
# A norm keeps what it normalises, an activation in place what it gives, a convolution what it is given: which the
# activation before it has kept already.
BY_HAND = [
    Layer("conv1", "convolution", (4, 8, 8), 36, 64 * 4 * 9, MAP, 8 * 8 * 4),
    Layer("bn1", "norm", (4, 8, 8), 8, 0, MAP, MAP),
    Layer("act", "activation", (4, 8, 8), 0, 0, 0, MAP),
    Layer("layer1.0.conv1", "convolution", (4, 8, 8), 144, 64 * 4 * 36, MAP, 0),
    Layer("layer1.0.bn1", "norm", (4, 8, 8), 8, 0, MAP, MAP),
    Layer("layer1.0.act", "activation", (4, 8, 8), 0, 0, 0, 2 * MAP),
    Layer("layer1.0.conv2", "convolution", (4, 8, 8), 144, 64 * 4 * 36, MAP, 0),
    Layer("layer1.0.bn2", "norm", (4, 8, 8), 8, 0, MAP, MAP),
    Layer("layer1.0", "rest", (4, 8, 8), 0, 0, MAP, 0),
    Layer("net", "pooling", (3,), 0, 0, 4 * 4, 0),
    Layer("fc", "linear", (3,), 15, 12, 3 * 4, 4 * 4),
]
OTHERS = (
    "blurred bottleneck",
    "excited plain",
    "stochastic depth, preact",
    "mish",
    "group norm",
    "fixup bottleneck",
    "preact_resnet164",
    "resnext50_32x4d",
)


def card(structure: str | Structure, image_shape: tuple[int, int, int] = (24, 24, 2), classes: int = 3) -> ModelCard:
    channels = image_shape[2]
    names = tuple(map(str, range(classes)))
    return ModelCard(
        structure=structure, image_shape=image_shape, classes=names, mean=(0.1,) * channels, std=(0.3,) * channels
    )


def kept(net: torch.nn.Module, images: torch.Tensor) -> int:
    """Bytes behind all tensors that autograd saves in a real forward pass, weights aside."""
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = net(images)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    assert answer.requires_grad
    return sum(count for place, count in found.items() if place not in weights)


def test_a_small_network_has_the_figures_that_one_counts_by_hand() -> None:
    counted = size(card(SMALL, (8, 8, 1)))
    assert list(layers(card(SMALL, (8, 8, 1)))) == BY_HAND
    assert counted.activation_bytes == 7 * MAP + 16 + 12
    assert counted.kept_bytes == 256 + 6 * MAP + 16
    # with its norms folded: the image, and what the block was given, makes and made
    assert counted.inference_bytes == 256 + 3 * MAP


@pytest.mark.parametrize("name", [*OTHERS, "article_cnn"])
def test_layers_sum_up_to_what_papers_count_and_keep_what_autograd_keeps(name: str) -> None:
    given = card(ALL.get(name, name))
    counted, rows = size(given), layers(given)
    assert sum(row.parameters for row in rows) == counted.parameters
    assert sum(row.macs for row in rows) == counted.macs
    assert {row.kind for row in rows} <= set(KINDS)
    torch.manual_seed(0)
    net = given.network().train()
    few, many = (kept(net, torch.randn(count, 2, 24, 24)) for count in (2, 5))
    assert counted.kept_bytes == (many - few) / 3
    assert 0 < counted.inference_bytes < counted.activation_bytes + 24 * 24 * 2 * 4


@pytest.mark.parametrize("name", ["resnet8_max", "article_cnn"])
def test_the_size_of_the_file_is_that_of_the_file(name: str, tmp_path: Path) -> None:
    given = card(name)
    file.save(tmp_path / "model.safetensors", given.network().state_dict(), given)
    assert size(given).file_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_a_structure_that_does_not_fit_is_named_with_the_images_that_would() -> None:
    with pytest.raises(NetError, match=r"^net: resnet50 halves images 5 times, which 12x16 .*at least 17x17 pixels"):
        size(card("resnet50", (12, 16, 3)))


@pytest.mark.parametrize(
    ("operation", "wanted"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "convolution"),
        ("aten::native_batch_norm", "norm"),
        ("NativeGroupNormBackward0", "norm"),
        ("aten::leaky_relu_", "activation"),
        ("SiluBackward0", "activation"),
        ("MaxPool2DWithIndicesBackward0", "pooling"),
        ("aten::amax", "pooling"),
        ("aten::addmm", "linear"),
        ("aten::add", "rest"),
        ("aten::cross_entropy_loss", "rest"),
    ],
)
def test_an_operation_belongs_to_a_kind_of_layer_forward_and_backward(operation: str, wanted: str) -> None:
    assert kind(operation) == wanted
