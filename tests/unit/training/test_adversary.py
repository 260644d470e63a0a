"""Training under attack: what each image becomes, what the attack leaves alone, and when it is as strong as asked."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch

from resflow.data.augment import Batch
from resflow.data.batches import Batches
from resflow.nets import create
from resflow.training import loop
from resflow.training.adversary import Adversary
from resflow.training.gradients import parts
from tests.unit.training.small import CARD, CPU, SETTINGS, TRAINING, differences, run, settings

EPSILON = 0.1


def hardened(**changes: Any) -> Any:
    given = {**SETTINGS["adversarial"], "epsilon": EPSILON, **changes.pop("adversarial", {})}
    return settings(adversarial=given, **changes)


def test_a_batch_is_changed_by_epsilon_at_most_to_a_greater_loss_and_the_network_not_at_all() -> None:
    train = hardened(adversarial={"steps": 5, "warmup_fraction": 0.0})
    loop.prepare_torch(0, 1)
    net = create("resnet8_avg", in_channels=1, num_classes=3).train()
    batches = Batches(TRAINING, train, mean=CARD.mean, std=CARD.std, classes=3, seed=0, device=CPU)
    get = partial(batches.get, 0, 0)
    before = copy.deepcopy(net.state_dict())
    clean, worse = get(0, 1), Adversary(CARD, train, seed=0, total=1).against(net, get, 0)(0, 1)
    assert differences(net.state_dict(), before) == []
    assert all(module.training for module in net.modules())
    change = (worse.images - clean.images).abs() * CARD.std[0]
    assert 0.9 * EPSILON < change.max() < EPSILON + 1e-5

    def loss(batch: Batch) -> float:
        return torch.nn.functional.cross_entropy(copy.deepcopy(net)(batch.images), batch.targets).item()

    assert loss(worse) > loss(clean)


def test_the_attack_rises_in_a_straight_line_to_its_full_strength() -> None:
    adversary = Adversary(CARD, hardened(adversarial={"warmup_fraction": 0.5}), seed=0, total=8)
    assert [adversary.epsilon(step) / EPSILON for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    at_once = Adversary(CARD, hardened(adversarial={"warmup_fraction": 0.0}), seed=0, total=8)
    assert at_once.epsilon(0) == EPSILON


def test_a_shard_is_attacked_alike_whichever_shards_were_computed_before_it() -> None:
    """Its bits may depend on no other shard's statistics, which a batch norm holds while shards are computed."""
    train = hardened(shards=4, shift=1)
    loop.prepare_torch(0, 1)
    net = create("resnet8_avg", in_channels=1, num_classes=3).train()
    batches = Batches(TRAINING, train, mean=CARD.mean, std=CARD.std, classes=3, seed=0, device=CPU)
    get = Adversary(CARD, train, seed=0, total=4).against(net, partial(batches.get, 0, 0), 0)
    alone = get(2, 4).images
    assert list(parts(train, 1, 2)) == [2, 3]
    net(get(0, 4).images)
    net(get(1, 4).images)
    assert torch.equal(get(2, 4).images, alone)
    assert not torch.equal(get(1, 4).images, alone)


def test_accumulated_pieces_are_attacked_as_they_are_learnt_each_by_its_own_statistics() -> None:
    loop.prepare_torch(0, 1)
    net = create("resnet8_avg", in_channels=1, num_classes=3).train()
    passed: list[int] = []
    net.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    train = hardened(accumulate=4, adversarial={"steps": 3, "warmup_fraction": 0.0})
    batches = Batches(TRAINING, train, mean=CARD.mean, std=CARD.std, classes=3, seed=0, device=CPU)
    whole = Adversary(CARD, train, seed=0, total=1).against(net, partial(batches.get, 0, 0), 0)(0, 1)
    piece = train.batch_size // 4
    assert set(passed) == {piece}, "else accumulating would save no memory"
    assert whole.images.is_contiguous(memory_format=torch.channels_last)

    def first(part: int, parts: int) -> Batch:
        return Batch(*(tensor[:piece] for tensor in batches.get(0, 0)))

    alone = Adversary(CARD, hardened(adversarial={"steps": 3, "warmup_fraction": 0.0}), seed=0, total=1)
    assert torch.equal(whole.images[:piece], alone.against(net, first, 0)(0, 1).images)


def test_what_is_validated_is_the_network_under_the_full_attack() -> None:
    hard = run(hardened(adversarial={"epsilon": 0.4, "steps": 5}, epochs=1, lr=1e-6))
    easy = run(settings(epochs=1, lr=1e-6))
    assert hard.history[0].validation_loss > easy.history[0].validation_loss
