"""One worker's training, in plain torch and NumPy.

    state = train(net, training, validation, card, params.train, seed=0, device=torch.device("cpu"))

All that a run must remember is a `State`; `train` goes on from any one to the same bits. How a batch becomes gradients,
by one worker or many, is `gradients`; the learning rate and the optimiser are `optimizer`; keeping states on disk is
`checkpoint`; starting workers is `cluster`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from resflow.compute import fix_bits
from resflow.data.batches import Batches, to_input
from resflow.errors import TrainingError
from resflow.training import optimizer as optimizers
from resflow.training.adversary import Adversary
from resflow.training.gradients import gradients

if TYPE_CHECKING:
    from torch.optim.swa_utils import AveragedModel

    from resflow.data.arrays import Split
    from resflow.data.batches import Feed
    from resflow.nets.file import ModelCard
    from resflow.params import Train

__all__ = ["Epoch", "Keeper", "State", "prepare_torch", "train"]

MEETING_SECONDS, MEETING_STEPS = 0.5, 50
"""After so long, or at most so many steps, several workers ask anew whether it is time for a checkpoint, and it is seen
whether the loss is still a number. Asking is a message between them, and seeing makes a GPU wait."""
VALIDATION_BATCH, VALIDATION_PIXELS = 1000, 1000 * 64 * 64
"""Images a forward pass, and the most pixels that they may have; fixed, since bits depend on it."""


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
class State:
    """All that a run must remember, its tensors on the CPU. Chance needs no memory: it is seeded anew each step."""

    step: int = 0
    """Optimiser steps done."""
    history: list[Epoch] = field(default_factory=list)
    """The epochs that are done and validated."""
    sums: Tensor | None = None
    """Of the steps after those: loss, correct answers, images; float64 (workers, 3), or (1, 3) where all have them."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights after the epoch of the highest validation accuracy, the earliest of equals."""
    net: dict[str, Any] | None = None
    average: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None

    @property
    def best_epoch(self) -> Epoch:
        """The epoch whose weights `best` holds."""
        return max(self.history, key=lambda epoch: (epoch.validation_accuracy, -epoch.epoch))


class Keeper(Protocol):
    """Keeps checkpoints; the first worker's is asked."""

    def due_by_steps(self, step: int) -> bool:
        """Whether one is due after `step` steps, alike on all workers."""

    def due_by_time(self) -> bool:
        """Whether one is due because enough time has passed."""

    def stops(self) -> bool:
        """Whether one is due at once, since the run is to end early."""

    def keep(self, state: State) -> None:
        """Keep `state`, which nobody changes any more."""


class KeepsNothing:
    """For a run that need not survive."""

    def due_by_steps(self, step: int) -> bool:
        """Never."""
        return False

    def due_by_time(self) -> bool:
        """Never."""
        return False

    def stops(self) -> bool:
        """Never."""
        return False

    def keep(self, state: State) -> None:
        """Let it go."""


def prepare_torch(seed: int, threads: int) -> None:
    """Fix what the bits of the result depend on: the seed, the number of threads, and deterministic algorithms."""
    fix_bits(threads)
    torch.manual_seed(seed)


def train(
    net: nn.Module,
    training: Split | Feed,
    validation: Split,
    card: ModelCard,
    train: Train,
    *,
    seed: int,
    device: torch.device,
    state: State | None = None,
    keeper: Keeper = KeepsNothing(),  # noqa: B008  # it has no state
    rank: int = 0,
    world: int = 1,
    on_step: Callable[[int, Tensor], None] = lambda step, sums: None,
    on_epoch: Callable[[State], None] = lambda state: None,
) -> State:
    """Train `net` from `state` until `train.epochs` epochs are in its history; returns the last state.

    Several workers, `rank` of `world`, meet in the default process group of `torch.distributed`. `on_step` gets the
    number of steps done and the sums of `State.sums`, which this worker has; `on_epoch` each finished epoch's state.
    Raises `TrainingError` when the loss is no longer a number.
    """
    state = state or State()
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, average = optimizers.make(net, train), optimizers.average(net, train)
    _restore(state, net, average, optimizer)
    compute = gradients(net, train, seed=seed, rank=rank, world=world)
    batches = Batches(
        training, train, mean=card.mean, std=card.std, classes=len(card.classes), seed=seed, device=device
    )  # fmt: skip
    steps = _steps(batches, train)
    total = train.epochs * steps
    attacks = train.adversarial.epsilon > 0
    adversary = Adversary(card, train, seed=seed, total=total) if attacks else None
    step, history, best, kept = state.step, list(state.history), state.best, state.step
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    if state.sums is not None:
        sums = compute.restore(state.sums.to(device))

    def now(rows: Tensor | None) -> State:
        """A copy of everything, which costs a pass over the weights; the loop goes on while it is written."""
        return State(
            step=step,
            history=list(history),
            sums=None if rows is None else rows.cpu(),
            best=best,
            net=_copied(net.state_dict()),
            average=_copied(average.state_dict()) if average else None,
            optimizer=_copied(optimizer.state_dict()),
        )

    def keep(rows: Tensor) -> None:
        nonlocal kept
        kept = step
        if rank == 0:
            keeper.keep(now(rows))

    def rest(meetings: _Meetings, rows: Tensor) -> None:
        """Between batches of validation. Only a run that ends there is kept: a validation is begun anew."""
        if meetings.ask().stop:
            keep(rows)

    def check(what: str, value: float) -> None:
        if not math.isfinite(value):
            rate = optimizer.param_groups[0]["lr"]
            good = f"the last good checkpoint is that of step {kept}" if kept else "no checkpoint was kept before"
            problem = f"{what} is {value} after step {step} at lr {rate:.4g}; {good}"
            raise TrainingError("train", problem, "Lower train.lr")

    def gathered() -> Tensor:
        """The sums of all workers, once it is seen that they are numbers."""
        rows = compute.gather(sums)
        check("the loss", rows[:, 0].sum().item())
        return rows

    def whole() -> Tensor:
        """The same, once all else there is to keep is alike on all workers, and seen to be made of numbers."""
        rows = gathered()
        compute.align([net, average] if average else [net])
        check("the norm of the state", _norm(net, average, optimizer))
        return rows

    while len(history) < train.epochs:
        net.train()
        epoch, meetings = len(history), _Meetings(keeper, rank, world)
        for position in range(step - epoch * steps, steps):
            rate = optimizers.learning_rate(train, step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            get = partial(batches.get, epoch, position)
            sums += compute.run(adversary.against(net, get, step) if adversary else get, step)
            if train.clip_norm:
                nn.utils.clip_grad_norm_(net.parameters(), train.clip_norm)
            optimizer.step()
            if average:
                average.update_parameters(net)
            step += 1
            on_step(step, sums)
            # Here, and between batches of validation, all workers are at the same place and may meet.
            asked = meetings.ask(gathered)
            is_due = asked.due or keeper.due_by_steps(step)
            if asked.stop or (is_due and position + 1 < steps):  # the last step is kept with its validation
                keep(whole())
        rows = whole()
        weights = average.module if average else net
        pause = partial(rest, _Meetings(keeper, rank, world), rows)
        measured = _validate(weights, validation, card, train, device, rank, world, adversary, pause)
        check("the validation loss", measured[0])
        history.append(_epoch(epoch, optimizer.param_groups[0]["lr"], rows.sum(0), measured))
        if max(history, key=lambda one: one.validation_accuracy) is history[-1]:
            best = _copied(weights.state_dict())
        sums = torch.zeros_like(sums)
        state, kept = now(None), step
        if rank == 0:
            keeper.keep(state)
        on_epoch(state)
    return state


def _steps(batches: Batches, train: Train) -> int:
    if not batches.steps:
        problem = f"is {train.batch_size}, but the training split has {batches.count} images"
        raise TrainingError("train.batch_size", problem, "Lower it")
    return batches.steps


def _restore(
    state: State, net: nn.Module, average: AveragedModel | None, optimizer: torch.optim.Optimizer
) -> None:  # fmt: skip
    if state.net is None or state.optimizer is None:
        return
    net.load_state_dict(state.net)
    optimizer.load_state_dict(state.optimizer)
    if average and state.average is not None:
        average.load_state_dict(state.average)


def _copied(tree: Any) -> Any:
    """A state dict with its tensors copied to the CPU."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree


class _Asked(NamedTuple):
    due: bool
    """A checkpoint, by time."""
    stop: bool
    """The run is to end early."""


class _Meetings:
    """Asks the first worker's keeper, and gives all workers its answers, after the same steps or batches."""

    def __init__(self, keeper: Keeper, rank: int, world: int) -> None:
        self._keeper, self._rank, self._world = keeper, rank, world
        self._every = self._left = 1
        self._last = time.monotonic()

    def ask(self, look: Callable[[], object] = lambda: None) -> _Asked:
        """To be called after each step: one worker asks each time, several when they meet, and then `look` first."""
        self._left -= 1
        if self._left:
            return self._answer() if self._world == 1 else _Asked(due=False, stop=False)
        look()
        seconds, self._last = time.monotonic() - self._last, time.monotonic()
        fitting = int(self._every * MEETING_SECONDS / max(seconds, 1e-9))
        # no more than twice as far: steps that begin slowly, or get slower, are not those that were timed
        answer = [*self._answer(), max(1, min(fitting, 2 * self._every, MEETING_STEPS))]
        if self._world > 1:
            message = torch.tensor(answer, device=_meeting_device())
            dist.broadcast(message, 0)
            answer = message.tolist()
        due, stop, self._every = answer
        self._left = self._every
        return _Asked(bool(due), bool(stop))

    def _answer(self) -> _Asked:
        return _Asked(self._rank == 0 and self._keeper.due_by_time(), self._rank == 0 and self._keeper.stops())


def _meeting_device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _norm(net: nn.Module, average: AveragedModel | None, optimizer: torch.optim.Optimizer) -> float:
    """Of all numbers in a checkpoint. The loss of a step was computed before the step, which may have spoilt them."""
    states = [net.state_dict(), average.state_dict() if average else {}, *optimizer.state_dict()["state"].values()]
    values = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return nn.utils.get_total_norm([value for value in values if value.is_floating_point()]).item()


def _epoch(epoch: int, rate: float, sums: Tensor, validation: tuple[float, float]) -> Epoch:
    loss, correct, count = sums.tolist()
    return Epoch(
        epoch=epoch + 1,
        learning_rate=rate,
        train_loss=loss / count,
        train_accuracy=correct / count,
        validation_loss=validation[0],
        validation_accuracy=validation[1],
    )


def _validate(
    net: nn.Module,
    split: Split,
    card: ModelCard,
    train: Train,
    device: torch.device,
    rank: int,
    world: int,
    adversary: Adversary | None,
    pause: Callable[[], None],
) -> tuple[float, float]:
    """Mean loss and accuracy, the same for any number of workers: each takes whole batches, summed in their order.

    `pause` is called between them, as often by each worker.
    """
    net.eval()
    _, height, width, _ = split.images.shape
    count = max(1, min(VALIDATION_BATCH, VALIDATION_PIXELS // (height * width)))
    starts = range(0, len(split.labels), count)
    rows = torch.zeros(len(starts), 3, dtype=torch.float64, device=device)
    for first in range(0, len(starts), world):
        if (number := first + rank) < len(starts):
            part = slice(starts[number], starts[number] + count)
            rows[number] = _figures(net, split, part, card, train, device, adversary)
        if first + world < len(starts):
            pause()
    if world > 1:
        dist.all_reduce(rows)  # exact: all but one add zeros
    loss_sum, correct_sum, count = rows.sum(0).tolist()
    return loss_sum / count, correct_sum / count


@torch.inference_mode()
def _figures(
    net: nn.Module,
    split: Split,
    part: slice,
    card: ModelCard,
    train: Train,
    device: torch.device,
    adversary: Adversary | None,
) -> Tensor:
    """Of a batch: the sum of losses, correct answers and images, float64 (3,)."""
    inputs = to_input(split.images[part], card.mean, card.std, device)
    truth = torch.from_numpy(split.labels[part].astype(np.int64)).to(device)
    if adversary:
        inputs = adversary.validate(net, inputs, truth, part.start // (part.stop - part.start))
    with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
        logits = net(inputs)
    loss = F.cross_entropy(logits.float(), truth, reduction="none").double().sum()
    correct = (logits.argmax(1) == truth).double().sum()
    return torch.stack([loss, correct, torch.full_like(loss, len(truth))])
