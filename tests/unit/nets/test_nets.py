"""Networks by name: answers, seeds, and names that are unknown. Sizes as published are in `test_table`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resflow.errors import NetError
from resflow.nets import article, create, names


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_network_of_the_article_has_its_number_of_parameters() -> None:
    assert size(create("article_cnn", in_channels=1, num_classes=10)) == 390_410


@pytest.mark.parametrize("name", [name for name in names() if not name.endswith(("1202", "1001"))])
def test_every_named_structure_answers_with_one_logit_a_class(name: str) -> None:
    with torch.device("meta"):
        net = create(name, in_channels=2, num_classes=7).eval()
        assert net(torch.zeros(3, 2, 28, 28)).shape == (3, 7)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (33, 47)])
def test_images_of_any_size_fit(size: tuple[int, int]) -> None:
    with torch.inference_mode():
        assert create("resnet8_max", in_channels=1, num_classes=10).eval()(torch.zeros(1, 1, *size)).shape == (1, 10)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (6, 3), (1, 2), (7, 5), (4, 11)])
def test_the_articles_means_are_those_of_adaptive_pooling_and_their_gradient(height: int, width: int) -> None:
    """Which no GPU computes deterministically; of maps of 3x3, as 28x28 images give, to the bit."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, height, width, generator=draw).to(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(4, 5, 3, 3, generator=draw)
    found, wanted = article.Means()(x), nn.AdaptiveAvgPool2d(3)(x)
    pairs = [(found, wanted), *zip(*(torch.autograd.grad(y, x, weights) for y in (found, wanted)), strict=True)]
    for one, other in pairs:
        assert torch.equal(one, other) if (height, width) == (3, 3) else torch.allclose(one, other, atol=1e-6)


def test_the_weights_follow_from_the_seed_alone() -> None:
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(torch.cat([p.flatten() for p in create("resnet20", in_channels=1, num_classes=10).parameters()]))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("resnet21", "resnet20"), ("wrn-28-1", "wrn-28-10"), ("resnet8max", "resnet8_max"), ("cnn", "_cnn")],
)
def test_an_unknown_name_is_told_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(NetError, match=f"net.name: unknown structure '{wrong}'. Nearest known: .*{near}"):
        create(wrong, in_channels=1, num_classes=10)
