"""The native training kernel computes what the plain unit computes, forward and backward."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import Tensor

from vision_zoo.nasnet import NASNet, NASNetConfig
from vision_zoo.native import accelerate
from vision_zoo.operations import CellOptions, Unit

OPTIONS = CellOptions(batch_norm_eps=1e-5, batch_norm_momentum=0.1)
CASES = [  # inputs, filters, kernel, stride, side
    (16, 24, 3, 1, 9),
    (16, 24, 5, 2, 9),
    (16, 24, 7, 2, 8),
    (48, 16, 5, 1, 17),
    (16, 16, 0, 1, 7),
    (8, 8, 3, 2, 7),
]


def distance(expected: Tensor, actual: Tensor) -> float:
    return float(((expected - actual).norm() / expected.norm().clamp_min(1e-12)).detach())


def test_a_compiler_is_there() -> None:
    assert shutil.which("g++"), "the native kernel is compiled by g++"


@pytest.mark.parametrize(("inputs", "filters", "kernel", "stride", "side"), CASES)
def test_native_equals_plain(inputs: int, filters: int, kernel: int, stride: int, side: int) -> None:
    torch.manual_seed(inputs + kernel)
    plain = Unit(inputs, filters, kernel, stride, OPTIONS)
    torch.nn.init.normal_(plain.norm.weight)
    native = copy.deepcopy(plain)
    assert accelerate(native) == 1
    x = torch.randn(5, inputs, side, side).contiguous(memory_format=torch.channels_last)
    inputs_of = {unit: x.clone().requires_grad_() for unit in (plain, native)}
    outputs = {unit: unit(inputs_of[unit]) for unit in (plain, native)}
    direction = torch.randn_like(outputs[plain])
    for unit in (plain, native):
        outputs[unit].backward(direction)
    assert distance(outputs[plain], outputs[native]) < 1e-5
    x_plain, x_native = inputs_of[plain].grad, inputs_of[native].grad
    assert x_plain is not None and x_native is not None
    assert distance(x_plain, x_native) < 1e-5
    for (name, expected), actual in zip(plain.named_parameters(), native.parameters(), strict=True):
        assert expected.grad is not None and actual.grad is not None
        assert distance(expected.grad, actual.grad) < 1e-5, name
    for (name, kept), other in zip(plain.named_buffers(), native.buffers(), strict=True):
        assert distance(kept.float(), other.float()) < 1e-5, name


def test_a_whole_network_trains_alike_and_serves_the_plain_code() -> None:
    torch.manual_seed(0)
    # 16 is the narrowest network whose every width is a multiple of 8; the stem's 48 feeds cell 0 unprojected.
    plain = NASNet(NASNetConfig(cells=1, filters=384, stem_stride=2, auxiliary=False))
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
