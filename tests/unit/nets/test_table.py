"""The structures that have names: as large as their papers and their published weights say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from resflow import reference
from resflow.nets import create
from resflow.nets.cost import Cost, cost
from resflow.nets.table import FAMILIES, STRUCTURES

ROOT = Path(__file__).parents[3]
TORCHVISION = Path(__file__).parent / "torchvision"
PARAMETERS = {
    # He et al. 2016a, table 6, rounds these to 0.27M, 0.46M, 0.66M, 0.85M, 1.7M and 19.4M
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
    # without parameters in shortcuts, plain networks have as many: He et al. 2016a, section 4.2
    "plain20": 269_722,
    "plain110": 1_727_962,
    # He et al. 2016b, table 4, rounds these to 1.7M and 10.2M; pytorchcv's have exactly as many
    "preact_resnet164": 1_703_258,
    "preact_resnet1001": 10_327_706,
    # Zagoruyko and Komodakis 2016, table 4, rounds the second to 36.5M
    "wrn-16-4": 2_748_890,
    "wrn-28-10": 36_479_194,
    # torchvision's tables of models
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    # the numbers of resnet50 and, in each block of C channels out, 2 C C / 16 + C / 16 + C: Hu et al. 2018, equation 5
    "seresnet50": 28_088_024,
    # timm's table of models
    "resnet50d": 25_576_264,
}
MACS = {
    # in millions, as counted by the public tables of these structures
    "resnet20": 40.55,
    "resnet32": 68.86,
    "resnet44": 97.17,
    "resnet56": 125.5,
    "resnet110": 252.9,
    "resnet18": 1_814,
    "resnet34": 3_664,
    "resnet50": 4_089,
    "resnet101": 7_801,
    "resnet152": 11_514,
}


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    return {
        name: cost(name, image_shape=family.image_shape, num_classes=family.classes)
        for family in FAMILIES
        for name in family.structures
        if name in PARAMETERS
    }


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_a_named_structure_has_the_parameters_that_are_published(
    costs: dict[str, Cost], name: str, count: int
) -> None:  # fmt: skip
    assert costs[name].parameters == count


@pytest.mark.parametrize(("name", "millions"), MACS.items())
def test_a_named_structure_has_the_multiply_accumulates_that_are_published(
    costs: dict[str, Cost], name: str, millions: float
) -> None:
    assert costs[name].macs / 1e6 == pytest.approx(millions, rel=0.5e-3)  # which is how they are rounded


def listing(name: str) -> str:
    """Names and shapes of a state dict, one a line."""
    with torch.device("meta"):
        weights = create(name, in_channels=3, num_classes=1000).state_dict()
    return "".join(f"{key} {' '.join(map(str, value.shape))}".rstrip() + "\n" for key, value in weights.items())


@pytest.mark.parametrize("name", json.loads((TORCHVISION / "digests.json").read_text()))
def test_published_weights_of_torchvision_load_for_names_and_shapes_are_the_same(name: str) -> None:
    """`torchvision/` was written from torchvision's models; two listings stand there in full, to see a difference."""
    listed = TORCHVISION / f"{name}.txt"
    if listed.exists():
        assert listing(name) == listed.read_text()
    wanted = json.loads((TORCHVISION / "digests.json").read_text())[name]
    assert hashlib.sha256(listing(name).encode()).hexdigest() == wanted


def test_a_name_stands_in_one_family() -> None:
    assert len(STRUCTURES) == sum(len(family.structures) for family in FAMILIES)


def test_the_page_of_networks_has_the_figures_of_the_code() -> None:
    """Write the table anew: resflow nets --markdown."""
    page = (ROOT / "docs/networks.md").read_text()
    assert reference.networks_markdown(reference.networks()) in page
