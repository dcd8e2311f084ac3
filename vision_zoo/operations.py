"""The 13 operations of the NASNet search space, with TensorFlow's padding, and what they are made of.

Source: Zoph et al. 2017 (arXiv 1707.07012), section 3; wiring of the public reference implementation.
Dimension letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

PADDING_MODES = ("same", "timm", "keras")


@dataclass(frozen=True)
class Grid:
    """Where the pixels of the strided network lie on a feature map that was kept at a higher resolution.

    Neighbours there are `dilation` pixels apart here. Where `dense`, the operation's stride is left out: it computes
    every pixel, of which the strided network computes every second one along each axis, starting with the first.
    """

    dilation: int = 1
    dense: bool = False

    @property
    def output(self) -> Grid:
        """The grid of an operation's result; what follows a stride that was left out looks twice as far."""
        return Grid(2 * self.dilation if self.dense else self.dilation)

    def padding(self, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
        """(before, after) of one axis, so that the pixels on the grid see what they see in the strided network.

        Its padding depends on whether its own map has an even or an odd number of pixels, so that is what counts.
        """
        before, after = same_padding(-(-size // self.dilation), kernel, stride, dilation)
        if self == STRIDED:
            return before, after
        return before * self.dilation, (dilation * (kernel - 1) - before) * self.dilation


STRIDED = Grid()  # the map has the strided network's own resolution


@dataclass(frozen=True)
class CellOptions:
    """What the operations of one cell share; all cells of a network differ at most in their grid."""

    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 3e-4
    # "same" is TensorFlow's; at stride 2 "timm" averages over the padding too, as zeros, and "keras" takes the maxima
    # with those zeros as well
    padding: str = "same"
    grid: Grid = STRIDED

    def __post_init__(self) -> None:
        if self.padding not in PADDING_MODES:
            raise ValueError(f"padding {self.padding!r} is unknown; choose from {PADDING_MODES}")


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """TensorFlow 'SAME' padding of one axis: (before, after); the odd pixel goes after."""
    total = max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A bias-free convolution with TensorFlow 'SAME' padding. (B, C, H, W) -> (B, C', ceil(H/s), ceil(W/s)).

    On a dense grid the stride is left out, and the map keeps its size.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int = 1,
        groups: int = 1,
        grid: Grid = STRIDED,
    ) -> None:
        step, spacing = 1 if grid.dense else stride, 1 if kernel == 1 else dilation * grid.dilation
        super().__init__(inputs, outputs, kernel, step, dilation=spacing, groups=groups, bias=False)
        self.grid, self.grid_dilation = grid, dilation
        self.grid_stride = (stride, stride) if isinstance(stride, int) else stride

    def forward(self, x: Tensor) -> Tensor:
        padding = self.grid.padding
        top, bottom = padding(x.shape[2], self.kernel_size[0], self.grid_stride[0], self.grid_dilation)
        left, right = padding(x.shape[3], self.kernel_size[1], self.grid_stride[1], self.grid_dilation)
        if top == bottom and left == right:  # let the convolution pad: it saves a copy
            return F.conv2d(x, self.weight, None, self.stride, (top, left), self.dilation, self.groups)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, None, self.stride, 0, self.dilation, self.groups)


class SamePool2d(nn.Module):
    """Average or maximum pooling with 'SAME' padding, over real pixels only unless zeros around them shall count.

    (B, C, H, W) -> (B, C, ceil(H/s), ceil(W/s)), the same size on a dense grid.
    """

    def __init__(
        self,
        kind: str,
        kernel: int,
        stride: int,
        count_padding: bool = False,
        grid: Grid = STRIDED,
    ) -> None:
        super().__init__()
        self.kind, self.kernel, self.stride, self.count_padding, self.grid = kind, kernel, stride, count_padding, grid

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = self.grid.padding(x.shape[2], self.kernel, self.stride, 1)
        left, right = self.grid.padding(x.shape[3], self.kernel, self.stride, 1)
        if self.grid != STRIDED:
            return self._on_grid(x, (left, right, top, bottom))
        if self.count_padding:
            pool = F.avg_pool2d if self.kind == "avg" else F.max_pool2d
            return pool(F.pad(x, (left, right, top, bottom)), self.kernel, self.stride)
        # ceil_mode lets the last window hang over the edge by the odd pixel that 'SAME' puts after the image.
        if self.kind == "avg":
            return F.avg_pool2d(x, self.kernel, self.stride, (top, left), ceil_mode=True, count_include_pad=False)
        return F.max_pool2d(x, self.kernel, self.stride, (top, left), ceil_mode=True)

    def _on_grid(self, x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
        """At stride 1, with taps `dilation` apart, which torch has for maxima only: sums are convolutions of ones."""
        dilation = self.grid.dilation
        if self.kind == "max":
            edge = 0.0 if self.count_padding else -math.inf
            return F.max_pool2d(F.pad(x, padding, value=edge), self.kernel, 1, 0, dilation)
        padded, shape = F.pad(x, padding), (self.kernel, self.kernel)
        sums = F.conv2d(padded, x.new_ones(x.shape[1], 1, *shape), dilation=dilation, groups=x.shape[1])
        if self.count_padding:
            return sums / self.kernel**2
        inside = F.pad(x.new_ones(1, 1, *x.shape[2:]), padding)
        return sums / F.conv2d(inside, x.new_ones(1, 1, *shape), dilation=dilation)


def batch_norm(filters: int, options: CellOptions) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(filters, options.batch_norm_eps, options.batch_norm_momentum)


class Unit(nn.Module):
    """ReLU, depthwise convolution (where kernel > 0), pointwise convolution, batch norm.

    (B, C, H, W) -> (B, filters, ceil(H/s), ceil(W/s)). Nearly all the arithmetic of a cell happens here, so `compute`
    is the function that does it: `plain_unit`, or the native one that `vision_zoo.native.accelerate` sets.
    """

    def __init__(self, inputs: int, filters: int, kernel: int, stride: int, options: CellOptions) -> None:
        super().__init__()
        grid = options.grid
        self.depthwise = SameConv2d(inputs, inputs, kernel, stride, groups=inputs, grid=grid) if kernel else None
        self.pointwise = SameConv2d(inputs, filters, 1, 1 if kernel else stride, grid=grid)
        self.norm = batch_norm(filters, options)
        self.compute: Callable[[Unit, Tensor], Tensor] = plain_unit

    def forward(self, x: Tensor) -> Tensor:
        if self.pointwise.grid != STRIDED:  # which the native function does not know
            return plain_unit(self, x)
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
    convolution = SameConv2d(inputs, filters, kernel, stride, dilation, grid=options.grid)
    return nn.Sequential(nn.ReLU(), convolution, batch_norm(filters, options))


def _factorised_conv(inputs: int, filters: int, kernel: int, stride: int, options: CellOptions) -> nn.Module:
    """1xk then kx1 convolution."""
    return nn.Sequential(
        nn.ReLU(),
        SameConv2d(inputs, filters, (1, kernel), (1, stride), grid=options.grid),
        SameConv2d(filters, filters, (kernel, 1), (stride, 1), grid=options.grid),
        batch_norm(filters, options),
    )


def _separable(inputs: int, filters: int, kernel: int, stride: int, options: CellOptions) -> nn.Module:
    """(ReLU, depthwise, pointwise, batch norm) twice; the stride is on the first depthwise."""
    after = replace(options, grid=options.grid.output)
    return nn.Sequential(Unit(inputs, filters, kernel, stride, options), Unit(filters, filters, kernel, 1, after))


def _pool(kind: str, inputs: int, filters: int, kernel: int, stride: int, options: CellOptions) -> nn.Module:
    count_padding = stride == 2 and (options.padding == "keras" or (options.padding == "timm" and kind == "avg"))
    pool = SamePool2d(kind, kernel, stride, count_padding, options.grid)
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
