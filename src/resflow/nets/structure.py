"""What tells one residual network from another, checked; knows no torch, so that asking costs nothing.

    Structure(block="bottleneck", blocks=(3, 4, 6, 3), widths=(64, 128, 256, 512), stem="conv7x7", se=16)

The structures that have names are in `table`; networks are built of a structure in `resnet`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from resflow.errors import NetError

__all__ = ["EXPANSION", "STEMS", "Structure"]

EXPANSION = 4
"""Channels out of a bottleneck for each of its width: He et al. 2016a, table 1."""
STEMS = {
    "conv3x3": ((3, 1, 1),),
    "patch4x4": ((4, 2, 1),),
    "patch5x5": ((5, 2, 0),),
    "conv7x7": ((7, 2, 3), (3, 2, 1)),
    "deep": ((3, 2, 1), (3, 1, 1), (3, 1, 1), (3, 2, 1)),
}
"""Kernel, stride and padding of what each does one after the other; the last of the large ones is max-pooling."""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A residual network but for its channels in and classes out. Raises `NetError` for what does not go together.

    He et al. 2016a is "Deep Residual Learning for Image Recognition", 2016b is "Identity Mappings in Deep Residual
    Networks".
    """

    block: Literal["plain", "basic", "bottleneck", "preact_basic", "preact_bottleneck"] = "basic"
    """`basic` is two 3x3 convolutions, `bottleneck` 1x1, 3x3, 1x1 (He et al. 2016a, figure 5); `preact_...` has norm
    and activation before each convolution and nothing after the sum (2016b, figure 4e); `plain` is `basic` without its
    shortcut, for comparison (2016a, section 3.3)."""
    blocks: tuple[int, ...]
    """Blocks in each stage; every stage but the first halves height and width."""
    widths: tuple[int, ...]
    """Channels of each stage's 3x3 convolutions; those out of a bottleneck are four times as many."""
    inner: int = 1
    """Multiplies the channels of a bottleneck's 3x3 convolution alone: ResNeXt (Xie et al. 2017, table 1), and the wide
    bottlenecks of Zagoruyko and Komodakis 2016, table 8."""
    groups: int = 1
    """Groups of a bottleneck's 3x3 convolution: the cardinality of ResNeXt (Xie et al. 2017, section 3.3)."""
    stem: Literal["conv3x3", "patch4x4", "patch5x5", "conv7x7", "deep"] = "conv3x3"
    """For small images: `conv3x3` keeps the size, `patch4x4` has stride 2 and halves it, `patch5x5` too, without
    padding, for images whose border is blank (docs/log.md has what that saves). For large ones: `conv7x7` with stride 2
    and 3x3 max-pooling quarters it (He et al. 2016a, table 1), `deep` does with three 3x3 convolutions instead (He et
    al. 2019, "Bag of Tricks", figure 2b)."""
    stem_width: int | None = None
    """Channels out of the stem; None for those of the first stage."""
    shortcut: Literal["A", "B", "C"] = "B"
    """Where sizes differ, A subsamples and pads with zeros, B projects by a 1x1 convolution; C projects in every block
    (He et al. 2016a, section 3.3)."""
    downsample: Literal["stride", "average", "blur"] = "stride"
    """How a block halves: by strides; `average` pools 2x2 in the shortcut, which by strides drops three of four pixels
    (He et al. 2019, figure 2c); `blur` low-pass filters before each subsampling (Zhang 2019)."""
    se: int = 0
    """Squeeze-and-excitation (Hu et al. 2018, section 3): channels for each channel of its hidden layer, 16 in the
    paper; 0 for none."""
    stochastic_depth: float = 0.0
    """Probability that an image passes the last block by its shortcut alone, in training; earlier blocks less, in
    proportion to their place (Huang et al. 2016, equation 4)."""
    activation: Literal["relu", "leaky_relu", "silu", "gelu", "mish"] = "relu"
    """`leaky_relu` has slope 0.01 below zero; `gelu` is exact."""
    norm: Literal["batch", "group", "none"] = "batch"
    """`group` normalises 16 channels together or, where that does not divide, somewhat more (Wu and He 2018, table 3);
    `none` needs `init` fixup or skipinit."""
    init: Literal["he", "zero_norm", "orthogonal", "fixup", "skipinit"] = "he"
    """`he` is normal by fan-out (He et al. 2015, equation 14); `zero_norm` is that with the last norm's scale of each
    block at zero (Goyal et al. 2017, section 5.1); `orthogonal` is that of Saxe et al. 2014; `fixup` (Zhang et al.
    2019, section 3) and `skipinit` (De and Smith 2020) stand in for norms."""
    pool: Literal["average", "max"] = "average"
    """Global pooling before the classifier."""

    def __post_init__(self) -> None:
        for where, problem, mend in self._problems():
            raise NetError(f"net.{where}", problem, mend)

    @property
    def is_preact(self) -> bool:
        """Whether norm and activation stand before each convolution."""
        return self.block.startswith("preact")

    @property
    def outputs(self) -> tuple[int, ...]:
        """Channels out of each stage."""
        expansion = EXPANSION if self.block.endswith("bottleneck") else 1
        return tuple(width * expansion for width in self.widths)

    @property
    def stem_channels(self) -> int:
        """Channels out of the stem."""
        return self.stem_width or self.widths[0]

    def check_fits(self, height: int, width: int, name: str) -> None:
        """Raise `NetError` where an image is too small: a stride that has less than two pixels has nothing to halve.

        The error calls the structure `name`.
        """
        side = min(height, width)
        if self._bears(side):
            return
        least = next(other for other in range(side + 1, 2**16) if self._bears(other))
        problem = f"{name} halves images {self._halvings} times, which {height}x{width} ones do not bear"
        small = " or net.stem for small images (conv3x3, patch4x4)" if self.stem in ("conv7x7", "deep") else ""
        raise NetError("net", problem, f"Give it at least {least}x{least} pixels, or choose fewer net.blocks{small}")

    @property
    def _halvings(self) -> int:
        return sum(stride == 2 for _, stride, _ in STEMS[self.stem]) + len(self.blocks) - 1

    def _bears(self, side: int) -> bool:
        for kernel, stride, padding in (*STEMS[self.stem], *[(3, 2, 1)] * (len(self.blocks) - 1)):
            if side < stride or side + 2 * padding < kernel:
                return False
            side = (side + 2 * padding - kernel) // stride + 1
        return True

    def _problems(self) -> Iterator[tuple[str, str, str]]:
        """Field, what is wrong, how to mend it; whoever asks takes the first."""
        yield from self._out_of_range()
        if len(self.blocks) != len(self.widths):
            problem = f"has {len(self.blocks)} stages, but net.widths has {len(self.widths)}"
            yield "blocks", problem, "Give one number a stage to both"
        is_bottleneck = self.block.endswith("bottleneck")
        if (self.groups, self.inner) != (1, 1) and not is_bottleneck:
            name = "groups" if self.groups != 1 else "inner"
            yield (
                name,
                f"is {getattr(self, name)}, which only bottlenecks have",
                "Set it to 1, or net.block to bottleneck",
            )
        odd = [width for width in self.widths if width * self.inner % self.groups]
        if odd:
            problem = f"is {self.groups}, which does not divide the {odd[0] * self.inner} channels of a stage"
            yield "groups", problem, "Change it, net.inner or net.widths"
        channels = (self.stem_channels, *self.outputs)
        if self.shortcut == "A" and self.block != "plain" and list(channels) != sorted(channels):
            problem = f"is A, which pads with zeros and cannot narrow {' to '.join(map(str, channels))} channels"
            yield "shortcut", problem, "Set it to B"
        yield from self._unfit_init()

    def _out_of_range(self) -> Iterator[tuple[str, str, str]]:
        hints = get_type_hints(type(self))
        for field in fields(self):
            value, choices = getattr(self, field.name), get_args(hints[field.name])
            if isinstance(value, str) and value not in choices:
                near = difflib.get_close_matches(value, choices, n=1) or choices
                yield field.name, f"is unknown: {value!r}", f"Known: {', '.join(near)}"
        for name in ("blocks", "widths", "inner", "groups", "stem_width"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (1 if value is None else value,)
            if not numbers or min(numbers) < 1:
                yield name, f"is {value}", "Give whole numbers from 1 up"
        if self.se < 0:
            yield "se", f"is {self.se}", "Give a whole number, or 0 for none"
        if not 0 <= self.stochastic_depth < 1:
            yield "stochastic_depth", f"is {self.stochastic_depth}", "Give a probability from 0 to below 1"

    def _unfit_init(self) -> Iterator[tuple[str, str, str]]:
        if self.norm == "none" and self.init not in ("fixup", "skipinit"):
            mend = "Set net.init to fixup or skipinit, or net.norm to batch or group"
            yield "init", f"is {self.init}, which does not train without norms", mend
        if self.norm != "none" and self.init in ("fixup", "skipinit"):
            yield "init", f"is {self.init}, which stands in for norms", "Set net.norm to none, or net.init to he"
        if self.init == "zero_norm" and self.is_preact:
            yield "init", f"is zero_norm, but {self.block} ends in no norm", "Set it to he"
        if self.block == "plain" and self.init in ("zero_norm", "fixup", "skipinit"):
            yield "init", f"is {self.init}, which closes all but the shortcuts: plain has none", "Set it to he"
        if self.block == "plain" and self.stochastic_depth:
            mend = "Set it to 0.0, or net.block to basic"
            yield "stochastic_depth", "needs shortcuts to pass by: plain has none", mend
