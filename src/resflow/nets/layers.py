"""The layers that a structure is made of, by what its fields say: `Layers(structure)` makes them.

How they stand together is `blocks`; what their weights start as is `initial`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resflow.nets.structure import STEMS

if TYPE_CHECKING:
    from resflow.nets.structure import Structure

__all__ = ["BlurPool", "Layers", "Scale", "Shift", "ShiftedConv2d", "SqueezeExcitation", "StochasticDepth"]

GROUP = 16
"""Channels normalised together, at least: Wu and He 2018, table 3, best but for 32 groups, of which few channels have
enough. Far fewer lose what tells images apart: a channel by itself is 0 once there is one pixel left of it."""

VECTOR = 16
"""Channels that AVX-512 takes at once in float32; AVX2 takes 8. With fewer, oneDNN 3.12 writes beyond its memory in the
backward pass of 1x1 convolutions with a stride, channels last: its issue 6035, seen here with AVX2."""


class Layers:
    """Makes the layers of one structure."""

    def __init__(self, structure: Structure) -> None:
        self._structure = structure

    def convolution(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
        """Of odd kernel, padded so that only its stride changes the size."""
        return self._convolution(inputs, outputs, kernel, stride, kernel // 2, groups)

    def norm(self, channels: int) -> nn.Module:
        """What stands after a convolution or before an activation."""
        if self._structure.norm == "batch":
            return nn.BatchNorm2d(channels)
        if self._structure.norm == "group":
            most = max(1, channels // GROUP)
            return nn.GroupNorm(max(count for count in range(1, most + 1) if channels % count == 0), channels)
        return Shift() if self._structure.init == "fixup" else nn.Identity()

    def activation(self) -> nn.Module:
        """A new one."""
        name = self._structure.activation
        if name in ("relu", "leaky_relu"):
            # in place, but where an identity may stand in for the norm before it: that would change a block's input
            inplace = self._structure.norm != "none"
            return nn.ReLU(inplace) if name == "relu" else nn.LeakyReLU(0.01, inplace)
        return {"silu": nn.SiLU, "gelu": nn.GELU, "mish": nn.Mish}[name]()  # type: ignore[no-any-return]

    def stem(self, in_channels: int) -> nn.Module:
        """All of the stem before its norm: (N, in_channels, H, W) -> (N, stem_channels, H', W')."""
        outputs = self._structure.stem_channels
        if self._structure.stem != "deep":
            kernel, stride, padding = STEMS[self._structure.stem][0]
            return self._convolution(in_channels, outputs, kernel, stride, padding)
        half = max(1, outputs // 2)
        layers: list[nn.Module] = []
        for inputs, width, stride in ((in_channels, half, 2), (half, half, 1)):
            layers += [self.convolution(inputs, width, 3, stride), self.norm(width), self.activation()]
        return nn.Sequential(*layers, self.convolution(half, outputs, 3))

    def stem_pool(self) -> nn.Module:
        """What follows the stem's activation: 3x3 max-pooling with stride 2, for large images."""
        if self._structure.stem not in ("conv7x7", "deep"):
            return nn.Identity()
        if self._structure.downsample == "blur":  # Zhang 2019, section 3.2: MaxPool -> dense maximum, then BlurPool
            return nn.Sequential(nn.MaxPool2d(3, 1, 1), BlurPool())
        return nn.MaxPool2d(3, 2, 1)

    def inner_stride(self, stride: int) -> int:
        """The stride of the convolution that halves; 1 where `blur` does it afterwards."""
        return 1 if self._structure.downsample == "blur" else stride

    def blur(self, stride: int) -> nn.Module:
        """Follows the activation of the convolution that halves (Zhang 2019, section 3.2)."""
        return BlurPool() if stride != 1 and self._structure.downsample == "blur" else nn.Identity()

    def shortcut(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        """`nn.Identity` where sizes agree, but for option C."""
        structure = self._structure
        changes = stride != 1 or inputs != outputs
        if not changes and structure.shortcut != "C":
            return nn.Identity()
        layers = self._subsampling() if stride != 1 else []
        left = 1 if layers else stride
        if structure.shortcut == "A":
            return nn.Sequential(*layers, PaddedShortcut(left, outputs - inputs))
        is_split = left != 1 and inputs < VECTOR
        layers.append(self.convolution(inputs, outputs, 1, 1 if is_split else left))
        if not structure.is_preact:
            layers.append(self.norm(outputs))
        # named, so that the numbers of weights are those in files of earlier versions
        first = {"subsample": Subsample(left)} if is_split else {}
        return nn.Sequential(OrderedDict(first | {str(number): layer for number, layer in enumerate(layers)}))

    def squeeze_excitation(self, channels: int) -> nn.Module:
        """The last of a branch but for its scale."""
        return SqueezeExcitation(channels, self._structure.se) if self._structure.se else nn.Identity()

    def scale(self) -> nn.Module:
        """The scalar at the end of a branch that has no norms: from 1 with Fixup, from 0 with SkipInit."""
        if self._structure.norm != "none":
            return nn.Identity()
        return Scale(1.0 if self._structure.init == "fixup" else 0.0)

    def shift(self) -> nn.Module:
        """Before the classifier: Fixup puts one before each linear layer."""
        return Shift() if self._structure.init == "fixup" else nn.Identity()

    def _subsampling(self) -> list[nn.Module]:
        """What halves in a shortcut, where strides do not."""
        if self._structure.downsample == "blur":
            return [BlurPool()]
        # He et al. 2019, figure 2c; an odd side is rounded up, as by a strided convolution
        average = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        return [average] if self._structure.downsample == "average" else []

    def _convolution(
        self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, groups: int = 1
    ) -> nn.Conv2d:
        init = self._structure.init
        kind = ShiftedConv2d if init == "fixup" else nn.Conv2d
        # a norm would bring its own bias; SkipInit keeps biases, and Fixup has scalars
        return kind(inputs, outputs, kernel, stride, padding, groups=groups, bias=init == "skipinit")


class Subsample(nn.Module):
    """Every `stride`-th pixel, down and across: (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride]


class PaddedShortcut(Subsample):
    """Option A of He et al. 2016a, section 3.3: subsampled, with channels of zeros on both sides."""

    def __init__(self, stride: int, padding: int) -> None:
        super().__init__(stride)
        self.before, self.after = padding // 2, padding - padding // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(super().forward(x), (0, 0, 0, 0, self.before, self.after))


class BlurPool(nn.Module):
    """Low-pass filtered by [1, 2, 1] / 4 in both directions, then every second pixel: Zhang 2019, "Making Convolutional
    Networks Shift-Invariant Again", section 3.2, Triangle-3. The border is repeated.

    (N, C, H, W) -> (N, C, ceil(H / 2), ceil(W / 2)). That filter is two averages of two, one after the other, which
    needs no weights; averages over fewer pixels at the border are what repeats it.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 2, 1, padding=1, count_include_pad=False)
        return F.avg_pool2d(x, 2, 2)


class SqueezeExcitation(nn.Module):
    """Hu et al. 2018, "Squeeze-and-Excitation Networks", equations 2 to 4: channels weighed by what all of them say."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * weights.sigmoid()


class StochasticDepth(nn.Module):
    """In training, drops the branch of each image with probability `rate`; divides the others by what survives.

    Huang et al. 2016, "Deep Networks with Stochastic Depth", section 3, drop a block for the whole batch and multiply
    in testing instead (equation 5); by image, every block has gradients in each step. Draws from torch's generator of
    the device, which the training loop seeds anew each step, as for dropout.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"


class Scale(nn.Module):
    """Multiplies by one learnt number."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Shift(nn.Module):
    """Adds one learnt number."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class ShiftedConv2d(nn.Conv2d):
    """A convolution with one learnt number added to its input: Zhang et al. 2019, "Fixup Initialization", section 3."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, *, groups: int, bias: bool
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.shift)
