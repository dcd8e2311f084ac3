"""The vision service: messages in, messages out, errors as gRPC status. Every await of this package is here.

Decoding runs in a few threads of its own, because its memory is bounded per image at work; the model runs in the
batcher's thread; the event loop waits for both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
import torch

from vision_zoo import bundle
from vision_zoo.batcher import QueueFullError
from vision_zoo.classifier import DEFAULT_TOP_K, Classifier, Prediction
from vision_zoo.wire import vision_pb2 as pb
from vision_zoo.wire.vision_pb2_grpc import VisionServicer, add_VisionServicer_to_server

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Vision"].full_name

logger = logging.getLogger(__name__)
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_Task: TypeAlias = "asyncio.Task[pb.ClassifyStreamResponse]"


@dataclass(frozen=True)
class Limits:
    """What the service takes in."""

    image_bytes: int = 16 << 20  # of one file
    images: int = 64  # accepted and not yet answered, over all calls; single calls beyond them are refused
    window: int = 16  # of these, at once for one stream; the stream is read no further meanwhile
    decoders: int = 2  # images decoded at once; each needs up to images.BYTES_PER_PIXEL bytes a pixel


class UnknownModelError(Exception):
    """No model of that name is loaded."""


class VisionService(VisionServicer):
    """`Vision` of vision.proto. The first classifier is the default. Close it after the server has stopped."""

    def __init__(self, classifiers: Iterable[Classifier], limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._classifiers: dict[str, Classifier] = {}
        for classifier in classifiers:
            if other := self._classifiers.get(classifier.bundle.name):
                folders = f"{other.bundle.folder} and {classifier.bundle.folder}"
                raise ValueError(f"two vision models are called {classifier.bundle.name!r}: {folders}")
            self._classifiers[classifier.bundle.name] = classifier
        # No more than the smallest queue holds, so that an accepted image always finds a place in it.
        capacities = [classifier.batching.capacity for classifier in self._classifiers.values()]
        self._places = asyncio.Semaphore(min([self._limits.images, *capacities]))
        self._decoders = ThreadPoolExecutor(self._limits.decoders, "decode", torch.set_num_threads, (1,))

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._classifiers)

    def warm_up(self) -> None:
        """Runs every model once: the first pass through a network is slow."""
        for classifier in self._classifiers.values():
            size = classifier.bundle.preprocessing.size
            classifier.submit(torch.zeros(3, size, size, dtype=torch.uint8)).result()

    def close(self) -> None:
        self._decoders.shutdown(cancel_futures=True)
        for classifier in self._classifiers.values():
            classifier.close()

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        try:
            if self._places.locked():
                raise QueueFullError(f"{self._limits.images} images are in work already; try again later")
            return await self._classify(request)
        except Exception as error:
            await context.abort(*_status(error))

    async def ClassifyStream(
        self, requests: AsyncIterator[pb.ClassifyStreamRequest], context: Context
    ) -> AsyncIterator[pb.ClassifyStreamResponse]:
        # The reader starts the images as they arrive; their answers are owed, and given, in that order.
        owed: asyncio.Queue[_Task | None] = asyncio.Queue()
        window = asyncio.Semaphore(self._limits.window)
        reader = asyncio.create_task(self._start_each(requests, owed, window))
        try:
            while (answer := await owed.get()) is not None:
                yield await answer
                window.release()
            await reader  # where reading failed, the call ends with that error
        finally:
            reader.cancel()
            while not owed.empty():
                if (left := owed.get_nowait()) is not None:
                    left.cancel()

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[_model(each.bundle) for each in self._classifiers.values()])

    async def _start_each(
        self,
        requests: AsyncIterator[pb.ClassifyStreamRequest],
        owed: asyncio.Queue[_Task | None],
        window: asyncio.Semaphore,
    ) -> None:
        try:
            async for request in requests:
                await window.acquire()
                owed.put_nowait(asyncio.create_task(self._answer_in_stream(request)))
        finally:
            owed.put_nowait(None)

    async def _answer_in_stream(self, request: pb.ClassifyStreamRequest) -> pb.ClassifyStreamResponse:
        try:
            return pb.ClassifyStreamResponse(
                request_id=request.request_id, response=await self._classify(request.request)
            )
        except Exception as error:
            code, text = _status(error)
            number: int = code.value[0]
            return pb.ClassifyStreamResponse(request_id=request.request_id, error=pb.Error(code=number, message=text))

    async def _classify(self, request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        classifier = self._choose(request.model)
        top_k = request.top_k or DEFAULT_TOP_K
        classifier.check_top_k(top_k)
        if len(request.image) > self._limits.image_bytes:
            raise ValueError(f"image of {len(request.image)} bytes; the limit is {self._limits.image_bytes} bytes")
        async with self._places:
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._decoders, classifier.read, request.image)
            probabilities = await asyncio.wrap_future(classifier.submit(pixels))
        return _response(classifier.bundle, classifier.predictions(probabilities, top_k))

    def _choose(self, name: str) -> Classifier:
        if not self._classifiers:
            raise UnknownModelError("this server has no vision model")
        if not name:
            return next(iter(self._classifiers.values()))
        if name not in self._classifiers:
            raise UnknownModelError(f"model {name!r} is unknown; choose from {list(self._classifiers)}")
        return self._classifiers[name]


def load_classifiers(folders: Sequence[Path]) -> list[Classifier]:
    """Every vision bundle directly in the folders, in their order. Raises BundleError."""
    return [Classifier(bundle.load(path)) for folder in folders for path in bundle.find(folder)]


def add_to_server(service: VisionService, server: grpc.aio.Server) -> None:
    add_VisionServicer_to_server(service, server)


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    match error:
        case UnknownModelError():
            return grpc.StatusCode.NOT_FOUND, str(error)
        case QueueFullError():
            return grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        case ValueError():
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case _:
            logger.error("classification failed", exc_info=error)
            return grpc.StatusCode.INTERNAL, "classification failed; the server's log has the reason"


def _response(of: bundle.VisionBundle, predictions: Sequence[Prediction]) -> pb.ClassifyResponse:
    return pb.ClassifyResponse(
        predictions=[pb.Prediction(index=p.index, label=p.label, probability=p.probability) for p in predictions],
        model=of.name,
        model_version=of.version,
    )


def _model(of: bundle.VisionBundle) -> pb.Model:
    return pb.Model(
        name=of.name,
        version=of.version,
        labels=of.labels,
        input_size=of.preprocessing.size,
        parameters=of.parameters,
    )
