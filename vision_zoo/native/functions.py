"""The differentiable functions over the native kernels: the separable unit, batch norm and average pooling.

Letters: B batch, C and F channels, H height, W width. Tensors outside are (B, C, H, W), those that kernels read
(B, H, W, C); float32 or bfloat16. Statistics, and the gradients of weights, are float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vision_zoo.native.library import call


class UnitFunction(torch.autograd.Function):
    """Letters: u what the pointwise convolution reads, z what it gives, y the normalised z."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        depthwise: Tensor | None,  # (C, 1, K, K)
        pointwise: Tensor,  # (F, C, 1, 1)
        gamma: Tensor,
        beta: Tensor,
        norm: nn.BatchNorm2d,
        stride: int,
        dtype: torch.dtype,  # of everything between the kernels, and of the result
    ) -> Tensor:
        ctx.given, ctx.stride = x.dtype, stride
        x = _channels_last(x, dtype)
        u = _strided(x, stride)
        weight = pointwise.flatten(1).to(dtype)
        taps = None if depthwise is None else depthwise.contiguous()
        z = u.new_empty(*u.shape[:3], len(weight))
        y, mean, inverse = torch.empty_like(z), torch.empty_like(gamma), torch.empty_like(gamma)
        tensors = (x, taps, weight, gamma, beta, u, z, y, mean, inverse)
        call("unit_forward", *tensors, *_running(norm), _half(x), *_sizes(x, weight, taps), stride)
        ctx.save_for_backward(x, u, z, mean, inverse, taps, weight, gamma)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, u, z, mean, inverse, taps, weight, gamma = ctx.saved_tensors
        grad_y, pitch = _pixels(grad_y.to(z.dtype))
        grad_x, grad_taps = torch.empty_like(x), None if taps is None else torch.empty_like(taps)
        grad_weight = weight.new_empty(*weight.shape, 1, 1, dtype=torch.float32)
        grad_gamma, grad_beta = torch.empty_like(gamma), torch.empty_like(gamma)
        read = (grad_y, x, u, z, taps, weight, gamma, mean, inverse)
        written = (grad_x, grad_taps, grad_weight, grad_gamma, grad_beta)
        call("unit_backward", *read, *written, _half(x), pitch, *_sizes(x, weight, taps), ctx.stride)
        grad_x = grad_x.permute(0, 3, 1, 2).to(ctx.given)
        return grad_x, grad_taps, grad_weight, grad_gamma, grad_beta, None, None, None


class HalveFunction(torch.autograd.Function):
    """The factorised reduction: ReLU, two strided pointwise convolutions beside each other, batch norm."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        even: Tensor,  # (F, C, 1, 1) each
        odd: Tensor,
        gamma: Tensor,
        beta: Tensor,
        norm: nn.BatchNorm2d,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.given = x.dtype
        x = _channels_last(x, dtype)
        ctx.shape = x.shape
        inputs = _strided(x, 2), _strided(x, 2)
        call("halve_forward", x, *inputs, _half(x), *x.shape)
        weights = even.flatten(1).to(dtype), odd.flatten(1).to(dtype)
        z = torch.cat([u.flatten(0, 2) @ w.t() for u, w in zip(inputs, weights, strict=True)], dim=1)
        y, mean, inverse = _normalised(z, gamma, beta, norm)
        ctx.save_for_backward(*inputs, *weights, z, mean, inverse, gamma)
        return y.view(*inputs[0].shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        *inputs, even, odd, z, mean, inverse, gamma = ctx.saved_tensors
        grad_z, grad_gamma, grad_beta = _normalised_gradients(grad_y, z, mean, inverse, gamma)
        halves = grad_z.split([len(even), len(odd)], dim=1)
        grad_weights = [_weight_gradient(g, u) for g, u in zip(halves, inputs, strict=True)]
        grad_inputs = [g @ w for g, w in zip(halves, (even, odd), strict=True)]
        grad_x = z.new_empty(ctx.shape)
        call("halve_backward", *grad_inputs, *inputs, grad_x, _half(z), *ctx.shape)
        return grad_x.permute(0, 3, 1, 2).to(ctx.given), *grad_weights, grad_gamma, grad_beta, None, None


class PointwiseFunction(torch.autograd.Function):
    """A pointwise convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.given = x.dtype
        x = _channels_last(x, dtype)
        weight = weight.flatten(1).to(dtype)
        ctx.save_for_backward(x, weight)
        return (x.flatten(0, 2) @ weight.t()).view(*x.shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad = _channels_last(grad, x.dtype).flatten(0, 2)
        grad_x = (grad @ weight).view(x.shape).permute(0, 3, 1, 2)
        return grad_x.to(ctx.given), _weight_gradient(grad, x), None


class NormFunction(torch.autograd.Function):
    """Batch norm over the batch's own statistics."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gamma: Tensor, beta: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        z = _channels_last(z, z.dtype)
        y, mean, inverse = _normalised(z, gamma, beta, norm)
        ctx.save_for_backward(z, mean, inverse, gamma)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        z, mean, inverse, gamma = ctx.saved_tensors
        gradients = _normalised_gradients(grad_y, z, mean, inverse, gamma)
        return gradients[0].permute(0, 3, 1, 2), *gradients[1:], None


class AverageFunction(torch.autograd.Function):
    """Average pooling with 'SAME' padding over the pixels inside the image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int) -> Tensor:
        x = _channels_last(x, x.dtype)
        ctx.shape, ctx.window = x.shape, (kernel, stride)
        y = _strided(x, stride)
        call("average_forward", x, y, _half(x), *x.shape, kernel, stride)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        grad_y, pitch = _pixels(grad_y)
        grad_x = grad_y.new_empty(ctx.shape)
        call("average_backward", grad_y, grad_x, _half(grad_x), pitch, *ctx.shape, *ctx.window)
        return grad_x.permute(0, 3, 1, 2), None, None


class ForkFunction(torch.autograd.Function):
    """As many aliases of x as it has readers, whose gradients one pass adds up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, readers: int) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(x.detach() for _ in range(readers))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        given = [each for each in gradients if each is not None]
        if len(given) < 2:
            return (given[0] if given else None), None
        pixels, pitches = zip(*map(_pixels, given), strict=True)
        batch, channels, height, width = given[0].shape
        total = given[0].new_empty(batch, height, width, channels)
        addresses = torch.tensor([each.data_ptr() for each in pixels])
        rows = (batch * height * width, channels)
        call("sum_tensors", addresses, torch.tensor(pitches), len(given), total, _half(total), *rows)
        return total.permute(0, 3, 1, 2), None


def _pixels(x: Tensor) -> tuple[Tensor, int]:
    """(B, C, H, W) -> a tensor that starts where its pixels do, and how many elements they are apart.

    A slice of the channels of a channels-last tensor is taken as it is.
    """
    _, channels, height, width = x.shape
    pitch = x.stride(3)
    if pitch < channels or x.stride() != (height * width * pitch, 1, width * pitch, pitch):
        return _channels_last(x, x.dtype), channels
    return x, pitch


def _channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), contiguous."""
    return x.to(dtype).permute(0, 2, 3, 1).contiguous()


def _half(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _strided(x: Tensor, stride: int) -> Tensor:
    batch, height, width, channels = x.shape
    return x.new_empty(batch, -(-height // stride), -(-width // stride), channels)


def _weight_gradient(grad_z: Tensor, u: Tensor) -> Tensor:
    """grad_z (P, F), u (..., C), P pixels -> (F, C, 1, 1) of a pointwise convolution."""
    return (grad_z.t() @ u.flatten(0, 2)).float()[:, :, None, None]


def _normalised(z: Tensor, gamma: Tensor, beta: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    """z (..., C) -> y and the statistics that its gradient needs; moves the running ones of `norm`."""
    y, mean, inverse = torch.empty_like(z), torch.empty_like(gamma), torch.empty_like(gamma)
    call("norm_forward", z, gamma, beta, y, mean, inverse, *_running(norm), _half(z), *_rows(z))
    return y, mean, inverse


def _running(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, float, float]:
    """The running statistics for the kernel to move, momentum and eps; counts the batch."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    return norm.running_mean, norm.running_var, float(norm.momentum), norm.eps


def _sizes(x: Tensor, weight: Tensor, taps: Tensor | None) -> tuple[int, ...]:
    """Images, height, width, channels, filters and the side of the window of a unit."""
    return *x.shape, len(weight), 0 if taps is None else taps.shape[2]


def _normalised_gradients(
    grad: Tensor, z: Tensor, mean: Tensor, inverse: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """grad (B, C, H, W) -> the gradients of z, shaped as it is, gamma and beta."""
    grad, pitch = _pixels(grad.to(z.dtype))
    grad_z, grad_gamma, grad_beta = torch.empty_like(z), torch.empty_like(gamma), torch.empty_like(gamma)
    tensors = (grad, z, gamma, mean, inverse, grad_z, grad_gamma, grad_beta)
    call("norm_backward", *tensors, _half(z), pitch, *_rows(z))
    return grad_z, grad_gamma, grad_beta


def _rows(z: Tensor) -> tuple[int, int]:
    return z.numel() // z.shape[-1], z.shape[-1]
