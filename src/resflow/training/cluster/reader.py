"""Parquet files read ahead by Ray Data: the `Read` of a `data.stream.Stream`.

    read = read_with_ray(place, index)
    for images, labels in read(pieces): ...

Files are read on the node of the worker that wants them, from its disk or the bucket, by tasks that reserve no CPU: a
cluster may have no more of them than workers. A few files at a time wait in Ray's object store, the shared memory whose
size bounds them. Ray runs already: starting it is `session`.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resflow.data import shards
from resflow.errors import ClusterError, DataError, ResflowError
from resflow.training.remote import BucketFolder

if TYPE_CHECKING:  # tasks load this module, and torch would be most of what they take
    from resflow.data.idx import Bytes
    from resflow.data.shards import Index
    from resflow.data.stream import Piece, Read

__all__ = ["cause", "read_with_ray", "store_bytes"]

AHEAD = 4
"""Files that Ray Data may keep in the object store, by its own count."""
STORE_FILES = 10
"""Files of each worker that the object store has room for: with that count of 4, Ray Data 2.60 was seen to keep 8."""
LEAST_STORE = 80 << 20
"""Bytes of an object store with which Ray starts; its own limit is 75 MiB."""
TASKS = 2
"""Files that a worker has read at a time."""


def store_bytes(file_bytes: int, workers: int) -> int:
    """Bytes for the object store of a machine on which so many workers read."""
    return max(LEAST_STORE, STORE_FILES * workers * file_bytes)


def read_with_ray(place: Path | BucketFolder, index: Index) -> Read:
    """A function that reads pieces of the files in `place`, which `index` lists.

    Raises `DataError` for a file that is missing or not the one listed, and `ClusterError` when Ray fails.
    """

    digests = {shard.name: shard.sha256 for shard in index.shards}

    def read(pieces: Sequence[Piece]) -> Iterator[tuple[Bytes, Bytes]]:
        import ray
        from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
        from ray.exceptions import RayError

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it tells is raised, too
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.raise_original_map_exception = True
        context.execution_options.preserve_order = True
        limits = ExecutionResources.for_limits(object_store_memory=AHEAD * index.file_bytes)
        context.execution_options.resource_limits = limits
        try:
            node = ray.get_runtime_context().get_node_id()
            rows = [{**piece._asdict(), "sha256": digests[piece.name]} for piece in pieces]
            named = ray.data.from_items(rows, override_num_blocks=len(pieces))
            tables = named.map_batches(
                partial(_load, place=place, shape=index.shape),
                batch_size=None,
                num_cpus=0,
                compute=TaskPoolStrategy(size=min(TASKS, len(pieces))),
                label_selector={"ray.io/node-id": node},
            )
            for table in tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
                yield shards.pixels(table, index.shape)
        except RayError as error:
            raise cause("Ray Data", error) from error

    return read


def _load(batch: dict[str, Any], place: Path | BucketFolder, shape: tuple[int, int, int]) -> Any:
    """What a task does: one piece, named by a batch of one row, as a table.

    The file's SHA-256 is compared each time, as the run is known by it: that takes a few ms of the tens of a task, and
    no file need be read for it alone.
    """
    (name,), (start,), (stop,), (digest,) = batch["name"], batch["start"], batch["stop"], batch["sha256"]
    where, missing, damaged = f"{place}/{name}", shards.ANEW, shards.ANEW
    if isinstance(place, BucketFolder):
        missing = "Run again: what is missing there is sent anew"
        damaged = "Delete it in the store and run again: it is sent anew"
    try:
        content = (place / name).read_bytes() if isinstance(place, Path) else place.read(name)
    except FileNotFoundError as error:
        raise DataError(where, "is missing", missing) from error
    except OSError as error:  # of a disk: those of the store are ours
        raise DataError(where, f"cannot be read ({error.strerror})", damaged) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(where, f"is damaged: its SHA-256 is not the one in {shards.INDEX}", damaged)
    return shards.read(io.BytesIO(content), where, int(start), int(stop), shape)


def cause(engine: str, error: BaseException, *below: BaseException) -> ResflowError:
    """The error of resflow that Ray wrapped into `error`, or into one of those `below` it, else a summary of Ray's."""
    for wrapped in (*below, error):
        if found := _ours(wrapped):
            return found
    last = (str(error).strip() or type(error).__name__).splitlines()[-1]
    mend = "Look into Ray's logs, /tmp/ray/session_latest/logs; run it again to go on"
    return ClusterError("train", f"{engine} gave up ({last})", mend)


def _ours(error: BaseException) -> ResflowError | None:
    from ray.exceptions import RayError

    if isinstance(error, ResflowError) and not isinstance(error, RayError):
        return error  # what a task raised is of both kinds and reads as Ray's traceback; its cause is ours
    links = (getattr(error, "cause", None), error.__cause__)  # the former is Ray's own
    return next((found for link in links if isinstance(link, BaseException) and (found := _ours(link))), None)
