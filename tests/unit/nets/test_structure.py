"""Structures: what does not go together, and what does not fit, is one error that says how to mend it."""

from __future__ import annotations

from typing import Any

import pytest

from resflow.errors import NetError
from resflow.nets import Structure, altered, check_fits
from resflow.nets.table import STRUCTURES


def refusal(**fields: Any) -> str:
    with pytest.raises(NetError) as caught:
        Structure(**{"blocks": (1, 1), "widths": (8, 16), **fields})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"activation": "rleu"}, "net.activation: is unknown: 'rleu'. Known: relu"),
        ({"block": "dense"}, "net.block: is unknown: 'dense'"),
        ({"blocks": (1, 1, 1)}, "net.blocks: has 3 stages, but net.widths has 2. Give one number a stage to both"),
        ({"blocks": (0, 1)}, "net.blocks: is (0, 1). Give whole numbers from 1 up"),
        ({"widths": ()}, "net.widths: is (). Give whole numbers from 1 up"),
        ({"stem_width": 0}, "net.stem_width: is 0. Give whole numbers from 1 up"),
        ({"se": -1}, "net.se: is -1"),
        ({"stochastic_depth": 1.0}, "net.stochastic_depth: is 1.0"),
        ({"groups": 2}, "net.groups: is 2, which only bottlenecks have. Set it to 1, or net.block to bottleneck"),
        ({"inner": 2}, "net.inner: is 2, which only bottlenecks have"),
        ({"block": "bottleneck", "groups": 3}, "net.groups: is 3, which does not divide the 8 channels of a stage"),
        ({"shortcut": "A", "widths": (16, 8)}, "net.shortcut: is A, which pads with zeros and cannot narrow 16 to 16"),
        ({"shortcut": "A", "stem_width": 32}, "net.shortcut: is A, which pads with zeros and cannot narrow 32 to 8"),
        ({"norm": "none"}, "net.init: is he, which does not train without norms. Set net.init to fixup or skipinit"),
        ({"init": "fixup"}, "net.init: is fixup, which stands in for norms. Set net.norm to none"),
        ({"block": "preact_basic", "init": "zero_norm"}, "net.init: is zero_norm, but preact_basic ends in no norm"),
        ({"block": "plain", "init": "zero_norm"}, "net.init: is zero_norm, which closes all but the shortcuts"),
        ({"block": "plain", "norm": "none", "init": "fixup"}, "net.init: is fixup, which closes all but the shortcuts"),
        ({"block": "plain", "stochastic_depth": 0.1}, "net.stochastic_depth: needs shortcuts to pass by"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_named_with_what_to_do(fields: dict[str, Any], said: str) -> None:
    assert said in refusal(**fields)


def test_a_name_can_be_changed_in_some_fields() -> None:
    made = altered("resnet20", {"activation": "silu", "blocks": (1, 1, 1)})
    assert isinstance(made, Structure)
    assert (made.activation, made.blocks, made.shortcut) == ("silu", (1, 1, 1), "A")


def test_a_change_that_changes_nothing_leaves_the_name() -> None:
    assert altered("resnet20", {}) == altered("resnet20", {"shortcut": "A"}) == "resnet20"


def test_the_network_of_the_article_has_no_parts_to_change() -> None:
    assert altered("article_cnn", {}) == "article_cnn"
    with pytest.raises(NetError, match=r"net.norm: is given, but article_cnn has no such part. Set it to null"):
        altered("article_cnn", {"norm": "group"})


@pytest.mark.parametrize(
    ("name", "least"),
    # by hand: each side is halved, rounded up, and must be 2 before the last time
    [("resnet8_avg", 6), ("resnet8_max", 9), ("resnet20", 3), ("resnet18", 17), ("resnet50d", 17), ("article_cnn", 8)],
)
def test_an_image_too_small_for_the_strides_is_told_how_large_it_must_be(name: str, least: int) -> None:
    check_fits(name, least, least)
    with pytest.raises(
        NetError,
        match=rf"^net[.a-z]*: {name} halves .* which {least - 1}x99 ones do not bear.*at least {least}x{least} pixels",
    ):
        check_fits(name, least - 1, 99)


def test_a_large_stem_on_small_images_is_told_of_the_small_ones() -> None:
    with pytest.raises(
        NetError, match=r"halves images 5 times, which 12x12 ones do not bear.*net.stem for small images"
    ):
        check_fits("resnet50", 12, 12)


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_fits_images_of_28_pixels(name: str) -> None:
    check_fits(name, 28, 28)
