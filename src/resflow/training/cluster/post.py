"""What the driver and the first worker of a run on a cluster tell each other: what to show, and that it is to end."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from resflow.training.display import INTERVAL, Display, Event
from resflow.training.stop import LEAVE_SECONDS

__all__ = ["Post", "joined"]


class Post:
    """The first worker's side: what it hands to `show` is shown by the driver, and it hears whether that is to end.

    Ray's own way, bringing all that workers print to the driver, brings its log too, and twice from shared hosts.
    """

    def __init__(self, box: Any) -> None:
        self._box, self._asked, self._last = box, False, 0.0

    def show(self, event: Event | str) -> None:
        """Have it shown. Pickled, so that the box's process need not import what it is made of."""
        self._hear(self._box.put.remote(pickle.dumps(event)))

    def asked(self) -> bool:
        """Whether the driver has been told to end, of which it is asked twice a second at most."""
        if time.monotonic() - self._last >= INTERVAL:
            self._hear(self._box.is_asked.remote())
        return self._asked

    def _hear(self, answer: Any) -> None:
        import ray

        self._asked = ray.get(answer) or self._asked  # the thread of checkpoints asks too, maybe sooner
        self._last = time.monotonic()

    def kept(self) -> NoReturn:
        """Let the driver end, and with it this worker."""
        import ray

        ray.get(self._box.keep.remote())
        while True:  # a step more would not be told of
            time.sleep(1)


@contextmanager
def joined(display: Display) -> Iterator[Post]:
    """Meanwhile, show on this machine what the first worker has to show; what ends it early waits for a checkpoint."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    box, over = _box().options(num_cpus=0, scheduling_strategy=here).remote(), threading.Event()

    def watch() -> None:
        try:
            while not over.is_set() and (event := pickle.loads(ray.get(box.get.remote()))) is not None:
                display.show(event)
        except RayError:
            return  # this node or its head is lost, of which whoever waits for the result hears too

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield Post(box)
    except (KeyboardInterrupt, SystemExit):
        with suppress(RayError):  # as in `watch`, or no checkpoint is kept in time
            ray.get(box.stop.remote(), timeout=LEAVE_SECONDS)
        raise
    finally:
        with suppress(RayError):  # as in `watch`
            ray.get(box.put.remote(pickle.dumps(None)), timeout=LEAVE_SECONDS)
        watcher.join(LEAVE_SECONDS)  # longer where nobody reads what is shown
        over.set()  # else it would have Ray start, or join a stranger's cluster, to ask for more
        ray.kill(box)


def _box() -> Any:
    """The actor between them. Its class is made here, so that its process gets it as it is and imports no torch."""
    import ray

    class Box:
        def __init__(self) -> None:
            self.events: asyncio.Queue[bytes] = asyncio.Queue()
            self.asked, self.trains, self.kept = False, False, asyncio.Event()

        async def put(self, event: bytes) -> bool:
            self.trains = True
            await self.events.put(event)
            return self.asked

        async def is_asked(self) -> bool:
            return self.asked

        async def get(self) -> bytes:
            return await self.events.get()

        async def stop(self) -> None:
            self.asked = True
            if self.trains:
                await self.kept.wait()

        async def keep(self) -> None:
            self.kept.set()

    return ray.remote(Box)
