"""tritonclient as its users write it, in a process of its own: its messages cannot share one with ours.

    python tests/triton_client.py HOST:PORT FILE.png MODEL

Makes every call of the client that fits a classifier; prints what came back as JSON.
"""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-untyped]
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]

OUTPUT = "probabilities"


def main(address: str, path: str, model: str) -> None:
    client = triton.InferenceServerClient(url=address)
    with open(path, "rb") as file:
        image = file.read()
    size = client.get_model_metadata(model).inputs[0].shape[-1]
    answers: dict[str, Callable[[], Any]] = {
        "live": client.is_server_live,
        "ready": client.is_server_ready,
        "model_ready": lambda: client.is_model_ready(model),
        "unknown_ready": lambda: client.is_model_ready("cats"),
        "server": lambda: client.get_server_metadata(as_json=True),
        "metadata": lambda: client.get_model_metadata(model, as_json=True),
        "config": lambda: client.get_model_config(model, as_json=True),
        "tensors": lambda: probabilities(client.infer(model, [tensors(size)])),
        "half": lambda: probabilities(client.infer(model, [tensors(size, np.float16)])),
        "files": lambda: probabilities(client.infer(f"{model}_image", [files(image, image)])),
        "requested": lambda: client.infer(model, [tensors(size)], request_id="7", outputs=[output()]).get_response().id,
        "classes": lambda: classes(client.infer(f"{model}_image", [files(image)], outputs=[output(2)])),
        "shape": lambda: client.infer(model, [tensors(size + 1)]),
        "unknown": lambda: client.infer("cats", [tensors(size)]),
        "stream": lambda: stream(client, model, size, image),
        "statistics": lambda: client.get_inference_statistics(f"{model}_image", as_json=True),
        "unload": lambda: client.unload_model(model),
        "unloaded_ready": lambda: client.is_model_ready(model),
        "unloaded_index": lambda: client.get_model_repository_index(as_json=True),
        "load": lambda: client.load_model(model),
        "load_config": lambda: client.load_model(model, config="{}"),
        "load_unknown": lambda: client.load_model("cats"),
        "index": lambda: client.get_model_repository_index(as_json=True),
        "large": lambda: len(probabilities(large(address, model, size))),
    }
    print(json.dumps({name: answered(answer) for name, answer in answers.items()}))


def answered(answer: Callable[[], Any]) -> Any:
    try:
        return answer()
    except InferenceServerException as error:
        return f"{error.status()}: {error.message()}"


def tensors(size: int, dtype: Any = np.float32, batch: int = 2) -> Any:
    """The first image is the strongest in its third channel, the others are grey."""
    values = np.zeros((batch, 3, size, size), dtype)
    values[0, 2] = 1
    made = triton.InferInput("pixels", values.shape, "FP16" if dtype is np.float16 else "FP32")
    made.set_data_from_numpy(values)
    return made


def files(*images: bytes) -> Any:
    made = triton.InferInput("images", [len(images), 1], "BYTES")
    made.set_data_from_numpy(np.array(images, dtype=object).reshape(-1, 1))
    return made


def output(class_count: int = 0) -> Any:
    return triton.InferRequestedOutput(OUTPUT, class_count=class_count)


def probabilities(result: Any) -> list[list[float]]:
    values: list[list[float]] = result.as_numpy(OUTPUT).tolist()
    return values


def classes(result: Any) -> list[list[str]]:
    return [[each.decode() for each in row] for row in result.as_numpy(OUTPUT)]


def stream(client: Any, model: str, size: int, image: bytes) -> list[Any]:
    """A good request, a bad one, another good one."""
    heard: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: heard.put((result, error)))
    client.async_stream_infer(f"{model}_image", [files(image)], outputs=[output(1)], request_id="a")
    client.async_stream_infer("cats", [files(image)], request_id="b")
    client.async_stream_infer(model, [tensors(size)], outputs=[output(1)], request_id="c")
    answers = [heard.get(timeout=60) for _ in range(3)]
    client.stop_stream()
    return [str(error) if error else [result.get_response().id, classes(result)] for result, error in answers]


def large(address: str, model: str, size: int) -> Any:
    """Sixteen images in one request, in a compressed message."""
    client = triton.InferenceServerClient(url=address)
    return client.infer(model, [tensors(size, batch=16)], compression_algorithm="gzip")


if __name__ == "__main__":
    main(*sys.argv[1:])
