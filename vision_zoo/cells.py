"""Cells as data: genotypes over the 13 operations of the NASNet search space, and the module that runs one cell.

Source: Zoph et al. 2017 (arXiv 1707.07012), section 3 and appendix; wiring of the public reference implementation.
Dimension letters: B batch, C channels, H height, W width; `filters` is the width f of one cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PADDING_MODES = ("same", "timm")
COMBINATIONS = ("add", "concat")


@dataclass(frozen=True)
class Block:
    """Two hidden states, two operations, one combination: the five decisions of the search."""

    inputs: tuple[int, int]
    operations: tuple[str, str]
    combination: str = "add"


@dataclass(frozen=True)
class CellGenotype:
    """Blocks create states 2, 3, ...; state 0 is the squeezed current input h, state 1 the adjusted previous layer p.

    `output` lists the states that are concatenated. It is data of its own, because NASNet-A's reduction cell
    concatenates state 3 although block 5 reads it too.
    """

    blocks: tuple[Block, ...]
    output: tuple[int, ...]

    def __post_init__(self) -> None:
        for index, block in enumerate(self.blocks, start=2):
            if unknown := set(block.operations) - set(OPERATIONS):
                raise ValueError(
                    f"unknown operations {sorted(unknown)} in block {index}; choose from {sorted(OPERATIONS)}"
                )
            if block.combination not in COMBINATIONS:
                raise ValueError(
                    f"unknown combination {block.combination!r} in block {index}; choose from {COMBINATIONS}"
                )
            if not all(0 <= state < index for state in block.inputs):
                raise ValueError(f"block {index} reads states {block.inputs}; it may read 0 to {index - 1}")
        states = len(self.blocks) + 2
        if not self.output or not all(0 <= state < states for state in self.output):
            raise ValueError(f"output states {self.output} must be a non-empty choice of 0 to {states - 1}")


@dataclass(frozen=True)
class Genotype:
    """A normal cell (keeps the resolution) and a reduction cell (halves it)."""

    normal: CellGenotype
    reduction: CellGenotype


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


def _batch_norm(filters: int, options: CellOptions) -> nn.BatchNorm2d:
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
        self.norm = _batch_norm(filters, options)
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
    return nn.Sequential(nn.ReLU(), convolution, _batch_norm(filters, options))


def _factorised_conv(inputs: int, filters: int, kernel: int, stride: int, options: CellOptions) -> nn.Module:
    """1xk then kx1 convolution."""
    return nn.Sequential(
        nn.ReLU(),
        SameConv2d(inputs, filters, (1, kernel), (1, stride)),
        SameConv2d(filters, filters, (kernel, 1), (stride, 1)),
        _batch_norm(filters, options),
    )


def _separable(inputs: int, filters: int, kernel: int, stride: int, options: CellOptions) -> nn.Module:
    """(ReLU, depthwise, pointwise, batch norm) twice; the stride is on the first depthwise."""
    return nn.Sequential(Unit(inputs, filters, kernel, stride, options), Unit(filters, filters, kernel, 1, options))


def _pool(kind: str, inputs: int, filters: int, kernel: int, stride: int, options: CellOptions) -> nn.Module:
    count_padding = kind == "avg" and stride == 2 and options.padding == "timm"
    pool = SamePool2d(kind, kernel, stride, count_padding)
    if inputs == filters:
        return pool
    return nn.Sequential(pool, SameConv2d(inputs, filters, 1), _batch_norm(filters, options))


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

NASNET_A = Genotype(
    normal=CellGenotype(
        blocks=(
            Block((0, 1), ("separable_5x5", "separable_3x3")),
            Block((1, 1), ("separable_5x5", "separable_3x3")),
            Block((0, 1), ("avg_pool_3x3", "identity")),
            Block((1, 1), ("avg_pool_3x3", "avg_pool_3x3")),
            Block((0, 0), ("separable_3x3", "identity")),
        ),
        output=(1, 2, 3, 4, 5, 6),
    ),
    reduction=CellGenotype(
        blocks=(
            Block((0, 1), ("separable_5x5", "separable_7x7")),
            Block((0, 1), ("max_pool_3x3", "separable_7x7")),
            Block((0, 1), ("avg_pool_3x3", "separable_5x5")),
            Block((3, 2), ("identity", "avg_pool_3x3")),
            Block((2, 0), ("separable_3x3", "max_pool_3x3")),
        ),
        output=(3, 4, 5, 6),
    ),
)


class DropPath(nn.Module):
    """Drops one path per example with probability 1 - keep and divides the others by keep (ScheduledDropPath).

    `keep` follows the training progress: k1 = 1 - depth (1 - final_keep), keep = 1 - progress (1 - k1), where depth
    is (cell number + 1) / cells. The network sets it through `NASNet.schedule_drop_path`.
    """

    def __init__(self, depth: float, final_keep: float) -> None:
        super().__init__()
        self.depth, self.final_keep, self.keep = depth, final_keep, 1.0

    def schedule(self, progress: float) -> None:
        self.keep = 1.0 - min(1.0, progress) * self.depth * (1.0 - self.final_keep)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.keep >= 1.0:
            return x
        mask = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(self.keep)
        return x * (mask / self.keep)


class FactorisedReduction(nn.Module):
    """Halves the resolution without losing alignment: every second pixel, and every second pixel shifted by one."""

    def __init__(self, inputs: int, filters: int, options: CellOptions) -> None:
        super().__init__()
        self.even = nn.Conv2d(inputs, filters // 2, 1, stride=2, bias=False)  # a 1x1 pool of stride 2, folded in
        self.odd = nn.Conv2d(inputs, filters - filters // 2, 1, stride=2, bias=False)
        self.norm = _batch_norm(filters, options)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (-1, 1, -1, 1))  # drop the first row and column, zeros at the end
        y: Tensor = self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))
        return y


def adjust_previous(previous: int, filters: int, halve: bool, options: CellOptions) -> nn.Module:
    """Brings the previous layer to the cell's resolution and width."""
    if halve:
        return FactorisedReduction(previous, filters, options)
    if previous != filters:
        return relu_conv_bn(previous, filters, 1, 1, options)
    return nn.Identity()


class Cell(nn.Module):
    """One cell. forward(current (B, C, H, W), previous (B, C', H', W') or None) -> (B, out_channels, H/s, W/s).

    Without a previous layer, state 1 is the current input, unprojected.
    """

    def __init__(
        self,
        genotype: CellGenotype,
        current: int,
        previous: int | None,
        filters: int,
        stride: int,
        halve_previous: bool,
        drop_path: DropPath,
        options: CellOptions,
    ) -> None:
        super().__init__()
        self.genotype = genotype
        self.squeeze = relu_conv_bn(current, filters, 1, 1, options)
        self.adjust = adjust_previous(previous, filters, halve_previous, options) if previous is not None else None
        self.drop_path = drop_path
        widths = [filters, current if previous is None else filters]
        self.operations = nn.ModuleList()
        for block in genotype.blocks:
            for state, name in zip(block.inputs, block.operations, strict=True):
                step = stride if state < 2 else 1
                self.operations.append(OPERATIONS[name](widths[state], filters, step, options))
            widths.append(filters if block.combination == "add" else 2 * filters)
        # Only state 1 can still have another width or resolution than the blocks (first CIFAR cell).
        self.project = nn.ModuleDict()
        for state in genotype.output:
            if state < 2 and (widths[state] != filters or stride != 1):
                conv = SameConv2d(widths[state], filters, 1, stride)
                self.project[str(state)] = nn.Sequential(conv, _batch_norm(filters, options))
                widths[state] = filters
        self.out_channels = sum(widths[state] for state in genotype.output)

    def forward(self, current: Tensor, previous: Tensor | None) -> Tensor:
        states = [self.squeeze(current)]
        states.append(current if self.adjust is None or previous is None else self.adjust(previous))
        for index, block in enumerate(self.genotype.blocks):
            left = self._operate(2 * index, states[block.inputs[0]])
            right = self._operate(2 * index + 1, states[block.inputs[1]])
            states.append(left + right if block.combination == "add" else torch.cat([left, right], dim=1))
        outputs = [
            self.project[str(s)](states[s]) if str(s) in self.project else states[s] for s in self.genotype.output
        ]
        return torch.cat(outputs, dim=1)

    def _operate(self, index: int, x: Tensor) -> Tensor:
        operation = self.operations[index]
        y: Tensor = operation(x)
        if not isinstance(operation, nn.Identity):
            y = self.drop_path(y)
        return y
