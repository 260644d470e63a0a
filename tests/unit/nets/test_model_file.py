"""Model files: the same network as the same bytes, and one error for a file that is no model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from resflow.errors import DataError
from resflow.nets.file import ModelCard, load, save

CARD = ModelCard(
    structure="resnet8_avg",
    image_shape=(28, 28, 1),
    classes=tuple("0123456789"),
    mean=(0.13066,),
    std=(0.308108,),
)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = CARD.network()
    net(torch.rand(8, 1, 28, 28))  # so that the norms have statistics
    return net.eval()


def test_a_network_comes_back_with_its_card_and_the_same_answers(net: nn.Module, tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", net.state_dict(), CARD)
    again, card = load(tmp_path / "model.safetensors")
    x = torch.rand(4, 1, 28, 28).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        same = net.to(memory_format=torch.channels_last)(x)  # type: ignore[call-overload]
        assert torch.equal(again(x), same)
    assert card == CARD
    assert not again.training


def test_the_same_network_is_the_same_bytes(net: nn.Module, tmp_path: Path) -> None:
    state = net.state_dict()
    shuffled = {name: state[name].clone(memory_format=torch.contiguous_format) for name in reversed(state)}
    save(tmp_path / "a", state, CARD)
    save(tmp_path / "b", shuffled, CARD)
    again, card = load(tmp_path / "a")
    save(tmp_path / "c", again.state_dict(), card)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_truncated_file_is_one_error(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, net.state_dict(), CARD)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="is not a whole safetensors file") as raised:
        load(path)
    assert raised.value.where == str(path)


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such model"):
        load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"resflow": "{"},
        {"resflow": "[]"},
        {"resflow": json.dumps({"structure": "resnet8_avg"})},
        {"resflow": json.dumps({**vars(CARD), "colour": "red"})},
        {"resflow": json.dumps({**vars(CARD), "structure": "resnet20"})},
        {"resflow": json.dumps({**vars(CARD), "classes": ["a", "b"]})},
    ],
)
def test_a_file_whose_card_or_weights_do_not_fit_is_one_error(
    net: nn.Module, tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path, metadata)
    with pytest.raises(DataError, match="is not a model of this resflow"):
        load(path)
