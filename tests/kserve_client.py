"""kserve's InferenceGRPCClient as its users write it; not part of the suite, because kserve wants an older protobuf.

    python -m venv kserve && kserve/bin/pip install kserve==0.21.0
    kserve/bin/python tests/kserve_client.py HOST:PORT FILE.png MODEL

Prints what came back as JSON. Its stubs also send what its client has no method for: loading and unloading a model.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest  # type: ignore[import-not-found]
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb  # type: ignore[import-not-found]
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import (  # type: ignore[import-not-found]
    GRPCInferenceServiceStub,
)


async def main(address: str, path: str, model: str) -> None:
    with open(path, "rb") as file:
        image = file.read()
    async with InferenceGRPCClient(url=address) as client:
        answers: dict[str, Any] = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready(model),
            "files": await probabilities(client, f"{model}_image", files(image)),
        }
        try:
            await client.is_model_ready("cats")
        except grpc.RpcError as error:
            answers["unknown"] = f"{error.code().name}: {error.details()}"
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        told = await stub.ModelMetadata(pb.ModelMetadataRequest(name=model))
        shape = [1, *told.inputs[0].shape[1:]]
        answers["metadata"] = [told.name, told.inputs[0].name, list(told.inputs[0].shape)]
        unloaded = await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=model))
        loaded = await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=model))
        answers["repository"] = [unloaded.model_name, unloaded.isUnloaded, loaded.model_name, loaded.isLoaded]
    async with InferenceGRPCClient(url=address) as client:
        answers["raw"] = await probabilities(client, model, tensors(shape, binary=True))
        answers["typed"] = await probabilities(client, model, tensors(shape, binary=False))
    print(json.dumps(answers))


def files(image: bytes) -> Any:
    made = InferInput("images", [1, 1], "BYTES")
    made.set_data_from_numpy(np.array([[image]], dtype=object), binary_data=True)
    return made


def tensors(shape: list[int], binary: bool) -> Any:
    made = InferInput("pixels", shape, "FP32")
    made.set_data_from_numpy(np.zeros(shape, np.float32), binary_data=binary)
    return made


async def probabilities(client: Any, model: str, given: Any) -> Any:
    answer = await client.infer(InferRequest(model_name=model, infer_inputs=[given], request_id="7"))
    return [answer.id, answer.outputs[0].as_numpy().tolist()]


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
