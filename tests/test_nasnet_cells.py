"""The 13 operations against loops over pixels written from TensorFlow's definition of 'SAME'; genotypes; reductions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from vision_zoo.cells import NASNET_A, Block, Cell, CellGenotype, DropPath, FactorisedReduction
from vision_zoo.operations import OPERATIONS, CellOptions, same_padding

Array = npt.NDArray[np.float64]
OPTIONS = CellOptions()


def windows(size: int, kernel: int, stride: int, dilation: int) -> list[list[tuple[int, int]]]:
    """For each output position of one axis: (kernel index, pixel) of the taps that fall on the image."""
    outputs = math.ceil(size / stride)
    reach = (kernel - 1) * dilation + 1
    before = max((outputs - 1) * stride + reach - size, 0) // 2
    starts = [out * stride - before for out in range(outputs)]
    return [[(k, start + k * dilation) for k in range(kernel) if 0 <= start + k * dilation < size] for start in starts]


def fold(x: Array, shape: tuple[int, int], stride: tuple[int, int], dilation: int, each: Callable[..., Any]) -> Array:
    """each(taps) -> channels, for every output pixel; taps: list of (kernel row, kernel column, pixel (C,))."""
    rows = windows(x.shape[1], shape[0], stride[0], dilation)
    columns = windows(x.shape[2], shape[1], stride[1], dilation)
    pixels = [[each([(i, j, x[:, r, c]) for i, r in row for j, c in column]) for column in columns] for row in rows]
    return np.stack([np.stack(line, axis=1) for line in pixels], axis=1)


def conv(x: Array, layer: nn.Conv2d, stride: tuple[int, int] = (1, 1), dilation: int = 1) -> Array:
    """Weights from the layer, geometry from the arguments."""
    weight = layer.weight.detach().double().numpy()  # (C', C / groups, rows, columns)
    shape = (weight.shape[2], weight.shape[3])
    if layer.groups > 1:  # depthwise
        return fold(x, shape, stride, dilation, lambda taps: sum(weight[:, 0, i, j] * v for i, j, v in taps))
    return fold(x, shape, stride, dilation, lambda taps: sum(weight[:, :, i, j] @ v for i, j, v in taps))


def norm(x: Array, layer: nn.BatchNorm2d) -> Array:
    assert layer.running_mean is not None and layer.running_var is not None
    scale = (layer.weight / (layer.running_var + layer.eps).sqrt()).detach().double().numpy()
    mean, bias = layer.running_mean.double().numpy(), layer.bias.detach().double().numpy()
    y: Array = (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]
    return y


def pool(x: Array, kind: str, kernel: int, stride: int) -> Array:
    """Only pixels of the image count, for the mean too."""
    reduce = np.mean if kind == "avg" else np.max
    return fold(x, (kernel, kernel), (stride, stride), 1, lambda taps: reduce([v for _, _, v in taps], axis=0))


def reference(name: str, x: Array, module: nn.Module, stride: int, filters: int) -> Array:
    """What the paper says that the operation is, with the module's weights in the order of use."""
    convs = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    kind, _, size = name.rpartition("_")
    both = (stride, stride)
    if kind in ("avg_pool", "max_pool"):
        y = pool(x, kind[:3], int(size[0]), stride)
        return y if x.shape[0] == filters else norm(conv(y, convs[0]), norms[0])
    if name == "identity" and stride == 1 and x.shape[0] == filters:
        return x
    if kind == "separable":
        assert [layer.kernel_size[0] for layer in convs] == [int(size[0]), 1, int(size[0]), 1]
        y = norm(conv(conv(x.clip(0), convs[0], both), convs[1]), norms[0])
        return norm(conv(conv(y.clip(0), convs[2]), convs[3]), norms[1])
    if name in ("conv_1x3_3x1", "conv_1x7_7x1"):
        k = int(name[7])
        assert [layer.kernel_size for layer in convs] == [(1, k), (k, 1)]
        return norm(conv(conv(x.clip(0), convs[0], (1, stride)), convs[1], (stride, 1)), norms[0])
    side, dilation = {"conv_1x1": (1, 1), "identity": (1, 1), "conv_3x3": (3, 1), "dilated_conv_3x3": (3, 2)}[name]
    assert [layer.kernel_size[0] for layer in convs] == [side]
    return norm(conv(x.clip(0), convs[0], both, dilation), norms[0])


def shake(module: nn.Module) -> nn.Module:
    """Evaluation mode with batch norms that do something."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 2.0)
            for tensor in (layer.bias.data, layer.running_mean):
                assert tensor is not None
                tensor.normal_()
    return module.eval()


def test_there_are_thirteen_operations() -> None:
    assert len(OPERATIONS) == 13


@pytest.mark.parametrize("shape", [(6, 6), (7, 5), (5, 8), (2, 3)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_its_definition(name: str, stride: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for inputs, filters in ((4, 4), (3, 4)):
        module = shake(OPERATIONS[name](inputs, filters, stride, OPTIONS))
        x = torch.randn(1, inputs, *shape)
        with torch.no_grad():
            ours = module(x)[0].double().numpy()
        expected = reference(name, x[0].double().numpy(), module, stride, filters)
        assert ours.shape == (filters, math.ceil(shape[0] / stride), math.ceil(shape[1] / stride))
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_operations_have_no_bias() -> None:
    for build in OPERATIONS.values():
        convs = [layer for layer in build(3, 4, 2, OPTIONS).modules() if isinstance(layer, nn.Conv2d)]
        assert all(layer.bias is None for layer in convs)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [(8, 3, 1, (1, 1)), (8, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (8, 5, 2, (1, 2)), (8, 7, 2, (2, 3)), (1, 1, 2, (0, 0))],
)
def test_same_padding_puts_the_odd_pixel_after(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == expected


def test_average_pools_leave_padding_out_unless_timm_is_matched() -> None:
    x = torch.ones(1, 1, 4, 4)
    exact = OPERATIONS["avg_pool_3x3"](1, 1, 2, OPTIONS)
    parity = OPERATIONS["avg_pool_3x3"](1, 1, 2, CellOptions(padding="timm"))
    assert torch.equal(exact(x), torch.ones(1, 1, 2, 2))
    assert torch.allclose(parity(x)[0, 0], torch.tensor([[1.0, 2 / 3], [2 / 3, 4 / 9]]))  # zeros right and below


@pytest.mark.parametrize("side", [4, 5])
def test_factorised_reduction_takes_even_pixels_and_the_ones_beside_them(side: int) -> None:
    module = FactorisedReduction(1, 2, OPTIONS).eval()
    nn.init.ones_(module.even.weight)
    nn.init.ones_(module.odd.weight)
    x = torch.arange(1.0, side * side + 1).view(1, 1, side, side)
    x[0, 0, 0, 0] = -5.0  # rectified
    with torch.no_grad():
        even, odd = module(x)[0] * (1 + OPTIONS.batch_norm_eps) ** 0.5
    expected_even = x[0, 0, ::2, ::2].clamp_min(0)
    expected_odd = torch.zeros_like(expected_even)  # beyond the edge there are zeros
    shifted = x[0, 0, 1::2, 1::2]
    expected_odd[: shifted.shape[0], : shifted.shape[1]] = shifted
    assert torch.allclose(even, expected_even) and torch.allclose(odd, expected_odd)


def test_factorised_reduction_of_an_odd_width_has_every_channel() -> None:
    assert FactorisedReduction(4, 5, OPTIONS)(torch.randn(2, 4, 6, 6)).shape == (2, 5, 3, 3)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (Block((0, 1), ("identity", "conv_9x9")), r"unknown operations \['conv_9x9'\] in block 2; choose from"),
        (Block((0, 1), ("identity", "identity"), "multiply"), "unknown combination 'multiply' in block 2"),
        (Block((0, 2), ("identity", "identity")), r"block 2 reads states \(0, 2\); it may read 0 to 1"),
        (Block((-1, 0), ("identity", "identity")), "it may read 0 to 1"),
    ],
)
def test_wrong_blocks_are_named(block: Block, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        CellGenotype((block,), (2,))


@pytest.mark.parametrize("output", [(), (3,), (-1,)])
def test_wrong_outputs_are_named(output: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="non-empty choice of 0 to 2"):
        CellGenotype((Block((0, 1), ("identity", "identity")),), output)


def test_a_cell_follows_its_genotype() -> None:
    """Two blocks small enough to write down: state 2 = h + p, state 3 = (state 2, max pool of h) side by side."""
    genotype = CellGenotype(
        (Block((0, 1), ("identity", "identity")), Block((2, 0), ("identity", "max_pool_3x3"), "concat")), (0, 3)
    )
    torch.manual_seed(0)
    cell = shake(Cell(genotype, 4, 4, 4, 1, False, DropPath(1.0, 1.0), OPTIONS))
    assert isinstance(cell, Cell)
    current, previous = torch.randn(1, 4, 5, 5), torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        h = cell.squeeze(current)
        second = h + previous
        pooled = nn.functional.max_pool2d(h, 3, 1, 1)
        assert torch.equal(cell(current, previous), torch.cat([h, second, pooled], 1))
    assert cell.out_channels == 12


def test_nasnet_a_reads_as_in_the_paper() -> None:
    assert len(NASNET_A.normal.blocks) == len(NASNET_A.reduction.blocks) == 5
    assert len(NASNET_A.normal.output) == 6 and len(NASNET_A.reduction.output) == 4
    assert all(block.combination == "add" for block in (*NASNET_A.normal.blocks, *NASNET_A.reduction.blocks))
    # block 5 of the reduction reads state 3, which is concatenated all the same
    assert 3 in NASNET_A.reduction.blocks[3].inputs and 3 in NASNET_A.reduction.output
