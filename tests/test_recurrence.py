"""The recurrence of a training step in bfloat16, against the same arithmetic frame by frame."""

import pytest
import torch
from torch import Tensor

from asr_server.native import core
from asr_server.recurrence import recur

SIZES = [(1, 1, 1), (6, 3, 40), (9, 17, 70), (4, 8, 64)]


def rounded(values: Tensor) -> Tensor:
    return values.bfloat16().float()


def problem(frames: int, batch: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(frames)
    inputs = torch.randn(frames, batch, width, generator=generator)
    inputs[-1, 0] = float("-inf")  # padding
    weight = torch.randn(width, width, generator=generator) / width**0.5
    return inputs, weight, torch.rand(batch, width, generator=generator)


def in_bfloat16(inputs: Tensor, weight: Tensor, initial: Tensor, clip: float, reverse: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return recur(inputs, weight, initial, clip, reverse=reverse)


def frame_by_frame(inputs: Tensor, weight: Tensor, initial: Tensor, clip: float, reverse: bool) -> Tensor:
    order = reversed(range(len(inputs))) if reverse else range(len(inputs))
    states, before = torch.empty_like(inputs), initial
    for t in order:
        states[t] = before = (inputs[t] + rounded(before) @ rounded(weight).T).clamp(0, clip)
    return states


def gradient(outer: Tensor, weight: Tensor, states: Tensor, clip: float, reverse: bool) -> Tensor:
    order = range(len(states)) if reverse else reversed(range(len(states)))
    inner, after = torch.empty_like(states), torch.zeros_like(states[0])
    for t in order:
        open_gate = (states[t] > 0) & (states[t] < clip)
        inner[t] = after = (outer[t] + rounded(after) @ rounded(weight)) * open_gate
    return inner


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_autocast_rounds_the_operands_and_nothing_else(size: tuple[int, int, int], reverse: bool, threads: int) -> None:
    inputs, weight, initial = problem(*size)
    if core is None or not core.bf16_supported():  # this processor computes as without autocast
        found = in_bfloat16(inputs, weight, initial, 1.5, reverse)
        torch.testing.assert_close(found, recur(inputs, weight, initial, 1.5, reverse=reverse), rtol=0, atol=0)
        return
    states, inner = torch.empty_like(inputs), torch.empty_like(inputs)
    core.bf16_recur(inputs, weight, initial, 1.5, reverse, threads, states)
    torch.testing.assert_close(states, frame_by_frame(inputs, weight, initial, 1.5, reverse), rtol=0, atol=2e-2)
    assert ((states - frame_by_frame(inputs, weight, initial, 1.5, reverse)).abs().mean()) < 1e-3
    outer = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    core.bf16_recur_backward(outer, weight, states, 1.5, reverse, threads, inner)
    torch.testing.assert_close(inner, gradient(outer, weight, states, 1.5, reverse), rtol=0, atol=5e-2)
    assert (inner - gradient(outer, weight, states, 1.5, reverse)).abs().mean() < 2e-3


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_near_those_of_full_precision(reverse: bool) -> None:
    size = (12, 5, 48)
    found = []
    for rounds in (True, False):
        inputs, weight, initial = (tensor.requires_grad_() for tensor in problem(*size))
        with torch.autocast("cpu", torch.bfloat16, enabled=rounds):
            states = recur(inputs, weight, initial, 1e4, reverse=reverse)  # so high a clip that few gates can differ
        states.sum().backward()
        found.append([tensor.grad for tensor in (inputs, weight, initial)])
    for ours, exact in zip(*found, strict=True):
        assert ours is not None
        assert exact is not None
        assert torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), 0) > 0.995


def test_without_frames_or_batch_there_is_nothing() -> None:
    assert in_bfloat16(torch.zeros(0, 3, 8), torch.eye(8), torch.zeros(3, 8), 1.0, False).shape == (0, 3, 8)
    assert in_bfloat16(torch.zeros(2, 0, 8), torch.eye(8), torch.zeros(0, 8), 1.0, False).shape == (2, 0, 8)


def test_shapes_that_do_not_fit_are_refused() -> None:
    if core is None:  # nothing to call
        return
    rows = torch.zeros(2, 3, 8)
    with pytest.raises(ValueError, match="weight"):
        core.bf16_recur(rows, torch.eye(7), torch.zeros(3, 8), 1.0, False, 1, torch.zeros(2, 3, 8))
    with pytest.raises(ValueError, match="initial state"):
        core.bf16_recur(rows, torch.eye(8), torch.zeros(2, 8), 1.0, False, 1, torch.zeros(2, 3, 8))
    with pytest.raises(ValueError, match="weight"):
        core.bf16_recur_backward(rows, torch.eye(8), torch.zeros(1, 3, 8), 1.0, False, 1, torch.zeros(2, 3, 8))
