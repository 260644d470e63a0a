"""Weights to start from: files of both kinds, a new head for other classes, and one error for whatever does not fit."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from resflow.errors import DataError
from resflow.nets import create
from resflow.nets.file import ModelCard, save
from resflow.nets.weights import starting

CARD = ModelCard(
    structure="resnet8_avg", image_shape=(28, 28, 1), classes=("a", "b", "c"), mean=(0.1,), std=(0.3,)
)  # fmt: skip


def trained() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return create("resnet8_avg", in_channels=1, num_classes=3).state_dict()


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def pth(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def start(path: Path, **changes: Any) -> dict[str, Tensor]:
    return starting(path, digest(path), replace(CARD, **changes))


def refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        start(path, **changes)
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_state_dict_of_torch_a_safetensors_file_and_a_model_of_ours_are_read_alike(tmp_path: Path) -> None:
    weights = trained()
    save_file(weights, tmp_path / "weights.safetensors")
    save(tmp_path / "model.safetensors", weights, CARD)
    for path in (pth(tmp_path, weights), tmp_path / "weights.safetensors", tmp_path / "model.safetensors"):
        assert same(start(path), weights)


def test_the_last_layer_is_left_out_where_the_classes_are_others(tmp_path: Path) -> None:
    weights = trained()
    found = start(pth(tmp_path, weights), classes=("a", "b"))
    assert same(found, {key: value for key, value in weights.items() if not key.startswith("fc.")})


def test_weights_of_half_precision_become_those_of_the_network(tmp_path: Path) -> None:
    halved = {key: value.half() if value.is_floating_point() else value for key, value in trained().items()}
    assert {value.dtype for value in start(pth(tmp_path, halved)).values()} == {torch.float32, torch.int64}


def test_files_of_older_versions_of_torch_are_read_too(tmp_path: Path) -> None:
    """As the weights were published that torchvision had first."""
    weights, path = trained(), tmp_path / "weights.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    assert same(start(path), weights)


def test_older_names_and_missing_counts_of_batches_are_read_too(tmp_path: Path) -> None:
    weights = {key: value for key, value in trained().items() if "num_batches" not in key}
    older = {key.replace("layer1", "stages.0").replace("layer2", "stages.1"): value for key, value in weights.items()}
    older = {key.replace("layer3", "stages.2"): value for key, value in older.items()}
    assert "stages.2.0.conv1.weight" in older
    assert same(start(pth(tmp_path, older)), weights)


def test_weights_of_another_structure_are_told_by_their_keys(tmp_path: Path) -> None:
    said = refusal(pth(tmp_path, trained()), structure="resnet20")
    assert "does not fit the network of `net`: it lacks layer1.1.conv1.weight, layer1.1.bn1.weight" in said
    assert "; it has the unknown layer2.0.downsample.0.weight" in said
    assert "; shapes differ: conv1.weight is (16, 1, 4, 4), wanted (16, 1, 3, 3)" in said
    assert "more" in said
    assert said.endswith("Set `net` to the structure that the file is of, or give another file")


def test_weights_for_other_channels_are_told_by_their_shapes(tmp_path: Path) -> None:
    said = refusal(pth(tmp_path, trained()), image_shape=(28, 28, 3))
    assert "`net`: shapes differ: conv1.weight is (16, 1, 4, 4), wanted (16, 3, 4, 4). Set" in said


def test_a_file_that_is_not_the_pinned_one_is_refused_with_its_own_digest(tmp_path: Path) -> None:
    path = pth(tmp_path, trained())
    with pytest.raises(DataError, match=f"is not the file of train.init_sha256: its SHA-256 is {digest(path)}"):
        starting(path, "0" * 64, CARD)


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.pth: cannot be read \(No such file or directory\). Put the file there"):
        starting(tmp_path / "none.pth", "0" * 64, CARD)


class Harmful:
    """Whatever runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("harm",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Harmful(), "holds more than weights"),
        ({"epoch": 3, "state_dict": {}}, "holds no state dict, names and tensors, but epoch, state_dict"),
        ([1, 2], "holds no state dict, names and tensors, but list"),
    ],
    ids=["code", "a training's state", "a list"],
)
def test_a_file_that_holds_something_else_is_one_error_and_runs_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: Any, said: str
) -> None:
    assert said in refusal(pth(tmp_path, content))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_damaged_file_is_one_error(tmp_path: Path, name: str, kept: int) -> None:
    path = tmp_path / name
    save_file(trained(), path) if path.suffix == ".safetensors" else torch.save(trained(), path)
    path.write_bytes(path.read_bytes()[:kept])
    said = refusal(path)
    assert "is not a whole" in said or "is no file of torch's" in said
