"""A fused network answers as the one it was made of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from resflow.nets import create
from resflow.nets.fusion import fused
from resflow.nets.resnet import ResidualNet
from tests.unit.nets.thin import ALL, unsettled


def trained(name: str) -> nn.Module:
    """With statistics, scales and offsets as training leaves them, channels-last, in evaluation mode."""
    torch.manual_seed(0)
    net = create(name, in_channels=2, num_classes=7)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None  # the mean of all batches: few are needed
    with torch.no_grad():
        for _ in range(2):
            net.train()(torch.randn(8, 2, 14, 14))
    return net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def answers(net: nn.Module) -> Tensor:
    images = torch.randn(8, 2, 14, 14, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return net(images.to(memory_format=torch.channels_last))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ALL)
def test_every_structure_answers_the_same_without_the_norms_that_follow_convolutions(name: str) -> None:
    """At little width and depth, but for the ones below."""
    torch.manual_seed(0)
    check(unsettled(create(ALL[name], in_channels=2, num_classes=7)))


@pytest.mark.parametrize("name", ["resnet8_max", "resnet20", "preact_resnet20", "article_cnn"])
def test_structures_of_full_size_do_too(name: str) -> None:
    check(trained(name))


def check(net: nn.Module) -> None:
    before = copy.deepcopy(net.state_dict())
    made = fused(net)
    wanted = answers(net)
    assert torch.allclose(answers(made), wanted, atol=1e-4 * wanted.abs().max().item())
    assert left(made) == opening(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "the net was changed"


def left(net: nn.Module) -> set[str]:
    return {name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}


def opening(net: nn.Module) -> set[str]:
    """The norms of pre-activation blocks that follow a sum, as the last one does: no convolution can take them in."""
    if not isinstance(net, ResidualNet) or not isinstance(net.last, nn.Sequential):
        return set()
    return {name for name in left(net) if name.endswith(".bn1") or name == "last.0"}


def test_convolutions_keep_their_names_and_stay_channels_last() -> None:
    net = trained("resnet8_max")
    made = fused(net)
    convolutions = {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    kept = {name: module for name, module in made.named_modules() if isinstance(module, nn.Conv2d)}
    assert set(kept) == convolutions
    for module in kept.values():
        assert module.bias is not None
        assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_fusing_gives_the_same_bits_each_time() -> None:
    net = trained("resnet8_avg")
    assert torch.equal(answers(fused(net)), answers(fused(net)))


def test_a_convolution_whose_answer_is_used_twice_keeps_its_norm() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.norm(x) + x

    net = Twice()
    with torch.no_grad():
        net(torch.randn(8, 2, 4, 4))
    assert torch.allclose(answers(fused(net.eval())), answers(net), atol=1e-6)


def test_a_network_without_batch_norm_is_left_as_it_is() -> None:
    net = trained("article_cnn")
    assert fused(net) is net
