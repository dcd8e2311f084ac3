"""What NVIDIA's image_client.py does, step by step, with tritonclient in a process of its own.

    python tests/triton_image_client.py HOST:PORT MODEL BATCH CLASSES FILE...

The model says what it takes, in its metadata and its configuration; images are brought to that by the client (here as
with `-s INCEPTION`: to -1 .. 1), sent in batches of which the last is filled up from the first, and the answers are
texts `value:index:label`. Prints them as JSON, a list for each image.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-untyped]
from PIL import Image
from tritonclient.grpc import model_config_pb2


def main(address: str, model: str, batch: str, classes: str, *paths: str) -> None:
    client = triton.InferenceServerClient(url=address)
    metadata, config = client.get_model_metadata(model_name=model), client.get_model_config(model_name=model).config
    source, sink, side, is_nchw, dtype = parsed(metadata, config)
    images = [prepared(path, side, is_nchw, dtype) for path in paths]
    count = int(batch)
    answers: list[list[str]] = []
    for start in range(0, len(images), count):
        chosen = [images[(start + i) % len(images)] for i in range(count)]
        values = np.stack(chosen) if config.max_batch_size > 0 else chosen[0]
        tensor = triton.InferInput(source, values.shape, dtype)
        tensor.set_data_from_numpy(values)
        wanted = triton.InferRequestedOutput(sink, class_count=int(classes))
        result = client.infer(model, [tensor], request_id=str(start), model_version="", outputs=[wanted])
        rows = result.as_numpy(sink)
        if len(rows) != count:
            raise SystemExit(f"expected {count} results, got {len(rows)}")
        answers += [["".join(chr(byte) for byte in each) for each in row] for row in rows]
    print(json.dumps(answers[: len(images)]))


def parsed(metadata: Any, config: Any) -> tuple[str, str, int, bool, str]:
    """-> names of the tensors, side, order, datatype; what the example refuses is refused here."""
    if not len(metadata.inputs) == len(config.input) == len(metadata.outputs) == 1:
        raise SystemExit("expecting 1 input and 1 output")
    given, told, output = metadata.inputs[0], config.input[0], metadata.outputs[0]
    batched = config.max_batch_size > 0
    if output.datatype != "FP32":
        raise SystemExit(f"expecting output datatype to be FP32, not {output.datatype}")
    if sum(size > 1 for size in output.shape[batched:]) > 1:
        raise SystemExit("expecting model output to be a vector")
    if len(given.shape) != 3 + batched:
        raise SystemExit(f"expecting input to have {3 + batched} dimensions, not {len(given.shape)}")
    if told.format not in (model_config_pb2.ModelInput.FORMAT_NCHW, model_config_pb2.ModelInput.FORMAT_NHWC):
        raise SystemExit(f"unexpected input format {told.format}")
    is_nchw = told.format == model_config_pb2.ModelInput.FORMAT_NCHW
    channels, height, width = given.shape[batched:] if is_nchw else np.roll(given.shape[batched:], 1)
    if channels != 3 or height != width:
        raise SystemExit(f"expecting 3 square channels, not {channels} of {height} x {width}")
    return given.name, output.name, int(height), is_nchw, given.datatype


def prepared(path: str, side: int, is_nchw: bool, dtype: str) -> np.ndarray:
    image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    values = np.asarray(image).astype({"FP32": np.float32, "FP16": np.float16}[dtype]) / 127.5 - 1
    return values.transpose(2, 0, 1) if is_nchw else values


if __name__ == "__main__":
    main(*sys.argv[1:])
