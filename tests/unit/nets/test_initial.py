"""What weights start as."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
import torch
from torch import nn

from resflow.nets import Structure, create
from resflow.nets.blocks import Block
from tests.unit.nets.thin import images

WIDE = Structure(blocks=(2, 2), widths=(32, 64))


def built(structure: Structure) -> nn.Module:
    torch.manual_seed(0)
    return create(structure, in_channels=2, num_classes=7)


def blocks(net: nn.Module) -> list[Block]:
    return [module for module in net.modules() if isinstance(module, Block)]


def test_he_keeps_the_variance_of_gradients_by_fan_out() -> None:
    for block in blocks(built(WIDE)):
        for conv in block.convolutions():
            assert conv.weight.std().item() == pytest.approx(sqrt(2 / (9 * conv.out_channels)), rel=0.05)


def test_zero_norm_closes_each_branch_and_nothing_else() -> None:
    net = built(replace(WIDE, block="bottleneck", init="zero_norm"))
    closed = {name for name, parameter in net.named_parameters() if name.endswith("weight") and not parameter.any()}
    assert closed == {name for name, _ in net.named_parameters() if name.endswith("bn3.weight")}


def test_orthogonal_weights_keep_the_length_of_what_they_spread() -> None:
    net = built(replace(WIDE, init="orthogonal"))
    for block in blocks(net):
        for conv in block.convolutions():
            rows = conv.weight.flatten(1)
            assert torch.allclose(rows @ rows.T, 2 * torch.eye(len(rows)), atol=1e-4)


@pytest.mark.parametrize(("block", "layers"), [("basic", 2), ("preact_bottleneck", 3)])
def test_fixup_starts_classifier_and_branches_at_zero_and_scales_the_rest(block: str, layers: int) -> None:
    net = built(replace(WIDE, block=block, norm="none", init="fixup"))  # type: ignore[arg-type]
    with torch.no_grad():
        assert not net(images()).any()
    made = blocks(net)
    for one in made:
        *others, last = one.convolutions()
        assert len(others) == layers - 1
        assert not last.weight.any()
        for conv in others:
            fan_out = conv.out_channels * conv.kernel_size[0] ** 2
            wanted = sqrt(2 / fan_out) * len(made) ** (-1 / (2 * layers - 2))
            assert conv.weight.std().item() == pytest.approx(wanted, rel=0.08)


def test_skipinit_starts_with_the_shortcuts_alone() -> None:
    net = built(replace(WIDE, norm="none", init="skipinit"))
    block = blocks(net)[-1]
    x = torch.rand(2, 64, 4, 4)
    assert torch.equal(block(x), x)
