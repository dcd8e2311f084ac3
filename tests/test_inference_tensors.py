"""Tensors of the Open Inference Protocol, read and written without a server."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vision_zoo.inference_tensors import FLOATS, raw_elements, raw_floats, read_files, read_pixels, the_input
from vision_zoo.wire import inference_pb2 as pb

SHAPE = (2, 3, 2, 2)
VALUES = np.arange(24, dtype=np.float32).reshape(SHAPE) / 8 - 1  # exact in 16 bits too


def request(
    datatype: str = "FP32",
    shape: tuple[int, ...] = SHAPE,
    raw: tuple[bytes, ...] = (),
    name: str = "x",
    **contents: Any,
) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="m", raw_input_contents=raw)
    made.inputs.add(name=name, datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents))
    return made


def pixels(made: pb.ModelInferRequest) -> torch.Tensor:
    return read_pixels(the_input(made, "x", tuple(FLOATS)), 2, 4)


def files(made: pb.ModelInferRequest) -> tuple[bytes, ...]:
    return read_files(the_input(made, "x", ("BYTES",)), 4, 10)


def bf16(values: np.ndarray) -> bytes:
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()


@pytest.mark.parametrize(
    "made",
    [
        request(raw=(VALUES.astype("<f4").tobytes(),)),
        request(fp32_contents=VALUES.ravel().tolist()),
        request("FP16", raw=(VALUES.astype("<f2").tobytes(),)),
        request("BF16", raw=(bf16(VALUES),)),
    ],
    ids=["raw FP32", "typed FP32", "raw FP16", "raw BF16"],
)
def test_every_way_to_send_pixels_gives_the_same(made: pb.ModelInferRequest) -> None:
    read = pixels(made)
    assert read.dtype == torch.float32
    assert torch.equal(read, torch.from_numpy(VALUES))


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_every_way_to_send_files_gives_the_same(shape: tuple[int, ...]) -> None:
    sent = (b"one", b"", b"three")
    raw = struct.pack("<I", 3) + b"one" + struct.pack("<I", 0) + struct.pack("<I", 5) + b"three"
    assert raw_elements(sent) == raw
    assert files(request("BYTES", shape, (raw,))) == files(request("BYTES", shape, bytes_contents=sent)) == sent


def test_floats_are_written_little_endian() -> None:
    assert raw_floats(torch.tensor([[1.0, -2.0]])) == struct.pack("<2f", 1.0, -2.0)


RAW = VALUES.astype("<f4").tobytes()
TWO = pb.ModelInferRequest(
    model_name="m", inputs=[pb.ModelInferRequest.InferInputTensor(name=name, datatype="FP32") for name in "xy"]
)
SHARED = request()
SHARED.inputs[0].parameters["shared_memory_region"].string_param = "/region"


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (pb.ModelInferRequest(model_name="m"), "0 inputs for model 'm'; it takes one, 'x'"),
        (TWO, "2 inputs for model 'm'"),
        (request(name="y", raw=(RAW,)), "unexpected inference input 'y' for model 'm'; use 'x'"),
        (request("INT8"), r"datatype 'INT8'; choose from \['FP32', 'FP16', 'BF16'\]"),
        (SHARED, "shared memory is not supported"),
        (request(raw=(RAW,), fp32_contents=[1.0]), r"has \['fp32_contents'\] beside raw_input_contents"),
        (request(raw=(RAW, RAW)), "2 raw_input_contents for 1 input"),
        (request(fp64_contents=[1.0]), r"FP32 belongs into fp32_contents, not into \['fp64_contents'\]"),
        (request("BF16", fp32_contents=[1.0]), "BF16 is sent in raw_input_contents only"),
        (request("FP16"), "FP16 is sent in raw_input_contents only"),
        (request(raw=(RAW[:-1],)), r"95 raw bytes; FP32 \[2, 3, 2, 2\] needs 96 bytes"),
        (request("FP16", raw=(RAW,)), r"96 raw bytes; FP16 \[2, 3, 2, 2\] needs 48 bytes"),
        (request(fp32_contents=[1.0]), r"1 elements; shape \[2, 3, 2, 2\] needs 24"),
        (request(), r"0 elements; shape \[2, 3, 2, 2\] needs 24"),
        (request(shape=(3, 2, 2), raw=(RAW,)), r"unexpected shape \[3, 2, 2\]; send \[B, 3, 2, 2\], B from 1 to 4"),
        (request(shape=(0, 3, 2, 2), raw=(b"",)), r"unexpected shape \[0, 3, 2, 2\]"),
        (request(shape=(5, 3, 2, 2), raw=(RAW,)), r"unexpected shape \[5, 3, 2, 2\]"),
        (request(shape=(-1, 3, 2, 2), raw=(RAW,)), r"unexpected shape \[-1, 3, 2, 2\]"),
        (request(shape=(2, 2, 2, 3), raw=(RAW,)), r"unexpected shape \[2, 2, 2, 3\]"),
        (request(shape=(1, 3, 2, 2), fp32_contents=[float("nan")] * 12), "not finite"),
        (request("FP16", (1, 3, 2, 2), (b"\x00\x7c" * 12,)), "not finite"),
    ],
)
def test_refused_pixels(made: pb.ModelInferRequest, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        pixels(made)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (request("BYTES", (2,), (raw_elements([b"a"]),)), r"1 elements; shape \[2\] needs 2"),
        (request("BYTES", (2, 1), bytes_contents=[b"a"] * 3), r"3 elements; shape \[2, 1\] needs 2"),
        (request("BYTES", (1, 2), bytes_contents=[b"a"] * 2), r"unexpected shape \[1, 2\]; send \[B, 1\] or \[B\]"),
        (request("BYTES", (), bytes_contents=[b"a"]), r"unexpected shape \[\]"),
        (request("BYTES", (5,), bytes_contents=[b"a"] * 5), r"unexpected shape \[5\]"),
        (request("BYTES", (1,), (b"\x05\0\0\0abcd",)), "element 0 ends beyond the 8 raw bytes"),
        (request("BYTES", (1,), (raw_elements([b"a"]) + b"\0",)), "element 1 ends beyond the 6 raw bytes"),
        (request("BYTES", (2,), bytes_contents=[b"a", b"b" * 11]), "image 1 has 11 bytes; the limit is 10 bytes"),
        (request("FP32", (1,), (b"\0\0\0\0",)), r"datatype 'FP32'; choose from \['BYTES'\]"),
    ],
)
def test_refused_files(made: pb.ModelInferRequest, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        files(made)


@pytest.mark.parametrize("read", [pixels, files])
def test_random_bytes_are_read_or_refused(read: Callable[[pb.ModelInferRequest], object]) -> None:
    random = np.random.default_rng(0)
    datatype, shape = ("FP32", (1, 3, 2, 2)) if read is pixels else ("BYTES", (1,))
    refused = 0
    for size in range(200):
        raw = bytes(4 * (size % 3)) if size % 2 else random.integers(0, 4, size % 49, dtype=np.uint8).tobytes()
        try:
            read(request(datatype, shape, (raw,)))
        except ValueError:
            refused += 1
    assert 0 < refused < 200
