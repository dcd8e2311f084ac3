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
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from asr_server.model import Chunking, DeepSpeech

# A model without chunks of its own was trained on whole utterances; it streams with this much of the future.
DEFAULT_CHUNKING = Chunking(frames=50, right=50)
NARROW = 1024  # below this width int8's rounding of inputs takes the time that its products save

_ROWS = 64  # what weights are packed for; other numbers work as well


class Product(Protocol):
    """A packed matrix: rows (N, I) -> (N, O) in fp32."""

    def __call__(self, rows: Tensor) -> Tensor: ...


class BFloat16Product:
    """(O, I) and a bias (O,) or none."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), _ROWS)
        self._bias = bias

    def __call__(self, rows: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows.bfloat16(), self._weight, None, "none", [], "")
        return product.float() if self._bias is None else product.float().add_(self._bias)


class Int8Product:
    """(O, I) and a bias (O,) or none. Rows are rounded to 0..255 around 128."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        rounded = torch.round(weight / scale[:, None]).to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, [_ROWS, weight.shape[1]])
        self._scale = scale.float()
        self._zero = torch.zeros(len(weight), dtype=torch.long)
        self._bias = bias

    def __call__(self, rows: Tensor) -> Tensor:
        largest = rows.abs().amax(1, keepdim=True).clamp_(min=1e-12) / 127
        rounded = (rows / largest).add_(128.5).to(torch.uint8)  # 128.5: what is cut off becomes rounding
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, 128, self._weight, self._scale, self._zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        product *= largest
        return product if self._bias is None else product.add_(self._bias)


PRODUCTS: dict[str, type[BFloat16Product] | type[Int8Product]] = {"bf16": BFloat16Product, "int8": Int8Product}


class PackedLinear(nn.Module):
    """nn.Linear with a packed weight; for inference."""

    def __init__(self, linear: nn.Linear, precision: str) -> None:
        super().__init__()
        self.product = PRODUCTS[precision](linear.weight.detach(), linear.bias.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.product(inputs.flatten(0, -2)).unflatten(0, inputs.shape[:-1])
        return outputs


def for_streaming(model: DeepSpeech, precision: str) -> DeepSpeech:
    """The same model with packed products, and with chunks if it has none. Shares what it does not change.

    ValueError for a precision that this processor has no instructions for.
    """
    config = model.config
    if config.chunk is None:
        config = replace(config, chunk=DEFAULT_CHUNKING.frames, right=DEFAULT_CHUNKING.right)
    streaming: DeepSpeech = copy.copy(model)
    streaming._modules = dict(model._modules)
    streaming._parameters = dict(model._parameters)
    streaming.config = config
    if precision not in available():
        raise ValueError(f"precision {precision!r} is not one of this processor's. Select one of {available()}")
    if precision != "fp32":
        _pack(streaming, precision)
    return streaming


def _pack(model: Any, precision: str) -> None:
    dense = nn.ModuleList(copy.copy(layer) for layer in model.dense)
    merge = copy.copy(model.merge)
    for layer in (*dense, merge):
        layer._modules = {**layer._modules, "linear": PackedLinear(layer.linear, precision)}
    model.dense, model.merge = dense, merge
    model.recurrent_input = PackedLinear(model.recurrent_input, precision)
    for name in ("forward_weight", "backward_weight"):
        weight = getattr(model, name).detach()
        delattr(model, name)
        setattr(model, name, PRODUCTS[precision](weight, None))


def available() -> tuple[str, ...]:
    """Precisions whose products this processor has instructions for."""
    supported = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
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
