"""The layer with gates, and the scan that it is made of."""

import pytest
import torch
from torch import Tensor

from asr_server.gated import GatedLayer
from asr_server.native import core
from asr_server.recurrence import scan


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_a_scan_by_hand() -> None:
    inputs, kept = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1), torch.tensor([0.5, 0.25, 0.5]).view(3, 1, 1)
    initial = torch.tensor([[8.0]])
    assert scan(inputs, kept, initial).flatten().tolist() == [5.0, 3.25, 5.625]
    assert scan(inputs, kept, initial, reverse=True).flatten().tolist() == [3.0, 4.0, 8.0]


@pytest.mark.parametrize("reverse", [False, True])
def test_the_gradient_is_the_numerical_one(reverse: bool) -> None:
    tensors = [numbers(*shape, seed=seed).double() for seed, shape in enumerate([(6, 2, 3), (6, 2, 3), (2, 3)])]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *args: scan(*args, reverse=reverse), tensors)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("frames", [0, 1, 9])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_native_scan_is_the_reference(frames: int, reverse: bool, threads: int) -> None:
    shapes = [(frames, 3, 5), (frames, 3, 5), (3, 5)]
    outer = numbers(frames, 3, 5, seed=7)
    found, before = [], torch.get_num_threads()
    torch.set_num_threads(threads)
    for kind in (torch.float32, torch.float64):  # the native core takes single precision only
        tensors = [numbers(*shape, seed=seed).to(kind).requires_grad_() for seed, shape in enumerate(shapes)]
        states = scan(*tensors, reverse=reverse)
        (states * outer.to(kind)).sum().backward()
        found.append([states, *(tensor.grad for tensor in tensors)])
    torch.set_num_threads(before)
    for ours, reference in zip(*found, strict=True):
        assert ours is not None
        assert reference is not None
        torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-6)


def test_arrays_of_other_shapes_are_refused() -> None:
    if core is None:  # nothing to call
        return
    rows, edge = torch.zeros(4, 2, 3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="different shapes"):
        core.scan(rows, rows[:3], edge, False, 1, torch.zeros(4, 2, 3))
    with pytest.raises(ValueError, match="before the first frame"):
        core.scan(rows, rows, torch.zeros(2, 4), False, 1, torch.zeros(4, 2, 3))


def test_units_remember_for_different_times_at_first() -> None:
    torch.manual_seed(0)
    gates = GatedLayer(64, 0.0).linear.bias.detach()[128:256].sigmoid()
    frames = 1 / (1 - gates)
    assert 1.4 < float(frames.min()) < 3
    assert 30 < float(frames.max()) < 61


def test_a_layer_trains_under_autocast() -> None:
    torch.manual_seed(0)
    layer = GatedLayer(16, 0.1)
    inputs = numbers(7, 2, 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        start = layer.project(inputs[0, 0]).new_zeros(3, 16)  # as the network makes it: of the lower precision
        outputs, carried = layer(inputs, torch.ones(7, 2, 3, 1), start, 3, True)
    (outputs.float().sum() + carried.sum()).backward()
    assert outputs.shape == inputs.shape
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in layer.parameters())


def test_dropout_takes_whole_units() -> None:
    torch.manual_seed(0)
    layer = GatedLayer(16, 0.5)
    with torch.no_grad():
        layer.project.weight.copy_(torch.eye(16))
        layer.project.bias.zero_()
    inputs = numbers(7, 1, 2, 16)
    rest = (torch.ones(7, 1, 2, 1), torch.zeros(2, 16), 0, False)
    changed = (layer(inputs, *rest)[0] - inputs) == 0
    assert (changed.all(0) == changed.any(0)).all()
    assert 0 < int(changed[0].sum()) < 32
    assert not ((layer.eval()(inputs, *rest)[0] - inputs) == 0).any()
