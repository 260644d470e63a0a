"""The same training, by hand, by resflow and by others; one contender a process, called by `benchmarks.training`.

    python -m benchmarks.contenders bare FOLDER      # FOLDER holds prepared arrays; prints lines of JSON

All train the network of params.yaml for a few epochs with its batch size, precision, optimiser, learning rates and
shifts, and validate after each. The last line tells images per second, by the median of the epochs after the first
without start-up, and memory. With --turns one in this process also tells each epoch, and waits for a line before it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.processes import end, wait_until_started
from resflow import params, ports
from resflow.data import arrays
from resflow.nets import altered, create
from resflow.params import Checkpoint, Params
from resflow.processes import keep_memory
from resflow.training import optimizer

EPOCHS = 5
"""By default."""
MEAN, STD = 0.1307, 0.3081  # of MNIST; any will do for a speed


class Clock:
    """Seconds of each epoch, all that is done in it: `turn` is called before the first and after each."""

    def __init__(self, waits: bool = False) -> None:
        self.seconds: list[float] = []
        self._waits, self._began = waits, 0.0

    def turn(self) -> None:
        """End an epoch and begin the next: at once, or when a line comes in."""
        if self._began:
            self.seconds.append(time.perf_counter() - self._began)
        if self._waits:
            print(json.dumps({"seconds": self.seconds[-1:]}), flush=True)
            sys.stdin.readline()
        self._began = time.perf_counter()


class Data:
    """Batches as one would gather them by hand: indexed, shifted, normalised, channels-last."""

    def __init__(self, folder: Path, train: params.Train, rank: int = 0, world: int = 1) -> None:
        self.images, self.labels = (torch.from_numpy(np.array(part)) for part in arrays.load(folder, "train"))
        validation = arrays.load(folder, "validation")
        self.validation = self.inputs(torch.from_numpy(np.array(validation.images)).permute(0, 3, 1, 2))
        self.truth = torch.from_numpy(np.array(validation.labels)).long()
        self.train, self.rank, self.world = train, rank, world
        self.steps = len(self.labels) // train.batch_size

    def inputs(self, images: Tensor) -> Tensor:
        return ((images.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        shift, (height, width) = self.train.shift, self.images.shape[1:3]
        padded = F.pad(self.images[chosen].permute(0, 3, 1, 2), (shift,) * 4)
        down, right = torch.randint(0, 2 * shift + 1, (2, len(chosen)))
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        return self.inputs(windows[torch.arange(len(chosen)), :, down, right]), self.labels[chosen].long()

    def order(self) -> list[Tensor]:
        share = self.train.batch_size // self.world
        whole = torch.randperm(len(self.labels))[: self.steps * self.train.batch_size].view(self.steps, -1)
        return list(whole[:, self.rank * share : (self.rank + 1) * share])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self.batch, self.order())

    def rate(self, step: int) -> float:
        return optimizer.learning_rate(self.train, step, self.train.epochs * self.steps)


def network(settings: Params) -> nn.Module:
    net = create(altered(settings.net.name, settings.net.changes), in_channels=1, num_classes=10)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def bare(folder: Path, settings: Params, clock: Clock) -> list[float]:
    """A loop in plain torch: the limit."""
    return _bare(Data(folder, settings.train), settings, network(settings), clock)


def torchrun(folder: Path, settings: Params, clock: Clock) -> list[float]:
    """The bare loop, two processes of one thread, DistributedDataParallel; started by torchrun."""
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    data = Data(folder, settings.train, rank, world)
    seconds = _bare(data, settings, nn.parallel.DistributedDataParallel(network(settings)), clock)
    torch.distributed.destroy_process_group()
    return seconds


def _bare(data: Data, settings: Params, net: nn.Module, clock: Clock) -> list[float]:
    train, move, step = settings.train, optimizer.make(net, settings.train), 0
    bfloat16 = train.precision == "bfloat16"
    clock.turn()
    for _ in range(train.epochs):
        net.train()
        for images, labels in data:
            for group in move.param_groups:
                group["lr"] = data.rate(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = net(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=train.label_smoothing)
            move.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            move.step()
            step += 1
        net.eval()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            (net(data.validation).argmax(1) == data.truth).float().mean().item()
        clock.turn()
    return clock.seconds


def loop(folder: Path, settings: Params, clock: Clock) -> list[float]:
    """resflow's loop alone; with a checkpoint every so many steps if `checkpoint.steps` says so."""
    from resflow.training import loop as ours
    from resflow.training.checkpoint import Keeper, LocalFolder

    card = _card(settings)
    ours.prepare_torch(0, settings.train.threads)
    splits = (arrays.load(folder, "train"), arrays.load(folder, "validation"))
    keeper: Any = ours.KeepsNothing()
    if settings.checkpoint.steps:
        keeper = Keeper(
            LocalFolder(folder.parents[1] / "checkpoints"), device="cpu", steps=settings.checkpoint.steps, seconds=0
        )

    def ended(state: Any) -> None:
        if settings.checkpoint.steps:
            keeper.wait()  # else it would write in another's turn
        clock.turn()

    clock.turn()
    ours.train(
        card.network(),
        *splits,
        card,
        settings.train,
        seed=0,
        device=torch.device("cpu"),
        keeper=keeper,
        on_epoch=ended,
    )
    return clock.seconds


def ray(folder: Path, settings: Params, clock: Clock) -> list[float]:
    """resflow through Ray Train: in local mode, or on a Ray of this machine where there are several workers."""
    if settings.train.workers > (1, 1):
        return _fit(folder, settings, None)
    from resflow.training import loop as ours

    train = ours.train

    def clocked(*arguments: Any, on_epoch: Callable[..., None], **options: Any) -> Any:
        def ended(state: Any) -> None:
            on_epoch(state)
            options["keeper"].wait()  # else it would write in another's turn
            clock.turn()

        clock.turn()
        return train(*arguments, on_epoch=ended, **options)

    ours.train = clocked  # type: ignore[assignment]  # for the one call below
    _fit(folder, settings, None)
    return clock.seconds


def ray_on_cluster(folder: Path, settings: Params, clock: Clock) -> list[float]:
    """resflow through Ray Train on a cluster of this machine alone, also with one worker."""
    with _cluster() as address:
        return _fit(folder, settings, address)


def _fit(folder: Path, settings: Params, address: str | None) -> list[float]:
    from resflow.training.cluster.trainer import fit

    _, timings = fit(job(folder, settings), address, folder.parents[1] / "live")
    return [timing.seconds for timing in timings]


@contextmanager
def _cluster() -> Iterator[str]:
    """A cluster of one node, as `ray start` makes it; its address."""
    (port,) = ports.find_free(1)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(16))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--include-dashboard=false"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}"]
    with tempfile.NamedTemporaryFile() as log:
        head = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until_started(head, Path(log.name))
            yield f"127.0.0.1:{port}"
        finally:
            end(head)


def bare_on_ray(folder: Path, settings: Params, clock: Clock) -> list[float]:
    """The bare loop in a worker of Ray Train on a cluster of this machine: what Ray leaves to a loop."""

    def work() -> list[float]:
        torch.set_num_threads(settings.train.threads)
        torch.manual_seed(0)
        keep_memory()
        return bare(folder, settings, clock)

    with _cluster() as address:
        import ray  # not sooner: it then reads whether clusters ask for a token
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        ray.init(address, log_to_driver=False)
        trainer = TorchTrainer(
            work,  # type: ignore[arg-type]  # Ray's type leaves no room for the value, which it hands back
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=str(folder.parents[1] / "runs")),
        )
        seconds: list[float] = trainer.fit().return_value  # type: ignore[attr-defined]
        ray.shutdown()
        return seconds


def lightning(folder: Path, settings: Params, clock: Clock) -> list[float]:
    """PyTorch Lightning, fed by the bare loop's batches."""
    import logging
    import warnings

    import lightning as L

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data = Data(folder, settings.train)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(settings)

        def training_step(self, batch: Any, index: int) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self.net(images), labels, label_smoothing=settings.train.label_smoothing)

        def validation_step(self, batch: Any, index: int) -> None:
            images, labels = batch
            self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean(), batch_size=len(labels))

        def configure_optimizers(self) -> Any:
            move = optimizer.make(self.net, settings.train)
            schedule = torch.optim.lr_scheduler.LambdaLR(move, lambda step: data.rate(step) / settings.train.lr)
            return {"optimizer": move, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_train_start(self) -> None:
            clock.turn()

        def on_validation_end(self) -> None:
            clock.turn()

    trainer = L.Trainer(
        max_epochs=settings.train.epochs,
        accelerator="cpu",
        precision="bf16-mixed" if settings.train.precision == "bfloat16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    whole: Any = [(data.validation, data.truth)]
    validation = torch.utils.data.DataLoader(whole, batch_size=None)
    trainer.fit(Module(), _Sized(data), validation)
    return clock.seconds


def accelerate(folder: Path, settings: Params, clock: Clock) -> list[float]:
    """Hugging Face Accelerate, fed by the bare loop's batches."""
    from accelerate import Accelerator

    precision = "bf16" if settings.train.precision == "bfloat16" else "no"
    helper = Accelerator(cpu=True, mixed_precision=precision)
    data, net = Data(folder, settings.train), network(settings)
    move = optimizer.make(net, settings.train)
    schedule = torch.optim.lr_scheduler.LambdaLR(move, lambda step: data.rate(step) / settings.train.lr)
    net, move, schedule = helper.prepare(net, move, schedule)
    clock.turn()
    for _ in range(settings.train.epochs):
        net.train()
        for images, labels in data:
            with helper.accumulate(net):
                loss = F.cross_entropy(net(images), labels, label_smoothing=settings.train.label_smoothing)
                move.zero_grad()
                helper.backward(loss)
                move.step()
                schedule.step()
        net.eval()
        with torch.inference_mode():
            (net(data.validation).argmax(1) == data.truth).float().mean().item()
        clock.turn()
    return clock.seconds


class _Sized:
    """What Lightning takes for a loader."""

    def __init__(self, data: Data) -> None:
        self._data = data

    def __len__(self) -> int:
        return self._data.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._data)


def _card(settings: Params) -> Any:
    from resflow.nets.file import ModelCard

    classes = tuple("0123456789")
    structure = altered(settings.net.name, settings.net.changes)
    return ModelCard(structure=structure, image_shape=(28, 28, 1), classes=classes, mean=(MEAN,), std=(STD,))


def job(folder: Path, settings: Params) -> Any:
    """Training on the arrays in `folder`, which is ROOT/data/prepared; a new run in ROOT/runs for each process."""
    from resflow.stages.train import _arrays
    from resflow.training.job import Job

    return Job(
        train=settings.train,
        checkpoint=Checkpoint(steps=0, seconds=settings.checkpoint.seconds),
        seed=0,
        card=_card(settings),
        initial={},
        arrays=_arrays(folder.parents[1], settings.data.loader),
        loader=settings.data.loader,
        shuffle_mib=settings.data.shuffle_mib,
        runs=(folder.parents[1] / "runs").resolve(),
        name=f"bench-{os.getpid()}",
    )


CONTENDERS: dict[str, Callable[[Path, Params, Clock], list[float]]] = {
    function.__name__: function
    for function in (bare, torchrun, loop, ray, ray_on_cluster, bare_on_ray, lightning, accelerate)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--shards", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision")
    parser.add_argument("--loader", default="memory")
    parser.add_argument("--checkpoint-steps", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--turns", action="store_true")
    arguments = parser.parse_args()
    changes: dict[str, Any] = {"train.epochs": arguments.epochs, "train.num_workers": arguments.workers}
    changes |= {"train.shards": arguments.shards, "train.device": "cpu", "train.max_failures": 0}
    changes |= {"checkpoint.steps": arguments.checkpoint_steps, "data.loader": arguments.loader}
    given = {"train.threads": arguments.threads, "train.precision": arguments.precision}
    changes |= {key: value for key, value in given.items() if value}
    if arguments.turns:
        changes["checkpoint.seconds"] = 0  # waiting for a turn is no training
    tree = params.override(params.read(Path("params.yaml")), changes, "params.yaml")
    settings = params.parse(tree, "params.yaml")
    torch.set_num_threads(settings.train.threads)
    torch.manual_seed(0)
    in_workers = arguments.name in ("bare_on_ray", "ray_on_cluster") or (
        arguments.name == "ray" and arguments.workers > 1
    )
    peak = memory.watch_workers(arguments.workers) if in_workers else memory.own
    folder = arguments.folder.resolve()  # where workers stand is not here
    seconds = statistics.median(CONTENDERS[arguments.name](folder, settings, Clock(arguments.turns))[1:])
    steps = len(arrays.load(folder, "train").labels) // settings.train.batch_size
    if int(os.environ.get("RANK", 0)) == 0 and math.isfinite(seconds):
        images = steps * settings.train.batch_size
        print(json.dumps({"images": images, "images_per_second": images / seconds, "peak_mib": peak()}))


if __name__ == "__main__":
    main()
