"""The residual networks that have a name, by the paper that gave it; knows no torch.

`resflow nets` prints them with what they cost; docs/networks.md has that table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from resflow.nets.structure import Structure

__all__ = ["FAMILIES", "STRUCTURES", "Family"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Structures of one source, and the images that its figures are for."""

    source: str
    image_shape: tuple[int, int, int]
    """Height, width and channels."""
    classes: int
    structures: Mapping[str, Structure]


def _cifar(depth: int) -> Structure:
    """6n + 2 layers for 32x32 images."""
    return Structure(blocks=((depth - 2) // 6,) * 3, widths=(16, 32, 64), shortcut="A")


def _preact_cifar(depth: int) -> Structure:
    """As `_cifar`, but for the deepest: 9n + 2 layers in bottlenecks, with projections where sizes differ."""
    if depth <= 110:
        return replace(_cifar(depth), block="preact_basic")
    return Structure(block="preact_bottleneck", blocks=((depth - 2) // 9,) * 3, widths=(16, 32, 64))


def _wide(depth: int, widening: int) -> Structure:
    """WRN-depth-widening, of 6n + 4 layers."""
    widths = (16 * widening, 32 * widening, 64 * widening)
    return Structure(block="preact_basic", blocks=((depth - 4) // 6,) * 3, widths=widths, stem_width=16)


LARGE = Structure(blocks=(2, 2, 2, 2), widths=(64, 128, 256, 512), stem="conv7x7")
RESNET50 = replace(LARGE, block="bottleneck", blocks=(3, 4, 6, 3))
RESNET101 = replace(RESNET50, blocks=(3, 4, 23, 3))
IMAGENET = {
    "resnet18": LARGE,
    "resnet34": replace(LARGE, blocks=(3, 4, 6, 3)),
    "resnet50": RESNET50,
    "resnet101": RESNET101,
    "resnet152": replace(RESNET50, blocks=(3, 8, 36, 3)),
}
PREACT = {
    f"preact_{name}": replace(one, block="preact_basic" if one.block == "basic" else "preact_bottleneck")
    for name, one in IMAGENET.items()
}
SMALL = {
    "resnet8_max": Structure(blocks=(1, 1, 1), widths=(16, 32, 64), stem="patch5x5", pool="max"),
    "resnet8_avg": Structure(blocks=(1, 1, 1), widths=(16, 32, 64), stem="patch4x4"),
}

FAMILIES = (
    Family(source="resflow", image_shape=(28, 28, 1), classes=10, structures=SMALL),
    Family(
        source="He et al. 2016a, section 4.2, option A",
        image_shape=(32, 32, 3),
        classes=10,
        structures={f"resnet{depth}": _cifar(depth) for depth in (8, 20, 32, 44, 56, 110, 1202)},
    ),
    Family(
        source="He et al. 2016a, section 4.2, without shortcuts",
        image_shape=(32, 32, 3),
        classes=10,
        structures={f"plain{depth}": replace(_cifar(depth), block="plain") for depth in (8, 20, 32, 44, 56, 110)},
    ),
    Family(
        source="He et al. 2016b, table 3",
        image_shape=(32, 32, 3),
        classes=10,
        structures={f"preact_resnet{depth}": _preact_cifar(depth) for depth in (8, 20, 32, 44, 56, 110, 164, 1001)},
    ),
    Family(
        source="Zagoruyko and Komodakis 2016, table 1",
        image_shape=(32, 32, 3),
        classes=10,
        structures={"wrn-16-4": _wide(16, 4), "wrn-28-10": _wide(28, 10)},
    ),
    Family(
        source="He et al. 2016a, table 1; strides in the 3x3 convolutions",
        image_shape=(224, 224, 3),
        classes=1000,
        structures=IMAGENET,
    ),
    Family(source="He et al. 2016b, figure 4e", image_shape=(224, 224, 3), classes=1000, structures=PREACT),
    Family(
        source="Xie et al. 2017, table 1",
        image_shape=(224, 224, 3),
        classes=1000,
        structures={
            "resnext50_32x4d": replace(RESNET50, groups=32, inner=2),
            "resnext101_32x8d": replace(RESNET101, groups=32, inner=4),
        },
    ),
    Family(
        source="Zagoruyko and Komodakis 2016, table 8",
        image_shape=(224, 224, 3),
        classes=1000,
        structures={"wide_resnet50_2": replace(RESNET50, inner=2), "wide_resnet101_2": replace(RESNET101, inner=2)},
    ),
    Family(
        source="Hu et al. 2018, table 1",
        image_shape=(224, 224, 3),
        classes=1000,
        structures={"seresnet50": replace(RESNET50, se=16)},
    ),
    Family(
        source="He et al. 2019, figure 2 (ResNet-D)",
        image_shape=(224, 224, 3),
        classes=1000,
        structures={"resnet50d": replace(RESNET50, stem="deep", downsample="average")},
    ),
)
STRUCTURES = {name: one for family in FAMILIES for name, one in family.structures.items()}
