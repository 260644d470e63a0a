"""Training images that do not fit in memory: the order of an epoch, and the part of it that is held.

An epoch's files stand in an order drawn from the seed and the epoch, their images one behind the other. Part p of P of
its batches takes the p-th P-th of that row, one window of some steps after the other, and shuffles each window. Which
image stands in which part of which batch thus follows from the seed, the epoch, the step and P: not from who reads, nor
from where a run was interrupted, since any window can be read by itself.

How files are read, ahead of their use, is the `Read` given: `training.cluster.reader` does it with Ray Data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resflow.data.idx import Bytes
from resflow.data.shards import MIB, Index, Shard

__all__ = ["Piece", "Read", "Stream"]


CLOSE_SECONDS = 5.0
"""For a window that is being read when training ends early."""


class Piece(NamedTuple):
    """Some rows of one file."""

    name: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start


Read = Callable[[Sequence[Piece]], Iterator[tuple[Bytes, Bytes]]]
"""Gives the images and labels of the pieces, in their order, in blocks none of which holds rows of two."""


class Held(NamedTuple):
    """One window of one part, shuffled."""

    images: Bytes
    labels: NDArray[np.int64]


class Stream:
    """A `batches.Feed` that holds two windows of `parts`, one in use and one that is read meanwhile.

    `parts` are those of the `whole` that this worker takes of each batch. Windows of all parts together hold about
    `shuffle_mib` MiB of pixels, whoever holds them. `close` it when training ends.
    """

    def __init__(
        self,
        index: Index,
        read: Read,
        *,
        batch_size: int,
        epochs: int,
        shuffle_mib: int,
        seed: int,
        parts: Sequence[int],
        whole: int,
    ) -> None:
        self._index, self._read, self._seed, self._parts, self._whole = index, read, seed, list(parts), whole
        self._epochs, self._size = epochs, batch_size // whole
        self._steps = index.count // batch_size
        self._window = max(1, shuffle_mib * MIB // (math.prod(index.shape) * batch_size))
        self._held: tuple[tuple[int, int], dict[int, Held]] | None = None
        self._next: tuple[tuple[int, int], Future[dict[int, Held]]] | None = None
        self._windows: tuple[tuple[int, int], Generator[dict[int, Held]]] | None = None
        self._pool = ThreadPoolExecutor(1, "stream")

    @property
    def count(self) -> int:
        """Training images."""
        return self._index.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: height, width, channels."""
        return self._index.shape

    def take(self, epoch: int, step: int, part: int, parts: int) -> tuple[Tensor, NDArray[np.int64]]:
        """The images, uint8 (batch_size / parts, H, W, C) on the host, and labels of a part of a batch."""
        if parts != self._whole or part not in self._parts:
            raise ValueError(f"part {part} of {parts} is asked of a stream of parts {self._parts} of {self._whole}")
        images, labels = self._at(epoch, step // self._window)[part]
        rows = slice(step % self._window * self._size, (step % self._window + 1) * self._size)
        return torch.from_numpy(images[rows]), labels[rows]

    def close(self) -> None:
        """Read no further."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._next and not self._next[1].cancelled():
            wait([self._next[1]], CLOSE_SECONDS)
        if self._windows:
            with suppress(ValueError):  # it is still at work
                self._windows[1].close()

    def _at(self, epoch: int, window: int) -> dict[int, Held]:
        place = epoch, window
        if self._held is None or self._held[0] != place:
            if self._next is None or self._next[0] != place:
                self._ask(place)
            assert self._next
            self._held = place, self._next[1].result()
            self._next = None
            after = (epoch, window + 1) if (window + 1) * self._window < self._steps else (epoch + 1, 0)
            if after[0] < self._epochs:
                self._ask(after)
        return self._held[1]

    def _ask(self, place: tuple[int, int]) -> None:
        self._next = place, self._pool.submit(self._load, place)

    def _load(self, place: tuple[int, int]) -> dict[int, Held]:
        """In the pool's only thread: read on where the last window ended, or open an epoch at a window."""
        if self._windows is None or self._windows[0] != place:
            self._windows = place, self._open(*place)
        windows = self._windows[1]
        self._windows = (place[0], place[1] + 1), windows
        return next(windows)

    def _open(self, epoch: int, first: int) -> Generator[dict[int, Held]]:
        """The windows of an epoch from `first` on. Files are read once, but for those that two parts share."""
        order = _Order(self._index.shards, self._seed, epoch)
        edges = range(first * self._window, self._steps, self._window)
        plan = []
        for window, step in enumerate(edges, first):
            for part in self._parts:
                origin, end = part * self._steps, min(step + self._window, self._steps)
                rows = range((origin + step) * self._size, (origin + end) * self._size)
                limit = (origin + self._steps) * self._size
                plan.append((window, part, len(rows), order.pieces(rows, limit, opens=step == edges.start)))
        reading = _Reading(self._read([piece for *_, pieces in plan for piece in pieces]))
        held: dict[int, Held] = {}
        for window, part, count, pieces in plan:
            mixed = np.random.Generator(np.random.PCG64([self._seed, epoch, part, window + 1])).permutation(count)
            held[part] = reading.take(part, sum(piece.rows for piece in pieces), mixed, self.shape)
            if part == self._parts[-1]:
                yield held
                held = {}


class _Order:
    """The files of an epoch, one behind the other."""

    def __init__(self, shards: Sequence[Shard], seed: int, epoch: int) -> None:
        drawn = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(shards))
        self._shards = [shards[number] for number in drawn]
        self._edges = np.cumsum([0, *(shard.rows for shard in self._shards)]).tolist()

    def pieces(self, rows: range, limit: int, *, opens: bool) -> list[Piece]:
        """What to read for `rows` of the epoch: of each file that begins there, all rows up to `limit`.

        Of the file that began before only if this `opens` the reading: else it has been read already.
        """
        found = []
        for shard, start, stop in zip(self._shards, self._edges, self._edges[1:], strict=False):
            begins = start in rows or (opens and start < rows.start < stop)
            if begins:
                found.append(Piece(shard.name, max(rows.start, start) - start, min(stop, limit) - start))
        return found


class _Reading:
    """Rows that come in, dealt out to the parts; what was read of a file beyond a window waits for the next one."""

    def __init__(self, blocks: Iterator[tuple[Bytes, Bytes]]) -> None:
        self._blocks = blocks
        self._over: dict[int, list[tuple[Bytes, Bytes]]] = {}

    def take(self, part: int, fresh: int, places: NDArray[np.int64], shape: tuple[int, ...]) -> Held:
        """One window of `part`, each row at its place, of what waits and of the next `fresh` rows."""
        held = Held(np.empty((len(places), *shape), np.uint8), np.empty(len(places), np.int64))
        filled, over = 0, []
        for images, labels in self._waiting_and(part, fresh):
            count = min(len(labels), len(places) - filled)
            held.images[places[filled : filled + count]] = images[:count]
            held.labels[places[filled : filled + count]] = labels[:count]
            filled += count
            if count < len(labels):  # a copy: the block's own memory is the engine's, which wants it back
                over.append((images[count:].copy(), labels[count:].copy()))
        self._over[part] = over
        return held

    def _waiting_and(self, part: int, fresh: int) -> Iterator[tuple[Bytes, Bytes]]:
        yield from self._over.pop(part, [])
        while fresh:
            images, labels = next(self._blocks)
            fresh -= len(labels)
            yield images, labels
