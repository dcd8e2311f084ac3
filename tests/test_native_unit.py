"""The native training kernels compute what the plain modules compute, forward and backward, in fp32 and bf16."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision_zoo.cells import FactorisedReduction
from vision_zoo.nasnet import NASNet, NASNetConfig
from vision_zoo.native import accelerate, library
from vision_zoo.operations import CellOptions, SameConv2d, SamePool2d, Unit

OPTIONS = CellOptions(batch_norm_eps=1e-5, batch_norm_momentum=0.1)
ROUNDING = {"fp32": 1e-5, "bf16": 2e-2}  # of a chain of operations, as a share of the result's length
CASES = [  # inputs, filters, kernel, stride, side
    (16, 24, 3, 1, 9),
    (16, 24, 5, 2, 9),
    (16, 24, 7, 2, 8),
    (48, 16, 5, 1, 17),
    (24, 16, 7, 1, 6),
    (40, 32, 5, 2, 12),
    (32, 32, 3, 2, 16),
    (16, 16, 0, 1, 7),
    (8, 8, 3, 2, 7),
    (12, 16, 3, 1, 6),
    (16, 12, 5, 2, 6),
    (44, 88, 5, 1, 8),  # the widths of NASNet-A mobile and of its stem
    (22, 22, 7, 2, 9),
    (11, 11, 5, 2, 15),
    (31, 1, 3, 1, 5),
    (11, 5, 0, 1, 7),
]
MODULES: list[tuple[nn.Module, int, int]] = [  # module, channels, side
    (nn.BatchNorm2d(24), 24, 5),
    (SameConv2d(16, 20, 1), 16, 6),
    (SamePool2d("avg", 3, 1), 24, 9),
    (SamePool2d("avg", 3, 2), 16, 9),
    (SamePool2d("avg", 3, 2), 8, 8),
    (SamePool2d("avg", 5, 1), 8, 11),
    (nn.BatchNorm2d(11), 11, 5),
    (SamePool2d("avg", 3, 2), 22, 9),
    (FactorisedReduction(22, 44, OPTIONS), 22, 7),
    (FactorisedReduction(24, 16, OPTIONS), 24, 8),
    (FactorisedReduction(16, 24, OPTIONS), 16, 7),
]


def distance(expected: Tensor, actual: Tensor) -> float:
    return float(((expected.float() - actual.float()).norm() / expected.norm().clamp_min(1e-12)).detach())


def compare(plain: nn.Module, native: nn.Module, x: Tensor, precision: str) -> None:
    """`plain` runs in fp32, on the input and the gradient that `native` has in its precision."""
    if precision == "bf16":
        x = x.bfloat16()
    given = {plain: x.clone().float().requires_grad_(), native: x.clone().requires_grad_()}
    outputs = {plain: plain(given[plain])}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        outputs[native] = native(given[native])
    assert outputs[native].dtype == x.dtype
    direction = torch.randn_like(outputs[native])
    outputs[plain].backward(direction.float())
    outputs[native].backward(direction)
    bound = ROUNDING[precision]
    assert distance(outputs[plain], outputs[native]) < bound
    x_plain, x_native = given[plain].grad, given[native].grad
    assert x_plain is not None and x_native is not None and x_native.dtype == x.dtype
    assert distance(x_plain, x_native) < bound
    for (name, expected), actual in zip(plain.named_parameters(), native.parameters(), strict=True):
        assert expected.grad is not None and actual.grad is not None
        assert distance(expected.grad, actual.grad) < bound, name
    for (name, kept), other in zip(plain.named_buffers(), native.buffers(), strict=True):
        assert distance(kept.float(), other.float()) < bound, name


def test_a_compiler_is_there() -> None:
    assert shutil.which("g++"), "the native kernel is compiled by g++"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("inputs", "filters", "kernel", "stride", "side"), CASES)
def test_native_equals_plain(inputs: int, filters: int, kernel: int, stride: int, side: int, precision: str) -> None:
    torch.manual_seed(inputs + kernel)
    plain = Unit(inputs, filters, kernel, stride, OPTIONS)
    nn.init.normal_(plain.norm.weight)
    native = copy.deepcopy(plain)
    assert accelerate(native) == 1
    x = torch.randn(5, inputs, side, side).contiguous(memory_format=torch.channels_last)
    compare(plain, native, x, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("plain", "channels", "side"), MODULES)
def test_the_modules_beside_the_units_do_too(plain: nn.Module, channels: int, side: int, precision: str) -> None:
    torch.manual_seed(side)
    plain = copy.deepcopy(plain)
    wrapped = nn.Sequential(copy.deepcopy(plain))
    accelerate(wrapped)
    assert type(wrapped[0]) is not type(plain) and isinstance(wrapped[0], type(plain))
    x = torch.randn(3, channels, side, side + 1).contiguous(memory_format=torch.channels_last)
    compare(plain, wrapped[0], x, precision)


def test_an_image_that_is_a_slice_of_channels_is_read_where_it_lies() -> None:
    torch.manual_seed(1)
    plain = Unit(16, 16, 3, 1, OPTIONS)
    native = copy.deepcopy(plain)
    accelerate(native)
    x, direction = torch.randn(2, 16, 4, 5), torch.randn(2, 48, 4, 5).contiguous(memory_format=torch.channels_last)
    for unit in (plain, native):
        unit(x).backward(direction[:, 16:32])
    for (name, expected), actual in zip(plain.named_parameters(), native.parameters(), strict=True):
        assert expected.grad is not None and actual.grad is not None
        assert distance(expected.grad, actual.grad) < ROUNDING["fp32"], name


def test_a_batch_of_one_pixel_is_refused_as_without_native() -> None:
    native = Unit(8, 8, 3, 1, OPTIONS)
    accelerate(native)
    with pytest.raises(ValueError, match="more than 1 value"):
        native(torch.randn(1, 8, 1, 1))


def small_network() -> NASNet:
    # Cells of 16 channels; the stem's 48 feeds cell 0 unprojected.
    return NASNet(NASNetConfig(cells=1, filters=384, stem_stride=2, auxiliary=False))


def test_a_whole_network_trains_alike_and_serves_the_plain_code() -> None:
    torch.manual_seed(0)
    plain = small_network()
    native = copy.deepcopy(plain)
    assert accelerate(native) > 30
    images = torch.randn(4, 3, 32, 32)
    for network in (plain, native):
        network.train()
        network(images).square().mean().backward()
    plain_gradients = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
    native_gradients = torch.cat([p.grad.flatten() for p in native.parameters() if p.grad is not None])
    assert distance(plain_gradients, native_gradients) < 1e-3  # 5 cells of batch norm over 4 images amplify rounding
    plain.load_state_dict(native.state_dict())
    assert torch.equal(plain.eval()(images), native.eval()(images))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls(precision: str) -> None:
    torch.manual_seed(2)
    network = small_network().to(memory_format=torch.channels_last).train()
    accelerate(network)
    images, targets = torch.randn(8, 3, 32, 32), torch.arange(8)
    optimiser = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(network(images), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_subnormal_numbers_stay_what_they_are() -> None:
    """Code linked by -ffast-math would round them to zero, in everything that runs in the process."""
    library.load()
    assert float(torch.tensor(1e-310, dtype=torch.float64)) / 2 > 0 and 5e-324 > 0
