"""Where torch computes, and by which algorithms."""

import pytest
import torch

from resflow import compute
from resflow.errors import TrainingError


def test_auto_is_the_gpu_where_there_is_one():
    assert compute.device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert compute.device("cpu") == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is found here")
def test_a_gpu_that_is_not_here_is_refused_but_for_measuring_what_a_cluster_has_trained():
    with pytest.raises(TrainingError, match="is cuda, but no GPU is found"):
        compute.device("cuda")
    assert [compute.measuring_device(wanted) for wanted in ("cuda", "auto", "cpu")] == ["cpu"] * 3


def fail():
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.allow_tf32, "float32 would not be float32 on a GPU"
    raise KeyError(torch.get_num_threads())


def test_threads_and_determinism_are_given_back_also_after_an_error():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    tensor_float = torch.backends.cudnn.allow_tf32
    filled = torch.utils.deterministic.fill_uninitialized_memory
    with pytest.raises(KeyError, match=str(before[0] + 1)), compute.deterministic(before[0] + 1):
        fail()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert torch.utils.deterministic.fill_uninitialized_memory == filled
    assert torch.backends.cudnn.allow_tf32 == tensor_float
