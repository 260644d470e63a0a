"""Model files: the same network as the same bytes, and one error for a file that is no model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from resflow.errors import DataError, NetError
from resflow.nets import Structure
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


def test_a_structure_without_a_name_comes_back_by_all_that_tells_it_from_others(tmp_path: Path) -> None:
    structure = Structure(block="preact_bottleneck", blocks=(1, 2), widths=(8, 16), se=4, norm="group", stem="deep")
    card = replace(CARD, structure=structure)
    net = card.network()
    save(tmp_path / "model.safetensors", net.state_dict(), card)
    again, found = load(tmp_path / "model.safetensors")
    assert found == card
    assert again.state_dict().keys() == net.state_dict().keys()


def test_a_file_that_names_its_structure_alone_or_counts_stages_from_0_still_loads(
    net: nn.Module, tmp_path: Path
) -> None:  # fmt: skip
    """As files were written before `Structure` and torchvision's names."""
    older = {
        re.sub(r"^layer(\d)", lambda one: f"stages.{int(one[1]) - 1}", key): v for key, v in net.state_dict().items()
    }
    assert "stages.0.0.conv1.weight" in older
    fields = {"classes": list("0123456789"), "image_shape": [28, 28, 1], "mean": [0.13066], "std": [0.308108]}
    save_file(older, tmp_path / "old.safetensors", {"resflow": json.dumps({**fields, "structure": "resnet8_avg"})})
    again, card = load(tmp_path / "old.safetensors")
    assert card == CARD
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in again.state_dict().items())


def test_a_card_of_images_too_small_for_its_structure_makes_no_network() -> None:
    with pytest.raises(NetError, match="halves images 5 times, which 12x12 ones do not bear"):
        replace(CARD, structure="resnet18", image_shape=(12, 12, 1)).network()


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
        {"resflow": json.dumps({**vars(CARD), "structure": "resnet21"})},
        {"resflow": json.dumps({**vars(CARD), "structure": {"blocks": [1, 1]}})},
        {"resflow": json.dumps({**vars(CARD), "structure": {"blocks": [1], "widths": [8], "norm": "layer"}})},
        {"resflow": json.dumps({**vars(CARD), "image_shape": [4, 4, 1]})},
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
