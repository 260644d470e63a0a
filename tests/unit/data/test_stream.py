"""Which images stand in which batch of a stream: each once an epoch, whoever reads, and wherever it begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from resflow.data.idx import Bytes
from resflow.data.shards import Index, Shard
from resflow.data.stream import Piece, Stream

SHAPE = (128, 128, 1)
BATCH = 16
ROWS = [24, 24, 24, 24, 24, 24, 7]
"""Of the files; the last one is shorter."""
COUNT, STEPS = sum(ROWS), sum(ROWS) // BATCH
INDEX = Index(SHAPE, tuple(Shard(str(number), rows, 0, "") for number, rows in enumerate(ROWS)))
STARTS = np.cumsum([0, *ROWS])


class Files:
    """Reads the files, whose images are their numbers, and writes down what was read."""

    def __init__(self, block: int = 1000) -> None:
        self.pieces: list[Piece] = []
        self._block = block

    def __call__(self, pieces: Sequence[Piece]) -> Iterator[tuple[Bytes, Bytes]]:
        for piece in pieces:
            self.pieces.append(piece)
            numbers = np.arange(piece.start, piece.stop) + STARTS[int(piece.name)]
            for start in range(0, len(numbers), self._block):
                labels = numbers[start : start + self._block].astype(np.uint8)
                yield labels[:, None, None, None] + np.zeros(SHAPE, np.uint8), labels


def stream(read: Files | None = None, *, parts: Sequence[int] = (0,), whole: int = 1, **changes: Any) -> Stream:
    """Windows of four steps, as 1 MiB holds 64 images."""
    given: dict[str, Any] = {"batch_size": BATCH, "epochs": 3, "shuffle_mib": 1, "seed": 5, **changes}
    return Stream(INDEX, read or Files(), parts=parts, whole=whole, **given)


def taken(made: Stream, part: int = 0, whole: int = 1, epochs: int = 3, first: int = 0) -> list[list[int]]:
    """The labels of each batch from `first` on."""
    with closing(made):
        places = [divmod(number, STEPS) for number in range(first, epochs * STEPS)]
        return [made.take(epoch, step, part, whole)[1].tolist() for epoch, step in places]


def epoch(batches: list[list[int]], number: int) -> list[int]:
    return [label for batch in batches[number * STEPS : (number + 1) * STEPS] for label in batch]


def test_an_epoch_shows_each_image_once_but_for_those_that_do_not_fill_a_batch() -> None:
    found = taken(stream())
    for number in range(3):
        assert len(set(epoch(found, number))) == len(epoch(found, number)) == STEPS * BATCH
    assert set(epoch(found, 0)) | set(epoch(found, 1)) | set(epoch(found, 2)) == set(range(COUNT))
    assert epoch(found, 0) != epoch(found, 1)


def test_images_of_several_files_are_mixed() -> None:
    """The first window: 64 images of 24 a file."""
    files = {int(np.searchsorted(STARTS, label, "right")) for label in taken(stream())[0]}
    assert len(files) >= 3


def test_an_image_comes_with_its_own_label() -> None:
    with closing(stream()) as made:
        images, labels = made.take(1, 2, 0, 1)
    assert images.shape == (BATCH, *SHAPE)
    assert images[:, 7, 3, 0].tolist() == labels.tolist()


def test_the_order_is_that_of_the_seed() -> None:
    assert taken(stream()) == taken(stream())
    assert taken(stream(seed=6)) != taken(stream())


def test_a_stream_that_begins_anywhere_gives_the_same_batches() -> None:
    whole = taken(stream())
    for first in range(3 * STEPS):
        assert taken(stream(), first=first) == whole[first:]


def test_a_step_can_be_asked_for_twice() -> None:
    with closing(stream()) as made:
        assert made.take(0, 3, 0, 1)[1].tolist() == made.take(0, 3, 0, 1)[1].tolist()


@pytest.mark.parametrize("whole", [2, 4, 8])
def test_a_part_is_the_same_whoever_reads_the_others(whole: int) -> None:
    with closing(stream(parts=range(whole), whole=whole)) as made:
        together = [[made.take(0, step, part, whole)[1].tolist() for step in range(STEPS)] for part in range(whole)]
    for part in range(whole):
        assert taken(stream(parts=[part], whole=whole), part, whole, epochs=1) == together[part]
    seen = [label for batches in together for batch in batches for label in batch]
    assert len(set(seen)) == len(seen) == STEPS * BATCH


def test_a_part_of_another_worker_is_refused() -> None:
    with closing(stream(parts=[0, 1], whole=4)) as made:
        for part, whole in ((2, 4), (0, 2)):
            with pytest.raises(ValueError, match="is asked of a stream of parts"):
                made.take(0, 0, part, whole)


def test_a_file_is_read_once_an_epoch_but_where_two_parts_share_it() -> None:
    alone, parted = Files(), Files()
    taken(stream(alone), epochs=1)
    rows = sum(piece.rows for piece in alone.pieces if alone.pieces.index(piece) < len(ROWS))
    assert rows == STEPS * BATCH
    with closing(stream(parted, parts=range(4), whole=4, epochs=1)) as made:
        for step in range(STEPS):
            made.take(0, step, 3, 4)
    assert sum(piece.rows for piece in parted.pieces) == STEPS * BATCH
    assert len(parted.pieces) <= len(ROWS) + 3


def test_a_stream_that_begins_late_reads_nothing_of_what_came_before() -> None:
    files = Files()
    taken(stream(files, epochs=1), epochs=1, first=STEPS - 1)
    assert sum(piece.rows for piece in files.pieces) == STEPS % 4 * BATCH


def test_blocks_smaller_than_files_change_nothing() -> None:
    assert taken(stream(Files(block=5))) == taken(stream())


def test_a_window_holds_one_step_at_least() -> None:
    found = taken(stream(shuffle_mib=1, batch_size=COUNT), epochs=0, first=0)
    assert found == []
    with closing(stream(batch_size=COUNT)) as made:
        assert sorted(made.take(0, 0, 0, 1)[1].tolist()) == list(range(COUNT))


def test_what_fails_while_it_reads_ahead_is_raised_where_it_is_wanted() -> None:
    def read(pieces: Sequence[Piece]) -> Iterator[tuple[Bytes, Bytes]]:
        yield from Files()(pieces[:4])
        raise OSError("the disk is gone")

    with closing(Stream(INDEX, read, batch_size=BATCH, epochs=1, shuffle_mib=1, seed=0, parts=[0], whole=1)) as made:
        made.take(0, 0, 0, 1)
        with pytest.raises(OSError, match="the disk is gone"):
            made.take(0, 4, 0, 1)
