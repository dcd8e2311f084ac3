"""Tensors of the Open Inference Protocol: a request's one input to arrays or files, results to raw bytes.

A request gives its elements in one of two ways, never both: `raw_input_contents`, little-endian and row-major, or the
typed `contents` of the input. Elements of BYTES in raw form are `<u32 length><bytes>`. Everything here is synchronous.

Dimension letters: B batch, S side of the network's input, n elements.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vision_zoo.wire import inference_pb2 as pb

# FP16 and BF16 have no typed contents; what the model computes with is float32 in any case.
FLOATS = {"FP32": 4, "FP16": 2, "BF16": 2}  # bytes of an element
BYTES = "BYTES"
_CONTENTS = {"FP32": "fp32_contents", BYTES: "bytes_contents"}
_SHARED_MEMORY = "shared_memory_region"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class TensorInput:
    """The input of a request, its name and datatype checked. raw None: the elements are in `contents`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | None
    contents: pb.InferTensorContents


def the_input(request: pb.ModelInferRequest, name: str, datatypes: Sequence[str]) -> TensorInput:
    """The one input that a model takes. Raises ValueError."""
    if len(request.inputs) != 1:
        raise ValueError(f"{len(request.inputs)} inputs for model {request.model_name!r}; it takes one, {name!r}")
    given = request.inputs[0]
    if given.name != name:
        raise ValueError(f"unexpected inference input {given.name!r} for model {request.model_name!r}; use {name!r}")
    if given.datatype not in datatypes:
        raise ValueError(f"input {name!r}: datatype {given.datatype!r}; choose from {list(datatypes)}")
    if _SHARED_MEMORY in given.parameters:
        raise ValueError(f"input {name!r}: shared memory is not supported; send the elements in the request")
    return TensorInput(name, given.datatype, tuple(given.shape), _raw(request, given), given.contents)


def read_pixels(given: TensorInput, size: int, max_batch: int) -> Tensor:
    """-> float32 (B, 3, S, S), finite. Raises ValueError."""
    batch = f"B from 1 to {max_batch}"
    if len(given.shape) != 4 or given.shape[1:] != (3, size, size) or not 1 <= given.shape[0] <= max_batch:
        raise _bad_shape(given, f"[B, 3, {size}, {size}], {batch}")
    values = _floats(given)
    if not np.isfinite(values).all():
        raise ValueError(f"input {given.name!r} holds values that are not finite")
    return torch.from_numpy(values.reshape(given.shape))


def read_files(given: TensorInput, max_batch: int, byte_limit: int) -> tuple[bytes, ...]:
    """-> B files of images; shape [B] or [B, 1]. Raises ValueError."""
    if given.shape[1:] not in ((), (1,)) or not given.shape or not 1 <= given.shape[0] <= max_batch:
        raise _bad_shape(given, f"[B, 1] or [B], B from 1 to {max_batch}")
    files = _elements(given)
    _same_count(given, len(files), given.shape[0])
    for index, file in enumerate(files):
        if len(file) > byte_limit:
            raise ValueError(f"image {index} has {len(file)} bytes; the limit is {byte_limit} bytes")
    return tuple(files)


def raw_floats(values: Tensor) -> bytes:
    """float tensor of any shape -> FP32, raw."""
    return values.numpy().astype("<f4").tobytes()


def raw_elements(elements: Sequence[bytes]) -> bytes:
    """-> BYTES, raw."""
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


def _raw(request: pb.ModelInferRequest, given: pb.ModelInferRequest.InferInputTensor) -> bytes | None:
    """The raw contents; None where the contents are typed. Raises ValueError for a mixture."""
    typed = [field.name for field, _ in given.contents.ListFields()]
    if not request.raw_input_contents:
        expected = _CONTENTS.get(given.datatype)
        if expected is None:
            raise ValueError(f"input {given.name!r}: {given.datatype} is sent in raw_input_contents only")
        if wrong := [name for name in typed if name != expected]:
            raise ValueError(f"input {given.name!r}: {given.datatype} belongs into {expected}, not into {wrong}")
        return None
    if typed:
        raise ValueError(f"input {given.name!r} has {typed} beside raw_input_contents; send one of the two")
    if len(request.raw_input_contents) != 1:
        raise ValueError(f"{len(request.raw_input_contents)} raw_input_contents for 1 input; send one for each")
    return request.raw_input_contents[0]


def _floats(given: TensorInput) -> np.ndarray:
    """-> float32 (n,) of the shape's n, a copy."""
    count = math.prod(given.shape)
    if given.raw is None:
        _same_count(given, len(given.contents.fp32_contents), count)
        return np.array(given.contents.fp32_contents, dtype=np.float32)
    expected = count * FLOATS[given.datatype]
    if len(given.raw) != expected:
        shape = f"{given.datatype} {list(given.shape)}"
        raise ValueError(f"input {given.name!r}: {len(given.raw)} raw bytes; {shape} needs {expected} bytes")
    if given.datatype == "BF16":  # the upper half of a float32
        return (np.frombuffer(given.raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(given.raw, "<f4" if given.datatype == "FP32" else "<f2").astype(np.float32)


def _elements(given: TensorInput) -> list[bytes]:
    if given.raw is None:
        return list(given.contents.bytes_contents)
    elements: list[bytes] = []
    position = 0
    while position < len(given.raw):
        start = position + _LENGTH.size
        end = start + _LENGTH.unpack_from(given.raw, position)[0] if start <= len(given.raw) else start
        if end > len(given.raw):
            text = f"element {len(elements)} ends beyond the {len(given.raw)} raw bytes"
            raise ValueError(
                f"input {given.name!r}: {text}; each is its length in 4 bytes, little-endian, and its bytes"
            )
        elements.append(given.raw[start:end])
        position = end
    return elements


def _same_count(given: TensorInput, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"input {given.name!r}: {found} elements; shape {list(given.shape)} needs {expected}")


def _bad_shape(given: TensorInput, rule: str) -> ValueError:
    return ValueError(f"input {given.name!r}: unexpected shape {list(given.shape)}; send {rule}")
