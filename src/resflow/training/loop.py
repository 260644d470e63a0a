"""One worker's training, in plain torch and NumPy.

`train` runs the epochs that are left and hands each one's outcome to `on_epoch`; its whole state is a `Progress`, so
that a run stopped after any epoch goes on to the same bits. Several workers and machines are `cluster`'s business:
it wraps the network and sums the counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resflow.data.batches import Batches, to_input
from resflow.errors import TrainingError

if TYPE_CHECKING:
    from resflow.data.arrays import Split
    from resflow.nets.file import ModelCard
    from resflow.params import Train

__all__ = ["Epoch", "Progress", "learning_rate", "make_optimizer", "prepare_torch", "train"]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one pass over the training split gave. Losses are mean cross-entropy in nats, accuracies fractions."""

    epoch: int
    learning_rate: float
    """At the end of the epoch."""
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


@dataclass(kw_only=True)
class Progress:
    """All that a run must remember between epochs."""

    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights after the epoch of the highest validation accuracy, the earliest of equals; on the CPU."""
    net: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    generator: Tensor | None = None
    """State of torch's CPU generator, which dropout draws from."""

    @property
    def best_epoch(self) -> Epoch:
        """The epoch whose weights `best` holds."""
        return max(self.history, key=lambda epoch: (epoch.validation_accuracy, -epoch.epoch))


def prepare_torch(seed: int, threads: int) -> None:
    """Fix what the bits of the result depend on: the seed, the number of threads, and deterministic algorithms."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # No operation here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def learning_rate(train: Train, step: int, steps: int) -> float:
    """Learning rate of optimiser step `step` of `steps`, counted from 0."""
    if train.schedule == "constant":
        return train.lr
    peak = train.warmup_fraction * steps
    done = step + 1
    return train.lr * (done / peak if done < peak else (steps - step) / max(1.0, steps - peak + 1))


def make_optimizer(net: nn.Module, train: Train) -> torch.optim.Optimizer:
    """The fused optimiser that `train` names; weight decay spares norms and biases, which have one dimension."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if train.optimizer == "adam":
        return torch.optim.Adam(groups, lr=train.lr, betas=(train.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, nesterov=train.momentum > 0, fused=True)


def train(
    net: nn.Module,
    training: Split,
    validation: Split,
    card: ModelCard,
    train: Train,
    *,
    seed: int,
    device: torch.device,
    progress: Progress,
    rank: int = 0,
    world: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda net: net,
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums,
    on_step: Callable[[int], None] = lambda step: None,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Train `net` until `train.epochs` epochs stand in `progress.history`; returns `progress`, changed in place.

    `wrap` makes the network's gradients those of all `world` workers, `add_up` sums a float64 tensor over them.
    Raises `TrainingError` when the loss is no longer a number.
    """
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(net, train)
    if progress.net is not None and progress.optimizer is not None and progress.generator is not None:
        net.load_state_dict(progress.net)
        optimizer.load_state_dict(progress.optimizer)
        torch.set_rng_state(progress.generator)
    wrapped = wrap(net)
    batches = Batches(
        *training, batch_size=train.batch_size, shift=train.shift, seed=seed, rank=rank, world=world
    )  # fmt: skip
    if not batches.steps:
        problem = f"is {train.batch_size}, but the training split has {len(training.labels)} images"
        raise TrainingError("train.batch_size", problem, "Lower it")
    for number in range(len(progress.history), train.epochs):
        net.train()
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for step, (images, labels) in enumerate(batches.epoch(number)):
            rate = learning_rate(train, number * batches.steps + step, train.epochs * batches.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            inputs = to_input(images, card.mean, card.std, device)
            sums += _step(wrapped, optimizer, inputs, torch.from_numpy(labels).to(device), train)
            on_step(step)
        loss, correct, count = add_up(sums).tolist()
        if not math.isfinite(loss):
            raise TrainingError(
                "train", f"the loss is {loss} after epoch {number + 1} at lr {rate:.4g}", "Lower train.lr"
            )
        validation_loss, validation_accuracy = _validate(net, validation, card, train, device, rank, world, add_up)
        epoch = Epoch(
            epoch=number + 1,
            learning_rate=rate,
            train_loss=loss / count,
            train_accuracy=correct / count,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
        )
        _remember(progress, epoch, net, optimizer)
        on_epoch(progress)
    return progress


def _step(
    net: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, train: Train
) -> Tensor:  # fmt: skip
    """One optimiser step; returns the sum of losses, the correct answers and the images, float64 (3,)."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
        logits = net(inputs)
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, label_smoothing=train.label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    correct = (logits.argmax(1) == labels).sum()
    count = torch.tensor(len(labels), device=labels.device)
    return torch.stack([loss.detach().double() * count, correct.double(), count.double()])


@torch.inference_mode()
def _validate(
    net: nn.Module,
    split: Split,
    card: ModelCard,
    train: Train,
    device: torch.device,
    rank: int,
    world: int,
    add_up: Callable[[Tensor], Tensor],
) -> tuple[float, float]:
    """Mean loss and accuracy; each worker takes every `world`-th image, and counts are summed, so none counts twice."""
    net.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    images, labels = split.images[rank::world], split.labels[rank::world]
    for start in range(0, len(labels), 1000):
        inputs = to_input(images[start : start + 1000], card.mean, card.std, device)
        truth = torch.from_numpy(labels[start : start + 1000].astype(np.int64)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
            logits = net(inputs)
        loss = F.cross_entropy(logits.float(), truth, reduction="none").double().sum()
        correct = (logits.argmax(1) == truth).double().sum()
        sums += torch.stack([loss, correct, torch.tensor(len(truth), dtype=torch.float64, device=device)])
    loss_sum, correct_sum, count = add_up(sums).tolist()
    return loss_sum / count, correct_sum / count


def _remember(progress: Progress, epoch: Epoch, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in net.state_dict().items()}
    progress.history.append(epoch)
    progress.net, progress.optimizer = weights, optimizer.state_dict()
    progress.generator = torch.get_rng_state()
    if progress.best_epoch is epoch:
        progress.best = weights
