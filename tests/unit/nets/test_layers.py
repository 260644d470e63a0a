"""Layers against what their papers say, computed another way."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resflow.nets.layers import BlurPool, Layers, SqueezeExcitation, StochasticDepth
from tests.unit.nets.thin import SMALL


@pytest.mark.parametrize("side", [1, 2, 5, 8])
def test_blurring_is_a_triangle_filter_before_every_second_pixel(side: int) -> None:
    x = torch.randn(2, 3, side, side + 1)
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(line, line).expand(3, 1, 3, 3)
    wanted = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, stride=2, groups=3)
    assert torch.allclose(BlurPool()(x), wanted, atol=1e-6)


def test_excitation_weighs_each_channel_by_a_sigmoid_of_all_means() -> None:
    torch.manual_seed(0)
    layer, x = SqueezeExcitation(8, 4), torch.randn(2, 8, 3, 3)
    first, second = layer.fc1, layer.fc2
    means = x.mean((2, 3))
    hidden = (means @ first.weight.flatten(1).T + first.bias).clamp(min=0)
    weights = 1 / (1 + (-(hidden @ second.weight.flatten(1).T + second.bias)).exp())
    assert torch.allclose(layer(x), x * weights[:, :, None, None], atol=1e-6)
    assert first.out_channels == 2


def test_stochastic_depth_drops_whole_images_at_its_rate_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, x = StochasticDepth(0.3).train(), torch.ones(4000, 2, 1, 1)
    y = layer(x)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(y[:, 0], y[:, 1])
    assert (y[:, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_stochastic_depth_draws_from_the_seeded_generator_and_not_in_evaluation() -> None:
    layer, x = StochasticDepth(0.5).train(), torch.randn(64, 2, 1, 1)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(layer(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    before = torch.get_rng_state()
    assert layer.eval()(x) is x
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (64, 4), (48, 3), (8, 1), (17, 1), (50, 2), (70, 2)])
def test_group_norm_takes_16_channels_together_or_somewhat_more(channels: int, groups: int) -> None:
    norm = Layers(replace(SMALL, norm="group")).norm(channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


@pytest.mark.parametrize("side", [7, 8])
def test_an_average_in_the_shortcut_rounds_up_and_counts_no_padding(side: int) -> None:
    shortcut = Layers(replace(SMALL, downsample="average", shortcut="A")).shortcut(4, 4, 2)
    assert torch.equal(shortcut(torch.ones(1, 4, side, side)), torch.ones(1, 4, 4, 4))


HALVED = """
import torch
from resflow.nets.layers import Layers
from tests.unit.nets.thin import SMALL

torch.manual_seed(0)
for inputs in (1, 2, 3, 4, 8, 12, 15, 16, 24):
    for side in (12, 64):
        shortcut = Layers(SMALL).shortcut(inputs, 8, 2)
        exact, x = Layers(SMALL).shortcut(inputs, 8, 2).double(), torch.randn(16, inputs, side, side)
        exact.load_state_dict(shortcut.state_dict())
        wanted = exact(x.double())
        (wanted ** 3).mean().backward()
        shortcut.to(memory_format=torch.channels_last)
        for _ in range(20):
            shortcut.zero_grad()
            y = shortcut(x.to(memory_format=torch.channels_last))
            (y ** 3).mean().backward()
        for name, parameter in shortcut.named_parameters():
            torch.testing.assert_close(parameter.grad.double(), exact.get_parameter(name).grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(y.double(), wanted, rtol=1e-3, atol=1e-5)
"""


def test_a_convolution_in_the_shortcut_that_halves_has_the_right_gradients_however_few_its_channels() -> None:
    """In a process of its own: where oneDNN writes beyond its memory, that ends at some later moment."""
    done = subprocess.run([sys.executable, "-c", HALVED], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "at_minus_one"),
    [("relu", 0.0), ("leaky_relu", -0.01), ("silu", -0.268941), ("gelu", -0.158655), ("mish", -0.303401)],
)
def test_an_activation_is_the_one_of_its_name(name: str, at_minus_one: float) -> None:
    act = Layers(replace(SMALL, activation=name)).activation()  # type: ignore[arg-type]
    assert act(torch.tensor(-1.0)).item() == pytest.approx(at_minus_one, abs=1e-6)
