"""Training against the worst case: each image is replaced by what PGD makes of it (Madry et al. 2018, equation 2.1).

    adversary = Adversary(card, params.train, seed=0, total=steps)
    get = adversary.against(net, get, step)     # gives batches as `get` does, attacked

Images meet the attack after augmentation. The attack itself is `resflow.nets.attack`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from resflow.nets.attack import on_pixels, pgd

if TYPE_CHECKING:
    from resflow.data.augment import Batch
    from resflow.nets.file import ModelCard
    from resflow.params import Train

__all__ = ["Adversary"]

TRAINING, VALIDATION = 1, 2
"""Tell the random numbers of an attack from all others that are drawn from the same seed."""


class Adversary:
    """Attacks batches as `train.adversarial` says. `total` is the run's number of steps."""

    def __init__(self, card: ModelCard, train: Train, *, seed: int, total: int) -> None:
        self._settings, self._precision, self._seed = train.adversarial, train.precision, seed
        self._pieces = train.accumulate
        self._mean, self._std = card.mean, card.std
        self._rising = train.adversarial.warmup_fraction * total

    def epsilon(self, step: int) -> float:
        """What the attack may change each pixel by at a step; it rises in a straight line to its full value."""
        return self._settings.epsilon * min(1.0, (step + 1) / max(1.0, self._rising))

    def against(self, net: nn.Module, get: Callable[[int, int], Batch], step: int) -> Callable[[int, int], Batch]:
        """Gives the same parts of a batch as `get`, attacked; a part's bits do not depend on who asks for it.

        It is attacked in the pieces that `train.accumulate` has it learnt in, each with its own batch statistics.
        """

        def attacked(part: int, parts: int) -> Batch:
            batch, epsilon = get(part, parts), self.epsilon(step)
            pieces = zip(batch.images.chunk(self._pieces), batch.targets.chunk(self._pieces), strict=True)
            with _still(net):
                worse = [
                    self._worse(net, images, targets, epsilon, (step, part, TRAINING, piece))
                    for piece, (images, targets) in enumerate(pieces)
                ]
            return batch._replace(images=torch.cat(worse))

        return attacked

    def validate(self, net: nn.Module, inputs: Tensor, truth: Tensor, number: int) -> Tensor:
        """The normalised images of batch `number` of validation at their worst, for a `net` in evaluation mode.

        It is the full attack from the first epoch on: what is kept is the epoch that stands it best.
        """
        with torch.inference_mode(False), torch.enable_grad():
            return self._worse(net, inputs.clone(), truth.clone(), self._settings.epsilon, (0, number, VALIDATION))

    def _worse(self, net: nn.Module, inputs: Tensor, targets: Tensor, epsilon: float, place: tuple[int, ...]) -> Tensor:
        scale = torch.tensor(self._std)[:, None, None].to(inputs.device, non_blocking=True)
        offset = torch.tensor(self._mean)[:, None, None].to(inputs.device, non_blocking=True)
        generator = torch.Generator()
        drawn = np.random.SeedSequence([self._seed, *place]).generate_state(1, np.uint64)[0]
        generator.manual_seed(int(drawn >> np.uint64(1)))
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            worse = pgd(
                on_pixels(net, self._mean, self._std),
                (inputs * scale + offset).clamp_(0, 1),
                targets,
                epsilon=epsilon,
                steps=self._settings.steps,
                step_size=self._settings.step_size * epsilon,
                generator=generator,
            )
        return ((worse - offset) / scale).contiguous(memory_format=torch.channels_last)


@contextmanager
def _still(net: nn.Module) -> Iterator[None]:
    """Within it, batch norms use the batch's own statistics and remember none, and nothing is dropped by chance.

    So the attack is on the function that the step then learns from, and running statistics hold what is learnt from,
    not what the attack passed on its way. They are not used: between the shards of a batch they hold another shard's.
    """
    norms = [norm for norm in net.modules() if isinstance(norm, BatchNorm) and norm.track_running_stats]
    was = net.training
    net.eval()
    for norm in norms:
        norm.train()
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        net.train(was)
