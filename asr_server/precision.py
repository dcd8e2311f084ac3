"""The network as it is served: in the precision that this machine computes fastest, and cut into chunks.

fp32    as trained
bf16    weights and inputs of the products rounded to bfloat16 and packed once; sums and states stay fp32. Fast where
        the processor multiplies bfloat16 (AVX-512 BF16, AMX)
int8    weights rounded to 8 bits with a scale for each output, inputs with a scale for each row, so that streams of a
        batch do not change each other's rounding (Jacob et al. 2018, arXiv 1712.05877); sums are 32-bit integers. Fast
        where the processor multiplies bytes (AVX-512 VNNI, AMX)

Only the matrix products change; normalisation, clipping, states and the softmax are those of model.py. The last layer,
whose differences decide between letters, stays fp32: it is a seventieth of the work.

Dimension letters: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from asr_server.model import Chunking, DeepSpeech
from asr_server.native import core
from asr_server.recurrence import recur_by_frames

# A model without chunks of its own was trained on whole utterances; it streams with this much of the future.
DEFAULT_CHUNKING = Chunking(frames=50, right=50)
NARROW = 512  # below this width every precision is cheap, and bf16 rounds less than int8

_ROWS = 64  # what weights are packed for; other numbers work as well
_TINY = 1e-12  # so that rows of zeros can be divided by their scale


class Product(Protocol):
    """A packed matrix."""

    def __call__(self, rows: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
        """Rows (N, I) -> (N, O) in fp32, cut off below `low` and above `high`."""

    def recur(self, inputs: Tensor, initial: Tensor, clip: float, reverse: bool) -> Tensor:
        """As recurrence.recur."""


class BFloat16Product:
    """(O, I) and a bias (O,) or none."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), _ROWS)
        self._bias = bias

    def __call__(self, rows: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
        rounded: Tensor = torch.ops.mkldnn._linear_pointwise(rows.bfloat16(), self._weight, None, "none", [], "")
        product = rounded.float()
        return _cut(product if self._bias is None else product.add_(self._bias), low, high)

    def recur(self, inputs: Tensor, initial: Tensor, clip: float, reverse: bool) -> Tensor:
        return recur_by_frames(inputs, self, initial, clip, reverse)


class Int8Product:
    """(O, I) and a bias (O,) or none. Rows are rounded to 0..255, signed ones to 1..255 around 128."""

    def __init__(self, weight: Tensor, bias: Tensor | None, signed: bool) -> None:
        scale = weight.abs().amax(1).clamp(min=_TINY) / 127
        rounded = torch.round(weight / scale[:, None]).to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, [_ROWS, weight.shape[1]])
        self._scale = scale.float()
        self._zero = torch.zeros(len(weight), dtype=torch.long)
        self._bias = bias
        self._steps, self._middle = (127, 128) if signed else (255, 0)

    def __call__(self, rows: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
        largest = rows.abs().amax(1, keepdim=True).clamp_(min=_TINY)
        rounded = (rows * (self._steps / largest)).round_().add_(self._middle).to(torch.uint8)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded,
            1.0,
            self._middle,
            self._weight,
            self._scale,
            self._zero,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        product *= largest / self._steps
        return _cut(product if self._bias is None else product.add_(self._bias), low, high)

    def recur(self, inputs: Tensor, initial: Tensor, clip: float, reverse: bool) -> Tensor:
        return recur_by_frames(inputs, self, initial, clip, reverse)


class NativeInt8Product:
    """Int8Product in one call each, a recurrence of any length too, without the interpreter lock.

    A thread that runs a recurrence frame by frame gives the lock up in every operation, and then waits for a server's
    event loop to get it back.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, signed: bool) -> None:
        self._outputs = len(weight)
        self._matrix = core.ByteMatrix(weight.contiguous(), bias, signed)

    def __call__(self, rows: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
        results = torch.empty(len(rows), self._outputs)
        self._matrix.multiply(rows.detach().contiguous(), low, high, results)
        return results

    def recur(self, inputs: Tensor, initial: Tensor, clip: float, reverse: bool) -> Tensor:
        states = torch.empty(inputs.shape)
        self._matrix.recur(inputs.detach().contiguous(), initial.detach().contiguous(), clip, reverse, states)
        return states

    @staticmethod
    def supported() -> bool:
        """Whether the native core was built, and the processor has the instructions (AVX-512 VNNI)."""
        return core is not None and core.ByteMatrix.supported()


def pack(
    weight: Tensor, bias: Tensor | None, precision: str, *, signed: bool = False, recurrent: bool = False
) -> Product:
    """A matrix (O, I), and a bias (O,) or none. Only `signed` inputs may be negative."""
    if precision == "bf16":
        return BFloat16Product(weight, bias)
    # AMX multiplies many rows faster than our kernel; the few rows of a recurrence wait for the weights anyway.
    native = NativeInt8Product.supported() and (recurrent or not _capabilities().get("amx_int8"))
    return (NativeInt8Product if native else Int8Product)(weight, bias, signed)


class PackedLinear(nn.Module):
    """nn.Linear with a packed weight; for inference."""

    def __init__(self, linear: nn.Linear, precision: str, signed: bool = False) -> None:
        super().__init__()
        self.product = pack(linear.weight.detach(), linear.bias.detach(), precision, signed=signed)

    def forward(self, inputs: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
        outputs: Tensor = self.product(inputs.flatten(0, -2), low, high).unflatten(0, inputs.shape[:-1])
        return outputs


class PackedDense(nn.Module):
    """A clipped-ReLU layer of model.py with a packed weight; for inference, so without dropout."""

    def __init__(self, layer: Any, precision: str, signed: bool = False) -> None:
        super().__init__()
        self.linear = PackedLinear(layer.linear, precision, signed)
        self.norm, self.clip = layer.norm, layer.clip

    def forward(self, inputs: Tensor) -> Tensor:
        if isinstance(self.norm, nn.Identity):
            hidden: Tensor = self.linear(inputs, 0.0, self.clip)
            return hidden
        return torch.clamp(self.norm(self.linear(inputs)), 0, self.clip)


def for_streaming(model: DeepSpeech, precision: str) -> DeepSpeech:
    """The same model with packed products, and with chunks if it has none. Shares what it does not change.

    ValueError for a precision that this processor has no instructions for.
    """
    config = model.config
    if config.chunk is None:
        config = replace(config, chunk=DEFAULT_CHUNKING.frames, right=DEFAULT_CHUNKING.right)
    streaming: DeepSpeech = _shallow(model)
    streaming.config = config
    if precision not in available():
        raise ValueError(f"precision {precision!r} is not one of this processor's. Select one of {available()}")
    if precision != "fp32":
        _pack(streaming, precision)
    return streaming


def _pack(model: Any, precision: str) -> None:
    model.dense = nn.ModuleList(PackedDense(layer, precision, signed=i == 0) for i, layer in enumerate(model.dense))
    model.merge = PackedDense(model.merge, precision, signed=bool(model.gated))  # of sums of states, or a residual path
    model.gated = nn.ModuleList(_packed_gated(layer, precision) for layer in model.gated)
    if model.gated:
        return
    model.recurrent_input = PackedLinear(model.recurrent_input, precision)
    _pack_recurrence(model, precision)
    model.deeper = nn.ModuleList(_packed_deeper(layer, precision) for layer in model.deeper)


def _packed_deeper(layer: Any, precision: str) -> nn.Module:
    packed = _shallow(layer)
    packed.project = PackedLinear(layer.project, precision)
    packed.linear = PackedLinear(layer.linear, precision, signed=True)
    _pack_recurrence(packed, precision)
    return cast(nn.Module, packed)


def _packed_gated(layer: Any, precision: str) -> nn.Module:
    packed = _shallow(layer)
    packed.project = PackedLinear(layer.project, precision, signed=True)
    packed.linear = PackedLinear(layer.linear, precision, signed=True)
    return cast(nn.Module, packed)


def _shallow(module: nn.Module) -> Any:
    """The same module, in which others can be put without changing the original."""
    same = copy.copy(module)
    same._modules, same._parameters = dict(module._modules), dict(module._parameters)
    return same


def _pack_recurrence(module: Any, precision: str) -> None:
    for name in ("forward_weight", "backward_weight"):
        weight = getattr(module, name).detach()
        delattr(module, name)
        setattr(module, name, pack(weight, None, precision, recurrent=True))


def _cut(product: Tensor, low: float, high: float) -> Tensor:
    return product if low == -math.inf and high == math.inf else product.clamp_(low, high)


def _capabilities() -> Mapping[str, Any]:
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def available() -> tuple[str, ...]:
    """Precisions whose products this processor has instructions for."""
    supported = _capabilities()
    found = ["fp32"]
    if supported.get("avx512_bf16") or supported.get("amx_bf16"):
        found.append("bf16")
    if supported.get("avx512_vnni") or supported.get("amx_int8"):
        found.append("int8")
    return tuple(found)


def fastest(model: DeepSpeech) -> str:
    """What to serve a model in on this machine."""
    found = available()
    if "int8" in found and model.config.width >= NARROW:
        return "int8"
    return "bf16" if "bf16" in found else "fp32"
