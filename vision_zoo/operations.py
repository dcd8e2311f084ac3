"""The 13 operations of the NASNet search space, with TensorFlow's padding, and what they are made of.

Source: Zoph et al. 2017 (arXiv 1707.07012), section 3; wiring of the public reference implementation.
Dimension letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

PADDING_MODES = ("same", "timm")


@dataclass(frozen=True)
class CellOptions:
    """What all cells of one network share."""

    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 3e-4
    padding: str = "same"  # "same" is TensorFlow's; "timm" counts the padding in stride-2 average pools

    def __post_init__(self) -> None:
        if self.padding not in PADDING_MODES:
            raise ValueError(f"padding {self.padding!r} is unknown; choose from {PADDING_MODES}")


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """TensorFlow 'SAME' padding of one axis: (before, after); the odd pixel goes after."""
    total = max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A bias-free convolution with TensorFlow 'SAME' padding. (B, C, H, W) -> (B, C', ceil(H/s), ceil(W/s))."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, dilation=dilation, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = same_padding(x.shape[2], self.kernel_size[0], self.stride[0], self.dilation[0])
        left, right = same_padding(x.shape[3], self.kernel_size[1], self.stride[1], self.dilation[1])
        if top == bottom and left == right:  # let the convolution pad: it saves a copy
            return F.conv2d(x, self.weight, None, self.stride, (top, left), self.dilation, self.groups)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, None, self.stride, 0, self.dilation, self.groups)


class SamePool2d(nn.Module):
    """Average or maximum pooling with 'SAME' padding; the average counts real pixels only."""

    def __init__(self, kind: str, kernel: int, stride: int, count_padding: bool = False) -> None:
        super().__init__()
        self.kind, self.kernel, self.stride, self.count_padding = kind, kernel, stride, count_padding

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = same_padding(x.shape[2], self.kernel, self.stride)
        left, right = same_padding(x.shape[3], self.kernel, self.stride)
        if self.count_padding:
            return F.avg_pool2d(F.pad(x, (left, right, top, bottom)), self.kernel, self.stride)
        # ceil_mode lets the last window hang over the edge by the odd pixel that 'SAME' puts after the image.
        if self.kind == "avg":
            return F.avg_pool2d(x, self.kernel, self.stride, (top, left), ceil_mode=True, count_include_pad=False)
        return F.max_pool2d(x, self.kernel, self.stride, (top, left), ceil_mode=True)


def batch_norm(filters: int, options: CellOptions) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(filters, options.batch_norm_eps, options.batch_norm_momentum)


class Unit(nn.Module):
    """ReLU, depthwise convolution (where kernel > 0), pointwise convolution, batch norm.

    (B, C, H, W) -> (B, filters, ceil(H/s), ceil(W/s)). Nearly all the arithmetic of a cell happens here, so `compute`
    is the function that does it: `plain_unit`, or the native one that `vision_zoo.native.accelerate` sets.
    """

    def __init__(self, inputs: int, filters: int, kernel: int, stride: int, options: CellOptions) -> None:
        super().__init__()
        self.depthwise = SameConv2d(inputs, inputs, kernel, stride, groups=inputs) if kernel else None
        self.pointwise = SameConv2d(inputs, filters, 1, 1 if kernel else stride)
        self.norm = batch_norm(filters, options)
        self.compute: Callable[[Unit, Tensor], Tensor] = plain_unit

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def plain_unit(unit: Unit, x: Tensor) -> Tensor:
    x = F.relu(x)
    if unit.depthwise is not None:
        x = unit.depthwise(x)
    y: Tensor = unit.norm(unit.pointwise(x))
    return y


def relu_conv_bn(
    inputs: int, filters: int, kernel: int, stride: int, options: CellOptions, dilation: int = 1
) -> nn.Module:
    if kernel == 1:
        return Unit(inputs, filters, 0, stride, options)
    convolution = SameConv2d(inputs, filters, kernel, stride, dilation)
    return nn.Sequential(nn.ReLU(), convolution, batch_norm(filters, options))


def _factorised_conv(inputs: int, filters: int, kernel: int, stride: int, options: CellOptions) -> nn.Module:
    """1xk then kx1 convolution."""
    return nn.Sequential(
        nn.ReLU(),
        SameConv2d(inputs, filters, (1, kernel), (1, stride)),
        SameConv2d(filters, filters, (kernel, 1), (stride, 1)),
        batch_norm(filters, options),
    )


def _separable(inputs: int, filters: int, kernel: int, stride: int, options: CellOptions) -> nn.Module:
    """(ReLU, depthwise, pointwise, batch norm) twice; the stride is on the first depthwise."""
    return nn.Sequential(Unit(inputs, filters, kernel, stride, options), Unit(filters, filters, kernel, 1, options))


def _pool(kind: str, inputs: int, filters: int, kernel: int, stride: int, options: CellOptions) -> nn.Module:
    count_padding = kind == "avg" and stride == 2 and options.padding == "timm"
    pool = SamePool2d(kind, kernel, stride, count_padding)
    if inputs == filters:
        return pool
    return nn.Sequential(pool, SameConv2d(inputs, filters, 1), batch_norm(filters, options))


def _identity(inputs: int, filters: int, stride: int, options: CellOptions) -> nn.Module:
    if stride == 1 and inputs == filters:
        return nn.Identity()
    return relu_conv_bn(inputs, filters, 1, stride, options)


_Build = Callable[[int, int, int, CellOptions], nn.Module]  # (inputs, filters, stride, options)

OPERATIONS: dict[str, _Build] = {
    "identity": _identity,
    "conv_1x3_3x1": lambda i, f, s, o: _factorised_conv(i, f, 3, s, o),
    "conv_1x7_7x1": lambda i, f, s, o: _factorised_conv(i, f, 7, s, o),
    "dilated_conv_3x3": lambda i, f, s, o: relu_conv_bn(i, f, 3, s, o, dilation=2),
    "avg_pool_3x3": lambda i, f, s, o: _pool("avg", i, f, 3, s, o),
    "max_pool_3x3": lambda i, f, s, o: _pool("max", i, f, 3, s, o),
    "max_pool_5x5": lambda i, f, s, o: _pool("max", i, f, 5, s, o),
    "max_pool_7x7": lambda i, f, s, o: _pool("max", i, f, 7, s, o),
    "conv_1x1": lambda i, f, s, o: relu_conv_bn(i, f, 1, s, o),
    "conv_3x3": lambda i, f, s, o: relu_conv_bn(i, f, 3, s, o),
    "separable_3x3": lambda i, f, s, o: _separable(i, f, 3, s, o),
    "separable_5x5": lambda i, f, s, o: _separable(i, f, 5, s, o),
    "separable_7x7": lambda i, f, s, o: _separable(i, f, 7, s, o),
}
