"""Messages of the Open Inference Protocol to and from what the classifier knows. Nothing here waits or knows gRPC.

A bundle NAME is two models of the protocol: NAME takes tensors that are preprocessed already, NAME_image takes files.
Both answer with calibrated probabilities, a row of them for each image.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vision_zoo.batcher import Urgency
from vision_zoo.classifier import Classifier
from vision_zoo.inference_tensors import BYTES, FLOATS, raw_elements, raw_floats, read_files, read_pixels, the_input
from vision_zoo.wire import inference_pb2 as pb

IMAGE_SUFFIX = "_image"
SERVER_NAME = "earsight"
EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "statistics",
)
PLATFORM = "pytorch"
READY = "READY"
PIXELS, IMAGES, PROBABILITIES = "pixels", "images", "probabilities"  # the tensors' names
LABELS_FILE = "labels.txt"  # Triton's clients want the name of such a file before they ask for classes
_CLASSIFICATION, _PRIORITY, _TIMEOUT = "classification", "priority", "timeout"
LEAST_URGENT = 100


class ModelState(Protocol):
    """A model of a repository. state: READY, or UNAVAILABLE and then the reason."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class ServedModel:
    """A classifier under one of its two names."""

    name: str
    takes_files: bool
    classifier: Classifier

    @property
    def version(self) -> str:
        return self.classifier.bundle.version

    @property
    def size(self) -> int:
        return self.classifier.bundle.preprocessing.size

    @property
    def labels(self) -> Sequence[str]:
        return self.classifier.bundle.labels

    @property
    def max_batch(self) -> int:
        return min(self.classifier.batching.max_batch, self.classifier.batching.capacity)


def declared_images(request: pb.ModelInferRequest, model: ServedModel) -> int:
    """How many images a request says it has, before anything is read: 1 to the largest batch."""
    shape = request.inputs[0].shape if request.inputs else ()
    return min(max(shape[0] if shape else 1, 1), model.max_batch)


def read_request(request: pb.ModelInferRequest, model: ServedModel, byte_limit: int) -> tuple[bytes, ...] | Tensor:
    """-> B files, or float32 (B, 3, S, S). Raises ValueError."""
    if model.takes_files:
        return read_files(the_input(request, IMAGES, (BYTES,)), model.max_batch, byte_limit)
    return read_pixels(the_input(request, PIXELS, tuple(FLOATS)), model.size, model.max_batch)


def read_class_count(request: pb.ModelInferRequest) -> int:
    """How many classes of each image to name; 0: its probabilities as they are. Raises ValueError."""
    if not request.outputs:
        return 0
    if len(request.outputs) > 1 or request.outputs[0].name != PROBABILITIES:
        names = [output.name for output in request.outputs]
        raise ValueError(f"unexpected inference outputs {names} of model {request.model_name!r}; use {PROBABILITIES!r}")
    parameters = request.outputs[0].parameters
    if "shared_memory_region" in parameters:
        raise ValueError(f"output {PROBABILITIES!r}: shared memory is not supported; read it from the response")
    if _CLASSIFICATION not in parameters:
        return 0
    count = _integer(parameters, _CLASSIFICATION)
    if count < 1:
        raise ValueError(f"parameter {_CLASSIFICATION!r} of output {PROBABILITIES!r} must be an integer of at least 1")
    return count


def read_urgency(request: pb.ModelInferRequest, now: float) -> Urgency:
    """By Triton's parameters: `priority` 1 is the most urgent, `timeout` is in microseconds from now on.

    0 of either is as if it were not there. now: time.monotonic(). Raises ValueError.
    """
    priority, timeout = (_integer(request.parameters, name) for name in (_PRIORITY, _TIMEOUT))
    if not 0 <= priority <= LEAST_URGENT:
        raise ValueError(f"parameter {_PRIORITY!r} is {priority}: 1, the most urgent, to {LEAST_URGENT}, or 0")
    if timeout < 0:
        raise ValueError(f"parameter {_TIMEOUT!r} is {timeout}: microseconds of at least 1, or 0 for none")
    return Urgency(LEAST_URGENT + 1 - priority if priority else 0, now + timeout / 1e6 if timeout else None)


def _integer(parameters: Mapping[str, pb.InferParameter], name: str) -> int:
    """0 where it is not there; Triton's clients disagree on the type. Raises ValueError for what is no integer."""
    if name not in parameters:
        return 0
    given = parameters[name]
    match given.WhichOneof("parameter_choice"):
        case "int64_param":
            return given.int64_param
        case "uint64_param":
            return given.uint64_param
        case other:
            raise ValueError(f"parameter {name!r} must be an integer, not {other or 'empty'}")


def write_response(
    request: pb.ModelInferRequest, model: ServedModel, probabilities: Tensor, class_count: int
) -> pb.ModelInferResponse:
    """(B, K) -> always raw, because that is all that Triton's clients read."""
    response = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
    if class_count:
        count = min(class_count, len(model.labels))
        rows = [named_classes(row, model.labels, count) for row in probabilities]
        response.outputs.add(name=PROBABILITIES, datatype=BYTES, shape=(len(rows), count))
        response.raw_output_contents.append(raw_elements([each for row in rows for each in row]))
    else:
        response.outputs.add(name=PROBABILITIES, datatype="FP32", shape=tuple(probabilities.shape))
        response.raw_output_contents.append(raw_floats(probabilities))
    return response


def named_classes(probabilities: Tensor, labels: Sequence[str], count: int) -> list[bytes]:
    """(K,) -> `value:index:label` of the most probable, as the classification extension has it."""
    values, indices = probabilities.topk(count)
    pairs = zip(values.tolist(), indices.tolist(), strict=True)
    return [f"{value:f}:{index}:{labels[index]}".encode() for value, index in pairs]


def metadata(model: ServedModel, versions: Iterable[str]) -> pb.ModelMetadataResponse:
    response = pb.ModelMetadataResponse(name=model.name, versions=versions, platform=PLATFORM)
    if model.takes_files:
        response.inputs.add(name=IMAGES, datatype=BYTES, shape=(-1, 1))
    else:
        response.inputs.add(name=PIXELS, datatype="FP32", shape=(-1, 3, model.size, model.size))
    response.outputs.add(name=PROBABILITIES, datatype="FP32", shape=(-1, len(model.labels)))
    response.properties["version"] = model.version
    response.properties["precision"] = model.classifier.precision
    response.properties["preprocessing"] = json.dumps(dataclasses.asdict(model.classifier.bundle.preprocessing))
    return response


def config(model: ServedModel) -> pb.ModelConfig:
    made = pb.ModelConfig(name=model.name, platform=PLATFORM, max_batch_size=model.max_batch)
    if model.takes_files:
        made.input.add(name=IMAGES, data_type=pb.TYPE_STRING, dims=(1,))
    else:
        dims = (3, model.size, model.size)
        made.input.add(name=PIXELS, data_type=pb.TYPE_FP32, format=pb.ModelInput.FORMAT_NCHW, dims=dims)
    made.output.add(name=PROBABILITIES, data_type=pb.TYPE_FP32, dims=(len(model.labels),), label_filename=LABELS_FILE)
    made.dynamic_batching.max_queue_delay_microseconds = round(1e6 * model.classifier.batching.max_delay)
    return made


def index(states: Iterable[ModelState], ready_only: bool) -> pb.RepositoryIndexResponse:
    """Every model under both of its names."""
    response = pb.RepositoryIndexResponse()
    for each in states:
        if each.state == READY or not ready_only:
            for name in (each.name, each.name + IMAGE_SUFFIX):
                response.models.add(name=name, version=each.version, state=each.state, reason=each.reason)
    return response


def model_to_change(request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> str:
    """The bundle's name; KServe's clients send it where Triton's have the repository's. Raises ValueError."""
    name = request.model_name or request.repository_name
    if not name:
        raise ValueError("model_name is empty; RepositoryIndex lists the models")
    if unknown := sorted(request.parameters.keys() - {"unload_dependents"}):
        raise ValueError(f"parameters {unknown} are not supported; a model is loaded as its bundle describes it")
    return name
