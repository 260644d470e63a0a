"""Blocks and whole networks of them: what passes by the shortcut, what each kind has, and that all of them train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resflow.nets import Structure, create
from resflow.nets.blocks import Block
from resflow.nets.layers import BlurPool
from tests.unit.nets.thin import ALL, SMALL, images, unsettled


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def built(structure: Structure, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create(structure, in_channels=2, num_classes=7)


def blocks(net: nn.Module) -> list[Block]:
    return [module for module in net.modules() if isinstance(module, Block)]


def step(structure: Structure) -> tuple[nn.Module, Tensor]:
    """A network after a step of training, and its loss before."""
    net = built(structure).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = F.cross_entropy(net(images()), torch.arange(4))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return net, loss.detach()


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", ALL)
def test_every_structure_trains_a_step_to_the_same_bits(name: str) -> None:
    (one, loss), (other, _) = step(ALL[name]), step(ALL[name])
    assert loss.isfinite()
    assert [key for key, parameter in one.named_parameters() if parameter.grad is None] == []
    moved = built(ALL[name]).state_dict()
    assert any(not torch.equal(value, moved[key]) for key, value in one.state_dict().items())
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize("name", ALL)
def test_every_structure_takes_images_of_odd_and_unequal_sides(name: str) -> None:
    with torch.inference_mode():
        assert built(ALL[name]).eval()(torch.randn(3, 2, 33, 29)).shape == (3, 7)


@pytest.mark.parametrize("downsample", ["stride", "average", "blur"])
@pytest.mark.parametrize("kind", ["plain", "basic", "bottleneck", "preact_basic", "preact_bottleneck"])
def test_a_block_that_halves_rounds_up(kind: str, downsample: str) -> None:
    net = built(replace(SMALL, block=kind, downsample=downsample)).eval()  # type: ignore[arg-type]
    block = blocks(net)[1]
    assert block(torch.randn(1, block.convolutions()[0].in_channels, 9, 6)).shape[2:] == (5, 3)


@pytest.mark.parametrize("name", ["basic", "bottleneck"])
def test_with_the_last_norm_at_zero_a_block_passes_on_what_comes_by_the_shortcut(name: str) -> None:
    net = built(replace(SMALL, block=name, init="zero_norm")).train()  # type: ignore[arg-type]
    block = blocks(net)[-1]
    x = torch.rand(2, block.convolutions()[0].in_channels, 6, 6)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", ["preact_basic", "preact_bottleneck"])
def test_a_preactivation_block_adds_to_its_input_as_it_is(name: str) -> None:
    net = built(replace(SMALL, block=name)).eval()  # type: ignore[arg-type]
    block = blocks(net)[-1]
    nn.init.zeros_(block.convolutions()[-1].weight)
    x = torch.randn(2, block.convolutions()[0].in_channels, 6, 6)
    assert torch.equal(block(x), x), "negative values must pass, and x must not be changed in place"


def test_a_plain_block_has_no_shortcut() -> None:
    net = built(replace(SMALL, block="plain")).train()
    block = blocks(net)[-1]
    nn.init.zeros_(block.last_norm().weight)  # type: ignore[arg-type]
    assert not block(torch.rand(2, 16, 6, 6)).any()


@pytest.mark.parametrize("downsample", ["stride", "average", "blur"])
def test_option_a_has_no_weights_and_passes_the_input_on_between_channels_of_zeros(downsample: str) -> None:
    net = built(replace(SMALL, shortcut="A", downsample=downsample)).eval()  # type: ignore[arg-type]
    block = blocks(net)[1]
    assert list(block.downsample.parameters()) == []
    nn.init.zeros_(block.last_norm().weight)  # type: ignore[arg-type]
    x = torch.rand(1, 8, 8, 8)
    y = block(x)
    assert not y[:, :4].any()
    assert not y[:, 12:].any()
    passed = {"stride": x[:, :, ::2, ::2], "average": F.avg_pool2d(x, 2), "blur": BlurPool()(x)}
    assert torch.equal(y[:, 4:12], passed[downsample])


@pytest.mark.parametrize(("shortcut", "projections"), [("A", 0), ("B", 1), ("C", 3)])
def test_options_project_nowhere_where_sizes_differ_or_everywhere(shortcut: str, projections: int) -> None:
    net = built(replace(SMALL, shortcut=shortcut))  # type: ignore[arg-type]
    assert sum(any(True for _ in block.downsample.parameters()) for block in blocks(net)) == projections


def test_a_grouped_bottleneck_has_its_groups_in_the_middle_alone() -> None:
    net = built(replace(SMALL, block="bottleneck", groups=4, inner=2))
    groups = [[conv.groups for conv in block.convolutions()] for block in blocks(net)]
    assert groups == [[1, 4, 1]] * 3
    assert blocks(net)[0].convolutions()[1].out_channels == 16


def test_stochastic_depth_rises_to_its_rate_in_proportion_to_the_block() -> None:
    net = built(replace(SMALL, blocks=(2, 2), stochastic_depth=0.4))
    assert [block.drop.rate for block in blocks(net)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_blocks_hold_no_norms_but_those_asked_for(norm: str) -> None:
    net = built(replace(SMALL, norm=norm))  # type: ignore[arg-type]
    kinds = {type(module) for module in net.modules() if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)}
    assert kinds == {nn.BatchNorm2d if norm == "batch" else nn.GroupNorm}


@pytest.mark.parametrize("init", ["fixup", "skipinit"])
def test_without_norms_there_are_none(init: str) -> None:
    net = built(replace(SMALL, norm="none", init=init))  # type: ignore[arg-type]
    assert not any(isinstance(module, nn.BatchNorm2d | nn.GroupNorm) for module in net.modules())


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet20", "blurred", "skipinit preact_basic"])
def test_evaluation_does_not_change_its_input(name: str) -> None:
    net, x = unsettled(built(ALL[name])), images()
    with torch.inference_mode():
        net(x)
    assert torch.equal(x, images())
