"""The network as it is served: in the precision that this machine computes fastest.

fp32    as trained
bf16    weights and feature maps rounded to bfloat16; in NASNets the batch norms folded into the pointwise
        convolutions, whose weights are packed once. Sums inside a convolution, other batch norms, the pooling and the
        classifier stay fp32. Fast where the processor multiplies bfloat16 (AVX-512 BF16, AMX)

In both, channels lie last in memory, which is how a CPU's convolutions read them fastest.

Dimension letters: B batch, C channels, H height, W width, S side of the input, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from vision_zoo.head import can_cut
from vision_zoo.operations import STRIDED, SameConv2d, Unit

FP32 = "fp32"
PRECISIONS = (FP32, "bf16")
AUTO = "auto"
SMALL = 3_000_000  # parameters; with fewer the products are too short for bf16 to save what the rounding costs


class PackedConv2d(nn.Module):
    """A SameConv2d (C, C') whose weight is rounded and packed, with a bias (C',) or none; for inference."""

    def __init__(self, convolution: SameConv2d, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._kernel, self._padding = convolution.kernel_size, convolution.grid.padding
        self._settings = ([*convolution.stride], [*convolution.dilation], convolution.groups)
        # The layout is chosen for maps of a usual size; others are computed as well.
        sizes = [1, weight.shape[1] * convolution.groups, 42, 42]
        rounded = weight.bfloat16().contiguous(memory_format=torch.channels_last)
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(rounded, [0, 0], *self._settings, sizes)
        self._bias = None if bias is None else bias.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """bf16 (B, C, H, W) -> bf16 (B, C', H', W')."""
        (stride, dilation, groups), kernel = self._settings, self._kernel
        top, bottom = self._padding(x.shape[2], kernel[0], stride[0], dilation[0])
        left, right = self._padding(x.shape[3], kernel[1], stride[1], dilation[1])
        padding = [top, left]
        if top != bottom or left != right:
            x, padding = F.pad(x, (left, right, top, bottom)), [0, 0]
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, padding, stride, dilation, groups, "none", [], ""
        )
        return y


class Product(nn.Module):
    """A pointwise SameConv2d (C, C') as a matrix product, with a bias (C',) or none; for inference.

    Packed for one size of map, its weight would be laid out anew in every call for another, which takes several times
    as long as the product where the processor has AMX.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._weight = weight.flatten(1).bfloat16()
        self._bias = None if bias is None else bias.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """bf16 (B, C, H, W) -> bf16 (B, C', H, W)."""
        return F.linear(x.permute(0, 2, 3, 1), self._weight, self._bias).permute(0, 3, 1, 2)


def _convolution(of: SameConv2d, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    pointwise = of.kernel_size == (1, 1) and of.stride == (1, 1) and of.grid_stride == (1, 1) and of.groups == 1
    return Product(weight, bias) if pointwise else PackedConv2d(of, weight, bias)


class PackedUnit(nn.Module):
    """A Unit with the batch norm folded in; for inference."""

    def __init__(self, unit: Unit) -> None:
        super().__init__()
        norm = unit.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight, bias = unit.pointwise.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
        depthwise = unit.depthwise
        self.depthwise = nn.Identity() if depthwise is None else _convolution(depthwise, depthwise.weight)
        self.pointwise = _convolution(unit.pointwise, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(F.relu(x)))
        return y


class Rounded(nn.Module):
    """A network whose trunk is rounded and whose pooling and classifier are the exact one's.

    forward(images (B, 3, S, S), float32) -> logits (B, K), float32. Its halves are those of head.cut.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._exact: Any = model
        self._rounded: Any = _rounded(model)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        x = images.to(torch.bfloat16, memory_format=torch.channels_last)
        features: Tensor = self._rounded.forward_features(x)
        return features.float()

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        logits: Tensor = self._exact.forward_head(features, pre_logits=pre_logits)
        return logits

    def get_classifier(self) -> nn.Module:
        classifier: nn.Module = self._exact.get_classifier()
        return classifier


def for_serving(model: nn.Module, precision: str = AUTO) -> tuple[nn.Module, str]:
    """-> the network in a precision, and which one that is; "auto" is what this machine computes fastest.

    It wants images with the channels last. fp32 is the network itself; bf16 shares its classifier. ValueError for a
    precision that is unknown, that this processor has no instructions for, or that the network cannot be computed in.
    """
    if precision == AUTO:
        precision = fastest(model)
    if precision not in available():
        choices = (AUTO, *available())
        raise ValueError(f"precision {precision!r} is not one of this processor's. Select one of {choices}")
    if precision == "fp32":
        return model.to(memory_format=torch.channels_last), precision
    if not can_cut(model):
        raise ValueError(
            f"precision {precision!r} is for NASNets and models of timm; {type(model).__name__} needs fp32"
        )
    return Rounded(model).eval(), precision


def available() -> tuple[str, ...]:
    """Precisions whose products this processor has instructions for."""
    supported = _capabilities()
    fast = torch.backends.mkldnn.is_available() and (supported.get("avx512_bf16") or supported.get("amx_bf16"))
    return PRECISIONS if fast else (FP32,)


def fastest(model: nn.Module) -> str:
    """What to serve a network in on this machine."""
    large = sum(parameter.numel() for parameter in model.parameters()) >= SMALL
    return "bf16" if "bf16" in available() and large and can_cut(model) else "fp32"


def _capabilities() -> Mapping[str, Any]:
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


@torch.no_grad()
def _rounded(model: nn.Module) -> nn.Module:
    """A copy in bf16; batch norms keep their statistics in fp32, which torch computes with as they are."""
    rounded = copy.deepcopy(model).requires_grad_(False)
    rounded = _packed(rounded).to(torch.bfloat16).to(memory_format=torch.channels_last)
    exact = dict(model.named_modules())
    for name, module in rounded.named_modules():
        if isinstance(module, _BatchNorm):
            module.float().load_state_dict(exact[name].state_dict())
    return rounded.eval()


def _packed(module: nn.Module) -> nn.Module:
    """The same module with its units packed, but for those on a dense grid."""
    for name, child in module.named_children():
        packs = isinstance(child, Unit) and child.pointwise.grid == STRIDED
        setattr(module, name, PackedUnit(cast(Unit, child)) if packs else _packed(child))
    return module
