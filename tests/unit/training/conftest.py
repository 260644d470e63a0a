from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Training sets torch's threads and determinism for the whole process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two contend for small tensors on a busy machine
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
