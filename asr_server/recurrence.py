"""The paper's recurrent layer without gates: h_t = g(z_t + W h_{t-1}), g(x) = min(max(x, 0), clip).

A loop of autograd operations would keep every step's graph; this function keeps only the states, steps in place and
computes the weight's gradient as one large matrix product. Under autocast to bfloat16, on processors that multiply it,
the native core runs the frames: W and the states that it meets are rounded, states and sums stay fp32.
Dimension letters: T frames, B batch, H hidden. Time comes first, so that every step reads one contiguous block.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from asr_server.native import core


class RecurrentProduct(Protocol):
    """A matrix in a form of its own (precision.py), which therefore runs the recurrence itself; without gradients."""

    def recur(self, inputs: Tensor, initial: Tensor, clip: float, reverse: bool) -> Tensor: ...


def recur(
    inputs: Tensor,
    weight: Tensor | RecurrentProduct,
    initial: Tensor,
    clip: float,
    *,
    reverse: bool = False,
) -> Tensor:
    """(T, B, H), (H, H), (B, H) -> states (T, B, H). In reverse the recurrence runs from the last frame to the first.

    An input of -inf makes the state zero, whatever came before: padding is written that way.
    """
    if not isinstance(weight, Tensor):
        return weight.recur(inputs, initial, clip, reverse)
    device = inputs.device.type
    rounded = (
        device == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
        and core is not None
        and core.bf16_supported()
    )
    with torch.autocast(device_type=device, enabled=False):
        states = _Recurrence.apply(inputs.float(), weight.float(), initial.float(), clip, reverse, rounded)
    return cast(Tensor, states)


def recur_by_frames(
    inputs: Tensor, product: Callable[[Tensor], Tensor], initial: Tensor, clip: float, reverse: bool
) -> Tensor:
    """The recurrence through any product, (B, H) -> (B, H), one call a frame; without gradients."""
    states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    previous = initial
    for t in _order(len(inputs), reverse):
        torch.add(inputs[t], product(previous), out=states[t])
        previous = states[t].clamp_(0, clip)
    return states


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, initial: Tensor, clip: float, reverse: bool, rounded: bool
    ) -> Tensor:
        states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        if rounded:
            arrays = [tensor.detach().contiguous() for tensor in (inputs, weight, initial)]
            core.bf16_recur(*arrays, clip, reverse, torch.get_num_threads(), states)
        else:
            previous = initial
            for t in _order(len(inputs), reverse):
                torch.addmm(inputs[t], previous, weight.t(), out=states[t])
                previous = states[t].clamp_(0, clip)
        ctx.save_for_backward(weight, initial, states)
        ctx.clip, ctx.reverse, ctx.rounded = clip, reverse, rounded
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, initial, states = ctx.saved_tensors
        inner = _inner_gradient(ctx, gradients[0], weight, states)
        first = inner[-1:] if ctx.reverse else inner[:1]  # one frame, or none when there are no frames
        before, after = (states[1:], inner[:-1]) if ctx.reverse else (states[:-1], inner[1:])
        kind = torch.bfloat16 if ctx.rounded else torch.float32
        weight_gradient = (after.flatten(0, 1).to(kind).t() @ before.flatten(0, 1).to(kind)).float()
        if len(first):
            weight_gradient.addmm_(first[0].t(), initial)
        following = first[0] if len(first) else torch.zeros_like(initial)
        return inner, weight_gradient, following @ weight, None, None, None


def _inner_gradient(ctx: Any, outer: Tensor, weight: Tensor, states: Tensor) -> Tensor:
    """Gradient at the inputs, (T, B, H): what comes from above and from the frame after, where the ReLU is open."""
    inner = torch.empty_like(states)
    if ctx.rounded:
        arrays = [tensor.detach().contiguous() for tensor in (outer, weight, states)]
        core.bf16_recur_backward(*arrays, ctx.clip, ctx.reverse, torch.get_num_threads(), inner)
        return inner
    open_gate = (states > 0) & (states < ctx.clip)
    following = states.new_zeros(states.shape[1:])
    for t in _order(len(states), not ctx.reverse):
        torch.addmm(outer[t], following, weight, out=inner[t])
        following = inner[t].mul_(open_gate[t])
    return inner


def _order(frames: int, reverse: bool) -> range:
    return range(frames - 1, -1, -1) if reverse else range(frames)
