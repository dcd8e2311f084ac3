"""Cells as data: genotypes over the operations of the search space, and the module that runs one cell.

Source: Zoph et al. 2017 (arXiv 1707.07012), section 3 and appendix; wiring of the public reference implementation.
Dimension letters: B batch, C channels, H height, W width; `filters` is the width f of one cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision_zoo.operations import OPERATIONS, STRIDED, CellOptions, Grid, SameConv2d, batch_norm, relu_conv_bn

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
        self.grid = options.grid
        step = 1 if self.grid.dense else 2  # a 1x1 pool of stride 2, folded into the convolutions
        self.even = nn.Conv2d(inputs, filters // 2, 1, stride=step, bias=False)
        self.odd = nn.Conv2d(inputs, filters - filters // 2, 1, stride=step, bias=False)
        self.norm = batch_norm(filters, options)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        by = self.grid.dilation
        shifted = F.pad(x, (-by, by, -by, by))  # drop the first row and column, zeros at the end
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

    Without a previous layer, state 1 is the current input, unprojected. options.grid is the current input's;
    previous_grid is that of a previous layer which has to be halved.
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
        previous_grid: Grid = STRIDED,
    ) -> None:
        super().__init__()
        self.genotype = genotype
        after = replace(options, grid=options.grid.output)  # of the states that blocks create
        before = replace(options, grid=previous_grid)
        self.squeeze = relu_conv_bn(current, filters, 1, 1, options)
        self.adjust = adjust_previous(previous, filters, halve_previous, before) if previous is not None else None
        self.drop_path = drop_path
        widths = [filters, current if previous is None else filters]
        self.operations = nn.ModuleList()
        for block in genotype.blocks:
            for state, name in zip(block.inputs, block.operations, strict=True):
                step, shared = (stride, options) if state < 2 else (1, after)
                self.operations.append(OPERATIONS[name](widths[state], filters, step, shared))
            widths.append(filters if block.combination == "add" else 2 * filters)
        # Only state 1 can still have another width or resolution than the blocks (first CIFAR cell).
        self.project = nn.ModuleDict()
        for state in genotype.output:
            if state < 2 and (widths[state] != filters or stride != 1):
                conv = SameConv2d(widths[state], filters, 1, stride, grid=options.grid)
                self.project[str(state)] = nn.Sequential(conv, batch_norm(filters, options))
                widths[state] = filters
        self.out_channels = sum(widths[state] for state in genotype.output)

    def forward(self, current: Tensor, previous: Tensor | None) -> Tensor:
        read = [state for block in self.genotype.blocks for state in block.inputs] + list(self.genotype.output)
        states: list[Iterator[Tensor]] = []  # of each state what its readers take, one after the other

        def add(state: Tensor) -> None:
            states.append(self.share(state, read.count(len(states))))

        add(self.squeeze(current))
        add(current if self.adjust is None or previous is None else self.adjust(previous))
        for index, block in enumerate(self.genotype.blocks):
            left = self._operate(2 * index, next(states[block.inputs[0]]))
            right = self._operate(2 * index + 1, next(states[block.inputs[1]]))
            add(left + right if block.combination == "add" else torch.cat([left, right], dim=1))
        outputs = [
            self.project[str(s)](next(states[s])) if str(s) in self.project else next(states[s])
            for s in self.genotype.output
        ]
        return torch.cat(outputs, dim=1)

    def share(self, state: Tensor, readers: int) -> Iterator[Tensor]:
        """`state` once for each of its readers; vision_zoo.native has a way of its own."""
        return repeat(state, readers)

    def _operate(self, index: int, x: Tensor) -> Tensor:
        operation = self.operations[index]
        y: Tensor = operation(x)
        if not isinstance(operation, nn.Identity):
            y = self.drop_path(y)
        return y
