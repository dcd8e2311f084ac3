"""The Open Inference Protocol on the same classifiers and port: messages in, messages out, errors as gRPC status.

The methods of the service know messages and models only; what turns them into gRPC handlers stands below it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeAlias, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from vision_zoo import inference_messages as messages
from vision_zoo.batcher import ExpiredError, QueueFullError
from vision_zoo.classifier import Classifier
from vision_zoo.inference_messages import IMAGE_SUFFIX, READY, ModelState, ServedModel
from vision_zoo.inference_statistics import InferenceStatistics, RequestTimes
from vision_zoo.intake import Intake
from vision_zoo.repository import UnknownModelError
from vision_zoo.service import Limits, refused
from vision_zoo.streams import in_order
from vision_zoo.wire import inference_pb2 as pb

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
SERVICE_NAME = DESCRIPTOR.full_name

logger = logging.getLogger(__name__)
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class Models(Protocol):
    """What the service knows of the models. `find` and `index` return at once."""

    def find(self, name: str, version: str = "") -> Classifier:
        """version "": the one served by default; name "": the default model. Raises UnknownModelError, ValueError."""

    def index(self) -> Sequence[ModelState]: ...

    def load(self, name: str) -> None:
        """May take long; called in a thread. Raises UnknownModelError, ValueError."""

    def unload(self, name: str) -> None:
        """As `load`."""


class ControlError(Exception):
    """Clients of this server may not load and unload models."""


class InferenceService:
    """`GRPCInferenceService` of inference.proto. Not `ready` until whoever made it says so.

    control: clients may load and unload models.
    """

    def __init__(
        self, models: Models, intake: Intake, limits: Limits | None = None, version: str = "", control: bool = False
    ) -> None:
        self.ready = False
        self._models, self._intake, self._limits = models, intake, limits or Limits()
        self._version, self._control = version, control
        self._statistics: dict[tuple[str, str], InferenceStatistics] = {}

    async def server_live(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self.ready)

    async def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        try:
            self._served(request.name, request.version)
        except UnknownModelError:
            if self._is_known(request.name, request.version):
                return pb.ModelReadyResponse(ready=False)
            raise
        return pb.ModelReadyResponse(ready=self.ready)

    async def server_metadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=messages.SERVER_NAME, version=self._version, extensions=messages.EXTENSIONS
        )

    async def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        model = self._served(request.name, request.version)
        name = model.classifier.bundle.name
        ready = [each.version for each in self._models.index() if each.name == name and each.state == READY]
        return messages.metadata(model, ready or [model.version])

    async def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        return pb.ModelConfigResponse(config=messages.config(self._served(request.name, request.version)))

    async def model_infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        return await self._infer(request, wait=False)

    async def model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest]
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        async with aclosing(in_order(requests, self._answer_in_stream, self._limits.window)) as answers:
            async for each in answers:
                yield each

    async def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        if request.name:
            models = [self._served(request.name, request.version)]
        else:
            states = [each for each in self._models.index() if each.state == READY]
            names = [(each.name + end, each.version) for each in states for end in ("", IMAGE_SUFFIX)]
            models = [self._served(*name) for name in names]
        return pb.ModelStatisticsResponse(model_stats=[self._statistics_of(model).message() for model in models])

    async def repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        return messages.index(self._models.index(), request.ready)

    async def repository_model_load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        name = self._changeable(request)
        await asyncio.to_thread(self._models.load, name)
        return pb.RepositoryModelLoadResponse(model_name=name, is_loaded=True)

    async def repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        name = self._changeable(request)
        await asyncio.to_thread(self._models.unload, name)
        return pb.RepositoryModelUnloadResponse(model_name=name, is_unloaded=True)

    async def _infer(self, request: pb.ModelInferRequest, wait: bool) -> pb.ModelInferResponse:
        """wait: for places, where they are taken."""
        model = self._served(request.model_name, request.model_version)
        statistics, begin = self._statistics_of(model), time.perf_counter()
        try:
            class_count = messages.read_class_count(request)
            urgency = messages.read_urgency(request, time.monotonic())
            async with self._intake.places(messages.declared_images(request, model), wait):
                given = await self._intake.off_loop(messages.read_request, request, model, self._limits.image_bytes)
                pixels = await self._intake.pixels(model.classifier, given) if isinstance(given, tuple) else given
                prepared = time.perf_counter()
                probabilities = await self._intake.probabilities(model.classifier, tuple(pixels), urgency)
            computed = time.perf_counter()
            response = messages.write_response(request, model, probabilities, class_count)
        except Exception:
            statistics.failed(time.perf_counter() - begin)
            raise
        times = RequestTimes(prepared - begin, computed - prepared, time.perf_counter() - computed)
        statistics.succeeded(len(probabilities), times)
        return response

    async def _answer_in_stream(self, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        try:
            response = await self._infer(request, wait=True)
        except Exception as error:
            failed = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            return pb.ModelStreamInferResponse(error_message=status_of(error)[1], infer_response=failed)
        response.parameters["triton_final_response"].bool_param = True  # there is one for each request
        return pb.ModelStreamInferResponse(infer_response=response)

    def _served(self, name: str, version: str) -> ServedModel:
        """A bundle that is called as another one with the suffix goes first. Raises UnknownModelError, ValueError."""
        try:
            if not name:
                raise UnknownModelError("the name is empty")
            return ServedModel(name, False, self._models.find(name, version))
        except UnknownModelError as error:
            bundle = name.removesuffix(IMAGE_SUFFIX)
            if bundle and bundle != name:
                try:
                    return ServedModel(name, True, self._models.find(bundle, version))
                except UnknownModelError:
                    pass
            # NVIDIA's example looks for the beginning of this text
            wanted = f"'{name}' version '{version}'" if version else f"'{name}'"
            raise UnknownModelError(f"Request for unknown model: {wanted} is not found ({error})") from error

    def _is_known(self, name: str, version: str) -> bool:
        names = {name, name.removesuffix(IMAGE_SUFFIX)}
        return any(each.name in names and version in ("", each.version) for each in self._models.index())

    def _changeable(self, request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> str:
        if not self._control:
            raise ControlError("loading and unloading of models by clients is not allowed on this server")
        name = messages.model_to_change(request)
        is_bundle = any(each.name == name for each in self._models.index())
        return name if is_bundle else name.removesuffix(IMAGE_SUFFIX)

    def _statistics_of(self, model: ServedModel) -> InferenceStatistics:
        """Kept under the bundle's own name and version, whatever it was called by, and for as long as it is listed."""
        bundle = model.classifier.bundle
        name = bundle.name + IMAGE_SUFFIX if model.takes_files else bundle.name
        key = (name, bundle.version)
        if key not in self._statistics:
            listed = {(each.name + end, each.version) for each in self._models.index() for end in ("", IMAGE_SUFFIX)}
            self._statistics = {old: kept for old, kept in self._statistics.items() if old in listed}
            self._statistics[key] = InferenceStatistics(*key)
        return self._statistics[key]


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    match error:
        case UnknownModelError():
            return grpc.StatusCode.NOT_FOUND, str(error)
        case QueueFullError():
            return grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        case ExpiredError():
            return grpc.StatusCode.DEADLINE_EXCEEDED, str(error)
        case ControlError():
            return grpc.StatusCode.FAILED_PRECONDITION, str(error)
        case ValueError():
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case _:
            logger.error("inference failed", exc_info=error)
            return grpc.StatusCode.INTERNAL, "inference failed; the server's log has the reason"


def unary(method: Callable[[Any], Awaitable[Message]], request: type[Message]) -> grpc.RpcMethodHandler[Any, Any]:
    """request -> response, as a handler whose errors are statuses."""

    async def answer(message: Any, context: Context) -> Message:
        try:
            return await method(message)
        except Exception as error:
            return cast(Message, refused(context, *status_of(error)))

    return grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=request.FromString, response_serializer=_serialize
    )


def add_to_server(service: InferenceService, server: grpc.aio.Server) -> None:
    async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[pb.ModelStreamInferResponse]:
        try:
            async with aclosing(service.model_stream_infer(requests)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            await context.abort(*status_of(error))

    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ServerLive": unary(service.server_live, pb.ServerLiveRequest),
        "ServerReady": unary(service.server_ready, pb.ServerReadyRequest),
        "ModelReady": unary(service.model_ready, pb.ModelReadyRequest),
        "ServerMetadata": unary(service.server_metadata, pb.ServerMetadataRequest),
        "ModelMetadata": unary(service.model_metadata, pb.ModelMetadataRequest),
        "ModelConfig": unary(service.model_config, pb.ModelConfigRequest),
        "ModelInfer": unary(service.model_infer, pb.ModelInferRequest),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
            stream, request_deserializer=pb.ModelInferRequest.FromString, response_serializer=_serialize
        ),
        "ModelStatistics": unary(service.model_statistics, pb.ModelStatisticsRequest),
        "RepositoryIndex": unary(service.repository_index, pb.RepositoryIndexRequest),
        "RepositoryModelLoad": unary(service.repository_model_load, pb.RepositoryModelLoadRequest),
        "RepositoryModelUnload": unary(service.repository_model_unload, pb.RepositoryModelUnloadRequest),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
