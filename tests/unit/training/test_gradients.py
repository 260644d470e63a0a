"""What one batch gives: losses, accumulated pieces, and shards summed in their order."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resflow.data.augment import Batch
from resflow.nets import create
from resflow.training.gradients import Sharded, Shared, gradients
from tests.unit.training.small import settings

IMAGES = torch.randn(16, 1, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 3
MIXED = F.softmax(torch.randn(16, 3, generator=torch.Generator().manual_seed(1)), 1)


def part(number: int, parts: int, targets: Tensor = LABELS) -> Batch:
    mine = slice(number * 16 // parts, (number + 1) * 16 // parts)
    return Batch(IMAGES[mine], targets[mine])


def plain() -> nn.Module:
    """A network in which images do not meet: no batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 20), nn.ReLU(), nn.Linear(20, 3))


def residual() -> nn.Module:
    torch.manual_seed(0)
    return create("resnet8_avg", in_channels=1, num_classes=3).train()


def compute(net: nn.Module, **changes: Any) -> Shared | Sharded:
    return gradients(net, settings(**changes), seed=3, rank=0, world=1)


def grads(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def close(ones: list[Tensor], others: list[Tensor], tolerance: float = 1e-5) -> bool:
    return all(torch.allclose(one, other, atol=tolerance) for one, other in zip(ones, others, strict=True))


# --- a whole batch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("targets", [LABELS, MIXED], ids=["labels", "mixtures"])
def test_the_loss_is_the_cross_entropy_with_the_smoothed_target(smoothing: float, targets: Tensor) -> None:
    net = plain()
    sums = compute(net, label_smoothing=smoothing).run(partial(part, targets=targets), 0)
    found = grads(net)
    wanted_target = F.one_hot(targets, 3).float() if targets.ndim == 1 else targets
    wanted_target = (1 - smoothing) * wanted_target + smoothing / 3
    net.zero_grad()
    logits = net(IMAGES)
    wanted = -(wanted_target * logits.log_softmax(1)).sum(1).mean()
    wanted.backward()
    assert close(found, grads(net))
    assert sums[0].item() == pytest.approx(16 * wanted.item(), rel=1e-5)
    assert sums[1].item() == (logits.argmax(1) == wanted_target.argmax(1)).sum(), "right is the greater share"
    assert sums[2].item() == 16


@pytest.mark.parametrize("pieces", [2, 4, 16])
def test_accumulated_pieces_give_the_gradient_of_the_whole_batch(pieces: int) -> None:
    whole, taken = plain(), plain()
    wanted = compute(whole).run(part, 0)
    assert torch.allclose(compute(taken, accumulate=pieces).run(part, 0), wanted, rtol=1e-5)
    assert close(grads(taken), grads(whole))


def test_a_step_starts_from_no_gradient() -> None:
    net = plain()
    made = compute(net)
    made.run(part, 0)
    first = grads(net)
    made.run(part, 1)
    assert close(grads(net), first, 0.0)


def test_bfloat16_computes_in_bfloat16_and_keeps_weights_gradients_and_loss_in_float32() -> None:
    exact, rough = residual(), residual()
    seen: list[torch.dtype] = []
    rough.conv1.register_forward_hook(lambda module, given, made: seen.append(made.dtype))  # type: ignore[union-attr]
    wanted, sums = compute(exact).run(part, 0), compute(rough, precision="bfloat16").run(part, 0)
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in rough.parameters()} == {g.dtype for g in grads(rough)} == {torch.float32}
    assert sums.dtype == torch.float64
    assert sums[0] != wanted[0]
    assert sums[0].item() == pytest.approx(wanted[0].item(), rel=0.05)


# --- chance -----------------------------------------------------------------------------------------------------------


def dropped(**changes: Any) -> Any:
    """Gradients of a network with dropout for a step, whatever was drawn before."""
    net = nn.Sequential(plain(), nn.Dropout(0.5)).train()
    made = compute(net, **changes)

    def of(step: int) -> list[Tensor]:
        torch.rand(step + 1)
        made.run(part, step)
        return grads(net)

    return of


@pytest.mark.parametrize("shards", [0, 2, 4])
def test_dropout_draws_the_same_for_a_step_and_anew_for_another(shards: int) -> None:
    of, again = dropped(shards=shards), dropped(shards=shards)
    first = of(0)
    assert not close(of(1), first)
    assert close(again(1), of(1), 0.0)
    assert close(of(0), first, 0.0)


def test_each_shard_drops_its_own() -> None:
    """Shards of equal images would else have equal gradients."""
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    seen: list[Tensor] = []
    net.register_forward_hook(lambda module, given, made: seen.append(made != 0))
    trained = nn.Sequential(net, nn.Linear(144, 3)).train()
    compute(trained, shards=4).run(lambda number, parts: Batch(torch.ones(4, 1, 12, 12), LABELS[:4]), 0)
    assert len({mask.numpy().tobytes() for mask in seen}) == 4


# --- shards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_shards_of_a_network_without_batch_norm_give_the_gradient_of_the_whole_batch(shards: int) -> None:
    whole, taken = plain(), plain()
    wanted = compute(whole).run(part, 0)
    assert torch.allclose(compute(taken, shards=shards).run(part, 0), wanted, rtol=1e-5)
    assert close(grads(taken), grads(whole))


def test_gradients_and_running_statistics_are_the_means_of_the_shards() -> None:
    net, shards = residual(), 4
    made = compute(net, shards=shards)
    previous = {name: value.clone() for name, value in net.state_dict().items()}
    for step in range(3):
        alone: list[list[Tensor]] = []
        statistics: list[dict[str, Tensor]] = []
        for number in range(shards):
            one = copy.deepcopy(net)
            one.load_state_dict(previous)
            for module in one.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 1.0
            batch = part(number, shards)
            one.zero_grad()
            F.cross_entropy(one(batch.images), batch.targets, label_smoothing=0.1).backward()
            alone.append(grads(one))
            statistics.append(dict(one.named_buffers()))
        made.run(part, step)
        assert close(grads(net), [torch.stack(each).mean(0) for each in zip(*alone, strict=True)])
        for name, buffer in net.named_buffers():
            if "num_batches" in name:
                assert buffer.item() == step + 1, "counted once a step, however many shards"
            else:
                mean = torch.stack([each[name] for each in statistics]).mean(0)
                assert torch.allclose(buffer, 0.9 * previous[name] + 0.1 * mean, atol=1e-5)
        previous = {name: value.clone() for name, value in net.state_dict().items()}


def test_one_shard_is_the_whole_batch() -> None:
    whole, taken = residual(), residual()
    ones, others = compute(whole), compute(taken, shards=1)
    for step in range(2):
        assert torch.allclose(others.run(part, step), ones.run(part, step), rtol=1e-5)
    assert close(grads(taken), grads(whole))
    assert close(list(taken.buffers()), list(whole.buffers()))


def test_a_parameter_that_a_loss_does_not_reach_has_no_gradient_to_trip_over() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(144, 3), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x.flatten(1))  # type: ignore[no-any-return]

    net = Idle()
    compute(net, shards=2).run(part, 0)
    assert net.idle.weight.grad is not None
    assert not net.idle.weight.grad.any()
    assert net.used.weight.grad is not None
    assert net.used.weight.grad.any()


def test_more_workers_than_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="3 workers for 2 shards"):
        gradients(plain(), settings(shards=2), seed=0, rank=0, world=3)


@pytest.mark.parametrize("shards", [0, 4])
def test_sums_that_were_gathered_are_restored(shards: int) -> None:
    made = compute(plain(), shards=shards)
    sums = torch.tensor(np.arange(3.0))
    rows = made.gather(sums)
    assert rows.shape == (1, 3)
    restored = made.restore(rows)
    restored += 1
    assert torch.equal(made.gather(sums), rows), "a copy, which may be added to"
