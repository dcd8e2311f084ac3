"""Faster training on a CPU without low-precision units: the separable unit as one native kernel.

    vision_zoo.native.accelerate(model)   # before training; needs g++ and the ninja package, built on first use

The module and its weights stay the same; evaluation, and whatever the kernel does not cover, run the plain code.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import cpp_extension

from vision_zoo.cells import Unit, plain_unit


@cache
def _library() -> ModuleType:
    source = Path(__file__).with_name("unit.cpp")
    flags = ["-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-funroll-loops"]
    library: ModuleType = cpp_extension.load("earsight_native_unit", [str(source)], extra_cflags=flags)
    return library


def accelerate(model: nn.Module) -> int:
    """Lets every unit of `model` train through the native kernel; returns how many units that is.

    Raises RuntimeError when the kernel cannot be built (g++ or ninja missing).
    """
    _library()
    units = [module for module in model.modules() if isinstance(module, Unit)]
    for unit in units:
        unit.compute = native_unit
    return len(units)


def native_unit(unit: Unit, x: Tensor) -> Tensor:
    """What `plain_unit` computes: (B, C, H, W) -> (B, F, H', W'), differentiable, in training mode on float32."""
    strided_pointwise = unit.depthwise is None and unit.pointwise.stride != (1, 1)
    covered = x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[1] % 8 == 0
    if not unit.training or strided_pointwise or not covered or torch.is_autocast_enabled("cpu"):
        return plain_unit(unit, x)
    norm, depthwise = unit.norm, unit.depthwise
    kernel, stride = (0, 1) if depthwise is None else (depthwise.kernel_size[0], depthwise.stride[0])
    weight = None if depthwise is None else depthwise.weight.flatten(1).t()
    pointwise = unit.pointwise.weight.flatten(1).t()
    y, mean, variance = _UnitFunction.apply(
        x.permute(0, 2, 3, 1), weight, pointwise, norm.weight, norm.bias, kernel, stride, norm.eps
    )
    count = y.numel() // y.shape[-1]
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
        norm.num_batches_tracked.add_(1)
    output: Tensor = y.permute(0, 3, 1, 2)
    return output


class _UnitFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        depthwise: Tensor | None,
        pointwise: Tensor,
        gamma: Tensor,
        beta: Tensor,
        kernel: int,
        stride: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()
        depthwise = None if depthwise is None else depthwise.contiguous()
        pointwise = pointwise.contiguous()
        y, u, z, mean, inverse, variance = _library().unit_forward(
            x, depthwise, pointwise, gamma, beta, kernel, stride, eps
        )
        ctx.save_for_backward(x, u, z, mean, inverse, depthwise, pointwise, gamma)
        ctx.geometry = (kernel, stride)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, u, z, mean, inverse, depthwise, pointwise, gamma = ctx.saved_tensors
        found = _library().unit_backward(
            gradients[0], x, u, z, mean, inverse, depthwise, pointwise, gamma, *ctx.geometry
        )
        grad_x, grad_depthwise, grad_pointwise, grad_gamma, grad_beta = found
        return grad_x, None if depthwise is None else grad_depthwise, grad_pointwise, grad_gamma, grad_beta, None, None, None
