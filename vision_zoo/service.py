"""The vision service: messages in, messages out, errors as gRPC status.

Decoding runs in a few threads of its own, because its memory is bounded per image at work; the model runs in the
batcher's thread; the event loop waits for both.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

import grpc
import grpc.aio
import torch
from torch import Tensor

from vision_zoo import messages
from vision_zoo.additions import Additions
from vision_zoo.batcher import ExpiredError, QueueFullError, Urgency
from vision_zoo.classifier import Classifier
from vision_zoo.intake import Intake
from vision_zoo.neighbours import EmbeddingSets, SetsFullError, UnknownSetError
from vision_zoo.registration import RegistrationOffError, Registry
from vision_zoo.repository import Repository, UnknownModelError
from vision_zoo.streams import in_order
from vision_zoo.wire import vision_pb2 as pb
from vision_zoo.wire.vision_pb2_grpc import VisionServicer, add_VisionServicer_to_server

__all__ = ["SERVICE_NAME", "Limits", "UnknownModelError", "VisionService", "add_to_server"]

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Vision"].full_name

logger = logging.getLogger(__name__)
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_T = TypeVar("_T")

_STATUS: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (UnknownSetError, grpc.StatusCode.NOT_FOUND),
    (QueueFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (SetsFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ExpiredError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (RegistrationOffError, grpc.StatusCode.PERMISSION_DENIED),
    (ValueError, grpc.StatusCode.INVALID_ARGUMENT),
)


@dataclass(frozen=True)
class Limits:
    """What a server takes in, all contracts together."""

    image_bytes: int = 16 << 20  # of one file
    images: int = 64  # accepted and not yet answered, over all calls; single calls beyond them are refused
    window: int = 16  # of these, at once for one stream; the stream is read no further meanwhile
    decoders: int = 2  # images decoded at once; each needs up to images.BYTES_PER_PIXEL bytes a pixel


class VisionService(VisionServicer):
    """`Vision` of vision.proto. The first classifier is the default. Close it after the server has stopped.

    registry: takes in bundles, aliases and sets of embeddings while it serves; None: nobody may. sets: what Search
    looks in. `intake` is for the services of other contracts on the same models, so that the limits hold for all.
    """

    def __init__(
        self,
        models: Repository | Iterable[Classifier],
        limits: Limits | None = None,
        registry: Registry | None = None,
        sets: EmbeddingSets | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self.repository = models if isinstance(models, Repository) else Repository.of(models)
        self._sets = sets or EmbeddingSets()
        self._additions = Additions(self.repository, self._sets, registry, self._embedding)
        self._decoders = ThreadPoolExecutor(self._limits.decoders, "decode", torch.set_num_threads, (1,))
        # No more than the smallest queue holds, so that an accepted image always finds a place in it.
        capacities = [classifier.batching.capacity for classifier in self.repository.classifiers]
        self.intake = Intake(self._decoders, min([self._limits.images, *capacities]))

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(classifier.bundle.name for classifier in self.repository.classifiers))

    def warm_up(self) -> None:
        """Runs every model once: the first pass through a network is slow."""
        self.repository.warm_up()

    def close(self) -> None:
        self._decoders.shutdown(cancel_futures=True)
        self.repository.close()

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        return await _answered(self._classify(request, _deadline(context), wait=False), context)

    async def ClassifyStream(
        self, requests: AsyncIterator[pb.ClassifyStreamRequest], context: Context
    ) -> AsyncIterator[pb.ClassifyStreamResponse]:
        answer = partial(self._answer_in_stream, deadline=_deadline(context))
        async with aclosing(in_order(requests, answer, self._limits.window)) as answers:
            async for each in answers:
                yield each

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(
            models=[messages.model(each, self.repository) for each in self.repository.classifiers]
        )

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        return await _answered(self._embed(request, _deadline(context)), context)

    async def RegisterEmbeddings(
        self, requests: AsyncIterator[pb.RegisterEmbeddingsRequest], context: Context
    ) -> pb.EmbeddingSet:
        return await _answered(self._additions.embeddings(requests, _deadline(context)), context)

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        return await _answered(self._additions.search(request, _deadline(context)), context)

    async def ListEmbeddingSets(
        self, request: pb.ListEmbeddingSetsRequest, context: Context
    ) -> pb.ListEmbeddingSetsResponse:
        return pb.ListEmbeddingSetsResponse(sets=[messages.embedding_set(each) for each in self._sets])

    async def DeleteEmbeddingSet(
        self, request: pb.DeleteEmbeddingSetRequest, context: Context
    ) -> pb.DeleteEmbeddingSetResponse:
        return await _answered(self._additions.delete(request), context)

    async def Register(self, requests: AsyncIterator[pb.RegisterRequest], context: Context) -> pb.RegisterResponse:
        return await _answered(self._additions.bundle(requests), context)

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        return await _answered(self._additions.alias(request), context)

    async def _answer_in_stream(
        self, request: pb.ClassifyStreamRequest, deadline: float | None
    ) -> pb.ClassifyStreamResponse:
        try:
            response = await self._classify(request.request, deadline, wait=True)
            return pb.ClassifyStreamResponse(request_id=request.request_id, response=response)
        except Exception as error:
            code, text = _status(error)
            number: int = code.value[0]
            return pb.ClassifyStreamResponse(request_id=request.request_id, error=pb.Error(code=number, message=text))

    async def _classify(self, request: pb.ClassifyRequest, deadline: float | None, wait: bool) -> pb.ClassifyResponse:
        """wait: for a place, where all are taken; streams do, which can be held up."""
        classifier = self.repository.find(request.model, request.model_version)
        options = messages.classify_options(request, deadline)
        self._check_size(request.image)
        async with self.intake.places(1, wait):
            (pixels,) = await self.intake.pixels(classifier, [request.image])
            if not options.explain:
                probabilities = await asyncio.wrap_future(classifier.submit(pixels, options.urgency))
                return messages.response(
                    classifier.bundle, classifier.predictions(probabilities, options.top_k), options.abstain_below
                )
            waiting = classifier.submit_attribution(pixels, options.index, options.urgency)
            found = await asyncio.wrap_future(waiting)
            predictions = classifier.predictions(classifier.calibrated(found.logits), options.top_k)
            response = messages.response(classifier.bundle, predictions, options.abstain_below)
            shown = await self.intake.off_loop(messages.explanation, classifier.bundle, pixels, found, options)
            response.explanation.CopyFrom(shown)
            return response

    async def _embed(self, request: pb.EmbedRequest, deadline: float | None) -> pb.EmbedResponse:
        classifier = self.repository.find(request.model, request.model_version)
        urgency = messages.urgency(request.priority, deadline)
        return messages.embed_response(
            classifier.bundle, await self._embedding(classifier, request.image, urgency, wait=False)
        )

    async def _embedding(self, classifier: Classifier, image: bytes, urgency: Urgency, wait: bool) -> Tensor:
        self._check_size(image)
        async with self.intake.places(1, wait):
            (pixels,) = await self.intake.pixels(classifier, [image])
            return await asyncio.wrap_future(classifier.submit_embedding(pixels, urgency))

    def _check_size(self, image: bytes) -> None:
        if len(image) > self._limits.image_bytes:
            raise ValueError(f"image of {len(image)} bytes; the limit is {self._limits.image_bytes} bytes")


def add_to_server(service: VisionService, server: grpc.aio.Server) -> None:
    add_VisionServicer_to_server(service, server)


async def _answered(work: Awaitable[_T], context: Context) -> _T:
    """What the work gives, or the call's end with a status."""
    try:
        return await work
    except Exception as error:
        return cast(_T, refused(context, *_status(error)))


def refused(context: Context, code: grpc.StatusCode, text: str) -> None:
    """Ends a call for one message with a status; what it returns is not sent.

    Not by `abort`: what that raises stays, with the frames and the request, until the garbage collector comes by.
    """
    context.set_code(code)
    context.set_details(text)


def _deadline(context: Context) -> float | None:
    """By time.monotonic(); None where the caller set none."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    for kind, code in _STATUS:
        if isinstance(error, kind):
            return code, str(error)
    logger.error("a call failed", exc_info=error)
    return grpc.StatusCode.INTERNAL, "the call failed; the server's log has the reason"
