"""Faster training on a CPU without low-precision units: the separable unit with native depthwise and norm kernels.

    vision_zoo.native.accelerate(model)   # before training; needs g++, the kernel is compiled once and cached

The module and its weights stay the same; evaluation, and whatever the kernel does not cover, run the plain code.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import cpp_extension

from vision_zoo.operations import Unit, plain_unit

KERNELS = (0, 3, 5, 7)  # sides of the depthwise window; 0 for a unit without one
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-shared", "-fPIC", "-fopenmp")


def accelerate(model: nn.Module) -> int:
    """Lets every unit of `model` train through the native kernel; returns how many units that is.

    Raises RuntimeError when the kernel cannot be built.
    """
    _library()
    units = [module for module in model.modules() if isinstance(module, Unit)]
    for unit in units:
        unit.compute = native_unit
    return len(units)


def native_unit(unit: Unit, x: Tensor) -> Tensor:
    """What `plain_unit` computes: (B, C, H, W) -> (B, F, H', W'), differentiable, in training mode on float32."""
    norm, depthwise = unit.norm, unit.depthwise
    kernel, stride = (0, 1) if depthwise is None else (depthwise.kernel_size[0], depthwise.stride[0])
    strided_pointwise = depthwise is None and unit.pointwise.stride != (1, 1)
    covered = x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[1] % 8 == 0 and kernel in KERNELS
    if not unit.training or strided_pointwise or not covered or torch.is_autocast_enabled("cpu"):
        return plain_unit(unit, x)
    taps = None if depthwise is None else depthwise.weight.flatten(1).t()
    pointwise = unit.pointwise.weight.flatten(1).t()
    y, mean, variance = _UnitFunction.apply(
        x.permute(0, 2, 3, 1), taps, pointwise, norm.weight, norm.bias, kernel, stride, norm.eps
    )
    count = y.numel() // y.shape[-1]
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    assert norm.momentum is not None  # the cells' batch norms keep statistics, with an exponential average
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
        norm.num_batches_tracked.add_(1)
    output: Tensor = y.permute(0, 3, 1, 2)
    return output


class _UnitFunction(torch.autograd.Function):
    """Letters: u what the pointwise convolution reads, z what it gives, y the normalised z; all channels last."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (B, H, W, C)
        taps: Tensor | None,  # (K * K, C)
        pointwise: Tensor,  # (C, F)
        gamma: Tensor,
        beta: Tensor,
        kernel: int,
        stride: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()
        taps = None if taps is None else taps.contiguous()
        u = torch.relu(x) if taps is None else _depthwise(x, taps, kernel, stride)
        z = u.flatten(0, 2) @ pointwise
        total, squares = _channel_sums(z, z)
        mean = total / len(z)
        variance = (squares / len(z) - mean * mean).clamp_min(0)
        inverse = (variance + eps).rsqrt().float()
        mean = mean.float()
        scale = gamma * inverse
        y = _channel_affine(z, z, scale, torch.zeros_like(scale), beta - mean * scale)
        ctx.save_for_backward(x, u, z, mean, inverse, taps, pointwise, gamma)
        ctx.geometry = (kernel, stride)
        variance = variance.float()
        ctx.mark_non_differentiable(mean, variance)
        return y.view(*u.shape[:3], -1), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, u, z, mean, inverse, taps, pointwise, gamma = ctx.saved_tensors
        grad_y = gradients[0].reshape(z.shape).contiguous()
        total, products = (sums.float() for sums in _channel_sums(grad_y, z))
        grad_gamma = (products - mean * total) * inverse
        # dz = gamma / std * (g - mean(g) - z_hat mean(g z_hat)), written as one affine map of g and z
        alpha = gamma * inverse
        slope = -alpha * inverse * grad_gamma / len(z)
        grad_z = _channel_affine(grad_y, z, alpha, slope, -alpha * total / len(z) - slope * mean)
        grad_pointwise = u.flatten(0, 2).t() @ grad_z
        grad_u = (grad_z @ pointwise.t()).view(u.shape)
        if taps is None:
            grad_x, grad_taps = torch.ops.aten.threshold_backward(grad_u, u, 0), None
        else:
            grad_x, grad_taps = _depthwise_gradients(grad_u, x, taps, *ctx.geometry)
        return grad_x, grad_taps, grad_pointwise, grad_gamma, total, None, None, None


def _depthwise(x: Tensor, taps: Tensor, kernel: int, stride: int) -> Tensor:
    """relu(x) (B, H, W, C) convolved with taps (K * K, C) -> (B, H', W', C)."""
    batch, height, width, channels = x.shape
    out = x.new_empty(batch, -(-height // stride), -(-width // stride), channels)
    _library().depthwise_forward(_at(x), _at(taps), _at(out), *_integers(*x.shape, kernel, stride))
    return out


def _depthwise_gradients(grad: Tensor, x: Tensor, taps: Tensor, kernel: int, stride: int) -> tuple[Tensor, Tensor]:
    library = _library()
    grad_x, flipped = torch.empty_like(x), taps.flip(0)
    partial = taps.new_zeros(library.threads(), *taps.shape)  # one share a thread
    pointers = (_at(grad), _at(x), _at(flipped), _at(grad_x), _at(partial))
    library.depthwise_backward(*pointers, *_integers(len(partial), *x.shape, kernel, stride))
    return grad_x, partial.sum(0)


def _channel_sums(a: Tensor, b: Tensor) -> Tensor:
    """Sums of a and of a * b over the rows; a, b (P, C) -> float64 (2, C)."""
    library = _library()
    sums = torch.zeros(library.threads(), 2, a.shape[1], dtype=torch.float64)
    library.channel_sums(_at(a), _at(b), _at(sums), *_integers(len(sums), *a.shape))
    return sums.sum(0)


def _channel_affine(a: Tensor, b: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """a * alpha + b * beta + gamma per channel; a, b (P, C) -> (P, C)."""
    out = torch.empty_like(a)
    pointers = (_at(a), _at(b), _at(alpha), _at(beta), _at(gamma), _at(out))
    _library().channel_affine(*pointers, *_integers(*a.shape))
    return out


def _at(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def _integers(*values: int) -> tuple[ctypes.c_int64, ...]:
    return tuple(map(ctypes.c_int64, values))


@cache
def _library() -> ctypes.CDLL:
    source = Path(__file__).with_name("unit.cpp")
    key = hashlib.sha256(source.read_bytes() + " ".join(_FLAGS).encode() + torch.__version__.encode()).hexdigest()[:16]
    cached = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "earsight" / f"unit-{key}.so"
    if not cached.exists():
        _compile(source, cached)
    library = ctypes.CDLL(str(cached))
    library.threads.restype = ctypes.c_int64
    return library


def _compile(source: Path, target: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(
            f"the native kernel needs a C++ compiler, and {compiler!r} is not there: install g++ or set CXX"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}")  # several processes may compile at once; renaming is atomic
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    command = [compiler, *_FLAGS, *includes, str(source), "-o", str(unfinished), *libraries, "-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the native kernel did not compile with {compiler}: {done.stderr.strip().splitlines()[0]}")
    unfinished.replace(target)
