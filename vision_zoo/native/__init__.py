"""Faster training on a CPU: separable units, batch norms and average pools with native kernels, fp32 or bf16.

    vision_zoo.native.accelerate(model)   # before training; needs g++, the kernels are compiled once and cached

The modules and their weights stay the same; evaluation, and whatever the kernels do not cover, run the plain code.
Under bf16 autocast, what is between the operations is bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vision_zoo.cells import Cell, FactorisedReduction
from vision_zoo.native import library
from vision_zoo.native.functions import (
    AverageFunction,
    ForkFunction,
    HalveFunction,
    NormFunction,
    PointwiseFunction,
    UnitFunction,
)
from vision_zoo.operations import STRIDED, SameConv2d, SamePool2d, Unit, plain_unit

KERNELS = (0, 3, 5, 7)  # sides of the depthwise window; 0 for a unit without one


def accelerate(model: nn.Module) -> int:
    """Lets the units of `model`, and the norms and average pools beside them, train through the native kernels.

    Returns how many units there are. Raises RuntimeError when the kernels cannot be built.
    """
    library.load()
    library.keep_freed_memory()
    units = [module for module in model.modules() if isinstance(module, Unit)]
    for unit in units:
        unit.compute = native_unit
    for module in model.modules():
        # Another class for the same object: names, weights, copies and every other method stay as they are.
        module.__class__ = _NATIVE.get(type(module), type(module))
    return len(units)


def native_unit(unit: Unit, x: Tensor) -> Tensor:
    """What `plain_unit` computes: (B, C, H, W) -> (B, F, H', W'), differentiable, in training mode."""
    depthwise, pointwise, norm = unit.depthwise, unit.pointwise, unit.norm
    kernel, stride = (0, 1) if depthwise is None else (depthwise.kernel_size[0], depthwise.stride[0])
    strided_pointwise = depthwise is None and pointwise.stride != (1, 1)
    dtype = _working_type(x)
    covered = kernel in KERNELS and stride in (1, 2) and not strided_pointwise
    if not covered or dtype is None or not _normalises_natively(norm, x):
        return plain_unit(unit, x)
    taps = None if depthwise is None else depthwise.weight
    y: Tensor = UnitFunction.apply(x, taps, pointwise.weight, norm.weight, norm.bias, norm, stride, dtype)
    return y


class NativeBatchNorm2d(nn.BatchNorm2d):
    """(B, C, H, W) -> the same shape, float32 or bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.float32, torch.bfloat16) or not _normalises_natively(self, x):
            return super().forward(x)
        y: Tensor = NormFunction.apply(x, self.weight, self.bias, self)
        return y


class NativePool2d(SamePool2d):
    """(B, C, H, W) -> (B, C, ceil(H/s), ceil(W/s)), float32 or bfloat16; averages natively."""

    def forward(self, x: Tensor) -> Tensor:
        native = x.dtype in (torch.float32, torch.bfloat16) and x.device.type == "cpu"
        covered = self.kind == "avg" and self.kernel in KERNELS[1:] and self.stride in (1, 2) and not self.count_padding
        if not (self.training and native and covered and self.grid == STRIDED):
            return super().forward(x)
        y: Tensor = AverageFunction.apply(x, self.kernel, self.stride)
        return y


class NativeConv2d(SameConv2d):
    """A pointwise convolution as one product."""

    def forward(self, x: Tensor) -> Tensor:
        pointwise = self.kernel_size == (1, 1) and self.stride == (1, 1) and self.grid_stride == (1, 1)
        dtype = _working_type(x)
        if not (self.training and pointwise and _on_cpu(self.weight)) or dtype is None:
            return super().forward(x)
        y: Tensor = PointwiseFunction.apply(x, self.weight, dtype)
        return y


class NativeReduction(FactorisedReduction):
    """(B, C, H, W) -> (B, F, ceil(H/2), ceil(W/2))."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = _working_type(x)
        covered = self.grid == STRIDED and _normalises_natively(self.norm, x)
        if dtype is None or not covered:
            return super().forward(x)
        y: Tensor = HalveFunction.apply(
            x, self.even.weight, self.odd.weight, self.norm.weight, self.norm.bias, self.norm, dtype
        )
        return y


class NativeCell(Cell):
    """A cell whose states have their gradients, one of each operation that reads them, added up in one pass."""

    def share(self, state: Tensor, readers: int) -> Iterator[Tensor]:
        native = state.device.type == "cpu" and state.dtype in (torch.float32, torch.bfloat16)
        if self.training and torch.is_grad_enabled() and readers > 2 and native:
            return iter(ForkFunction.apply(state, readers))
        return super().share(state, readers)


def _working_type(x: Tensor) -> torch.dtype | None:
    """What a unit computes in; None for what the kernels do not know."""
    if torch.is_autocast_enabled("cpu"):
        known = x.dtype in (torch.float32, torch.bfloat16)
        return torch.bfloat16 if known and torch.get_autocast_dtype("cpu") == torch.bfloat16 else None
    return torch.float32 if x.dtype == torch.float32 else None


def _normalises_natively(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether `norm` is one that the kernels can train: it has weights and an exponential average, in float32."""
    kept = norm.training and norm.track_running_stats and norm.momentum is not None and norm.affine
    several = x.shape[0] > 1 or min(x.shape[2:]) > 2  # pixels, at half the resolution too; one is torch's to refuse
    return several and kept and x.device.type == "cpu" and _on_cpu(norm.weight)


def _on_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


_NATIVE: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: NativeBatchNorm2d,
    SameConv2d: NativeConv2d,
    SamePool2d: NativePool2d,
    FactorisedReduction: NativeReduction,
    Cell: NativeCell,
}
