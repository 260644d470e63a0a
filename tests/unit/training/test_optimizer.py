"""The learning rate of each step, what is decayed, and the moving average."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from resflow.nets import create
from resflow.training import optimizer
from resflow.training.optimizer import learning_rate
from tests.unit.training.small import settings


def rates(steps: int = 40, **changes: object) -> list[float]:
    return [learning_rate(settings(lr=0.4, **changes), step, steps) for step in range(steps)]


# --- schedule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["triangular", "cosine", "step"])
def test_a_schedule_rises_in_a_straight_line_to_its_peak(schedule: str) -> None:
    made = rates(schedule=schedule)
    assert made[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert max(made) == pytest.approx(0.4)


def test_a_triangular_schedule_falls_in_a_straight_line_towards_zero() -> None:
    made = rates()
    assert np.allclose(np.diff(made[9:]), -0.4 / 31)
    assert made[-1] == pytest.approx(0.4 / 31)


def test_a_cosine_schedule_falls_in_half_a_cosine_towards_zero() -> None:
    made = rates(schedule="cosine")
    assert made[9:] == pytest.approx([0.2 * (1 + np.cos(np.pi * step / 31)) for step in range(31)])
    assert 0 < made[-1] < 0.002


def test_a_step_schedule_divides_by_ten_at_a_half_and_at_three_quarters() -> None:
    made = rates(schedule="step")
    assert made[9:] == pytest.approx([0.4] * 11 + [0.04] * 10 + [0.004] * 10)
    assert rates(schedule="step", warmup_fraction=0.0) == pytest.approx([0.4] * 20 + [0.04] * 10 + [0.004] * 10)


def test_a_constant_schedule_is_constant() -> None:
    assert set(rates(schedule="constant")) == {0.4}


def test_without_warm_up_training_starts_at_the_peak_or_one_step_below() -> None:
    for schedule in ("triangular", "cosine", "step", "constant"):
        assert 0.4 * 40 / 41 <= rates(schedule=schedule, warmup_fraction=0.0)[0] <= 0.4


@pytest.mark.parametrize("schedule", ["triangular", "cosine", "step", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.001, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
def test_no_rate_is_negative_or_beyond_the_peak(schedule: str, warmup: float, steps: int) -> None:
    assert all(0 < rate <= 0.4 + 1e-12 for rate in rates(steps, schedule=schedule, warmup_fraction=warmup))


# --- optimiser --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_weight_decay_spares_norms_and_biases(name: str) -> None:
    net = create("resnet8_max", in_channels=1, num_classes=3)
    groups = optimizer.make(net, settings(optimizer=name)).param_groups
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays.keys() == set(names.values())
    spared = {name for name, decay in decays.items() if decay == 0}
    assert all(decays[name] == 0.01 for name in decays.keys() - spared)
    assert spared == {name for name in decays if name.endswith(".bias") or "bn" in name or "downsample.1" in name}
    assert spared >= {"bn1.weight", "bn1.bias", "fc.bias"}


def test_sgd_moves_a_weight_as_nesterov_and_coupled_decay_say() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    made = optimizer.make(layer, settings(lr=0.1, momentum=0.5, weight_decay=0.2))
    weight, velocity = layer.weight.item(), 0.0
    for gradient in (1.0, -2.0, 0.5):
        layer.weight.grad = torch.full((1, 1), gradient)
        made.step()
        decayed = gradient + 0.2 * weight
        velocity = 0.5 * velocity + decayed
        weight -= 0.1 * (decayed + 0.5 * velocity)
        assert layer.weight.item() == pytest.approx(weight, abs=1e-6)


def test_adamw_moves_a_weight_by_its_moments_and_decays_it_apart_from_them() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    made = optimizer.make(layer, settings(optimizer="adamw", lr=0.1, momentum=0.8, weight_decay=0.2))
    weight, first, second = layer.weight.item(), 0.0, 0.0
    for number, gradient in enumerate((1.0, -2.0, 0.5), 1):
        layer.weight.grad = torch.full((1, 1), gradient)
        made.step()
        first, second = 0.8 * first + 0.2 * gradient, 0.999 * second + 0.001 * gradient**2
        mean, spread = first / (1 - 0.8**number), second / (1 - 0.999**number)
        weight -= 0.1 * 0.2 * weight + 0.1 * mean / (spread**0.5 + 1e-8)
        assert layer.weight.item() == pytest.approx(weight, abs=1e-5)


def test_without_momentum_sgd_takes_the_gradient_as_it_is() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    made = optimizer.make(layer, settings(lr=0.1, momentum=0.0, weight_decay=0.0))
    before = layer.weight.item()
    layer.weight.grad = torch.ones(1, 1)
    made.step()
    assert layer.weight.item() == pytest.approx(before - 0.1)


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (40, 2, 3, 3), (6, 3, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_filters_as_torch_does_matrices(
    shape: tuple[int, int, int, int], layout: torch.memory_format
) -> None:
    out, inputs, *size = shape
    layer = torch.nn.Conv2d(inputs, out, size, bias=False).to(memory_format=layout)  # type: ignore[call-overload]
    matrix = torch.nn.Parameter(layer.weight.detach().flatten(1).clone())
    made = optimizer.make(layer, settings(optimizer="muon", lr=0.1, momentum=0.8, weight_decay=0.2))
    wanted = torch.optim.Muon([matrix], lr=0.1, momentum=0.8, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        layer.weight.grad, matrix.grad = gradient.to(memory_format=layout), gradient.flatten(1)
        made.step()
        wanted.step()
    # it computes in bfloat16; an element moves by 0.02 a step, root mean square
    assert torch.allclose(layer.weight.flatten(1), matrix, atol=4e-3)


def test_an_orthogonalised_matrix_has_the_directions_of_the_given_one_and_lengths_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator) * 1e-3 for shape in ((6, 20), (20, 6), (6, 6), (3, 5))]
    for matrix, made in zip(given, optimizer.orthogonalised(given), strict=True):
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        lengths = left.mT @ made @ right.mT
        assert made.shape == matrix.shape
        assert torch.allclose(lengths, torch.diag(lengths.diag()), atol=1e-4)
        assert 0.6 < lengths.diag().min() < lengths.diag().max() < 1.3


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_step_computes_the_gradients_first_where_it_is_given_how(name: str) -> None:
    net, images = create("resnet8_max", in_channels=1, num_classes=3), torch.ones(2, 1, 8, 8)
    made = optimizer.make(net, settings(optimizer=name))
    before, losses = net.conv1.weight.detach().clone(), []

    def closure() -> float:
        loss = net(images).square().sum()
        loss.backward()
        losses.append(loss.item())
        return losses[0]

    assert made.step(closure) == losses[0]
    assert not torch.equal(net.conv1.weight, before)


def test_a_gradient_of_zeros_moves_no_filter() -> None:
    assert torch.equal(optimizer.orthogonalised([torch.zeros(2, 3)])[0], torch.zeros(2, 3))


def test_muon_leaves_filters_of_groups_to_adamw() -> None:
    net = torch.nn.Conv2d(4, 4, 3, groups=2, bias=False)
    copy_of_it = copy.deepcopy(net)
    for layer, name in ((net, "muon"), (copy_of_it, "adamw")):
        layer.weight.grad = torch.linspace(-1, 1, layer.weight.numel()).view_as(layer.weight)
        optimizer.make(layer, settings(optimizer=name)).step()
    assert torch.equal(net.weight, copy_of_it.weight)


def test_muon_leaves_filters_without_a_gradient_as_they_are() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Conv2d(2, 2, 3))
    net[0].weight.requires_grad_(False)
    before = [layer.weight.detach().clone() for layer in net]
    made = optimizer.make(net, settings(optimizer="muon"))
    net(torch.ones(1, 1, 6, 6)).sum().backward()
    made.step()
    assert [torch.equal(layer.weight, old) for layer, old in zip(net, before, strict=True)] == [True, False]


def test_muon_moves_all_but_filters_as_adamw_does() -> None:
    nets = [create("resnet8_max", in_channels=1, num_classes=3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    changes = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.2}
    for net, name in zip(nets, ("muon", "adamw"), strict=True):
        made = optimizer.make(net, settings(optimizer=name, **changes))
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            made.step()
    for (name, one), other in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other) == (one.ndim < 4), name


# --- moving average ---------------------------------------------------------------------------------------------------


def test_there_is_no_average_where_its_decay_is_zero() -> None:
    assert optimizer.average(torch.nn.Linear(1, 1), settings()) is None


def test_the_average_follows_weights_and_statistics_and_leaves_the_network_alone() -> None:
    net = torch.nn.BatchNorm1d(1)
    made = optimizer.average(net, settings(ema=0.75))
    assert made is not None
    wanted = 0.0
    for number, value in enumerate((2.0, 6.0, -2.0)):
        with torch.no_grad():
            net.weight.fill_(value)
            net.running_var.fill_(value)  # type: ignore[union-attr]
        before = copy.deepcopy(net.state_dict())
        made.update_parameters(net)
        wanted = value if number == 0 else 0.75 * wanted + 0.25 * value  # it begins with the first step's weights
        assert made.module.weight.item() == pytest.approx(wanted)
        assert made.module.running_var.item() == pytest.approx(wanted)
        assert all(torch.equal(net.state_dict()[name], kept) for name, kept in before.items())
