"""The layer with gates, and the scan that it is made of."""

import pytest
import torch
from torch import Tensor

from asr_server.gated import GatedLayer, gated_scan
from asr_server.native import core


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def scan(products: Tensor, heard: Tensor, start: Tensor, right: int, more: bool) -> list[Tensor]:
    """Results of the scan, and gradients of a weighted sum of them, at the products and the start."""
    products, start = products.clone().requires_grad_(), start.clone().requires_grad_()
    opened, carried = gated_scan(products, heard.to(start.dtype), start, right, more)
    weighted = opened * numbers(*opened.shape, seed=3).to(opened.dtype)
    (weighted.double().sum() + (carried * numbers(*carried.shape, seed=4)).double().sum()).backward()
    assert products.grad is not None
    assert start.grad is not None
    return [opened, carried, products.grad, start.grad]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_scan_by_hand(kind: torch.dtype) -> None:
    kept = torch.tensor([0.5, 0.25, 0.5]).logit()
    values = torch.tensor([2.0, 4.0, 8.0])
    open_by_one = 1.2784645427610738  # silu of it is 1
    rows = torch.stack([values, -values, kept, kept, torch.full((3,), open_by_one)], -1)
    products = rows.view(3, 1, 1, 5).to(kind)
    heard, start = torch.ones(3, 1, 1, 1, dtype=kind), torch.full((1, 1), 8.0, dtype=kind)
    opened, carried = gated_scan(products, heard, start, 0, False)
    # Forward 8 -> 5 -> 4.25 -> 6.125; backward 0 -> -4 -> -4 -> -3.
    torch.testing.assert_close(opened.flatten(), torch.tensor([2.0, 0.25, 2.125], dtype=kind))
    torch.testing.assert_close(carried, torch.full((1, 1), 6.125, dtype=kind))


@pytest.mark.parametrize(("right", "more"), [(0, False), (2, False), (2, True)])
def test_the_gradient_is_the_numerical_one(right: int, more: bool) -> None:
    heard = torch.ones(5, 2, 2, 1).double()
    heard[3:, 1, 1] = 0
    tensors = [numbers(5, 2, 2, 15, seed=1).double() * 4 - 2, numbers(2, 3, seed=2).double()]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda products, start: gated_scan(products, heard, start, right, more), tensors)


@pytest.mark.parametrize(("right", "more"), [(0, False), (2, False), (2, True)])
@pytest.mark.parametrize("window", [3, 9])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("kind", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_the_native_scan_is_the_reference(
    window: int, right: int, more: bool, threads: int, kind: torch.dtype, near: float
) -> None:
    products = ((numbers(window, 2, 3, 5 * 19) - 0.5) * 8).to(kind)
    heard = (numbers(window, 2, 3, 1, seed=1) > 0.2).float()
    start, before = numbers(3, 19, seed=2), torch.get_num_threads()
    torch.set_num_threads(threads)
    ours = scan(products, heard, start, right, more)
    torch.set_num_threads(before)
    reference = scan(products.double(), heard, start.double(), right, more)  # the core takes no double precision
    for found, wanted in zip(ours, reference, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=near, atol=near)


def test_gates_that_are_shut_or_open_keep_their_limits() -> None:
    products = torch.tensor([3.0, 5.0, 1e4, -1e4, 1e4]).view(1, 1, 1, 5)
    opened, carried = gated_scan(products, torch.ones(1, 1, 1, 1), torch.full((1, 1), 2.0), 0, False)
    assert carried.item() == 2.0
    assert opened.item() == pytest.approx(1e4 * (2.0 + 5.0))


def test_arrays_of_other_shapes_are_refused() -> None:
    if core is None:  # nothing to call
        return
    products, heard, start, states = (torch.zeros(shape) for shape in [(4, 1, 2, 15), (4, 1, 2), (2, 3), (4, 1, 2, 3)])
    with pytest.raises(ValueError, match="takes \\(window"):
        core.gated_scan(products, heard[:3], start, 0, False, 1, states, states, states)
    with pytest.raises(ValueError, match="shorter than the window"):
        core.gated_scan(products, heard, start, 4, False, 1, states, states, states)
    with pytest.raises(ValueError, match="do not fit its products"):
        core.gated_scan(products, heard, start, 1, False, 1, states, states, states)
    with pytest.raises(ValueError, match="another shape than its states"):
        core.gated_scan(products, heard, start, 0, False, 1, states, states.clone(), states[:3].clone())
    with pytest.raises(ValueError, match="gradients have other shapes"):
        core.gated_scan_backward(
            states, start, products, heard, start, 0, False, 1, states, states, products[:3].clone(), start.clone()
        )


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
