"""The speech service: messages in, messages out, errors as gRPC status. The only file with an await per chunk.

Work on audio runs in a thread pool in slices of at most half a second of audio, so the event loop never waits for
it, streams take turns, and a cancelled call stops after the slice in hand.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio

from asr_server import messages
from asr_server.audio import AudioDecoder
from asr_server.catalogue import Catalogue
from asr_server.messages import Call, Writer
from asr_server.options import Limits
from asr_server.pcm import Samples
from asr_server.recognizer import Event, Result
from asr_server.wire import speech_pb2 as pb

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Speech"].full_name
GOOGLE_SERVICE_NAME = "google.cloud.speech.v1.Speech"  # the same numbers on the wire, see speech.proto

_PIECE_BYTES = 16384  # a message is decoded in pieces, so that memory and turns are bounded by us
_SLICE_SECONDS = 0.5
_AUDIO_TIMEOUT = (
    "Audio Timeout Error: Long duration elapsed without audio. Audio should be sent close to real time. "
    "Nothing came for {} seconds."
)

OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE

logger = logging.getLogger(__name__)
T = TypeVar("T")
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class StatusError(Exception):
    """An answer with a status other than INVALID_ARGUMENT, which ValueErrors become."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Line:
    """One call's audio on its way from bytes to events; runs in the pool."""

    def __init__(self, call: Call, seconds: float, too_long: Exception) -> None:
        self.stream = call.engine.stream(call.stream_options)
        self._decoder = AudioDecoder(call.audio_format, call.engine.sample_rate)
        self._slice = round(_SLICE_SECONDS * call.engine.sample_rate)
        self._limit = seconds * call.engine.sample_rate
        self._too_long = too_long
        self._heard = 0  # samples

    def feed(self, data: bytes) -> Iterator[list[Event]]:
        """Lazily: each step does one slice of the work."""
        for start in range(0, len(data), _PIECE_BYTES):
            yield from self._recognise(self._decoder.feed(data[start : start + _PIECE_BYTES]))

    def finish(self) -> Iterator[list[Event]]:
        yield from self._recognise(self._decoder.flush())
        if not self._heard:
            raise ValueError(messages.EMPTY_AUDIO)
        yield self.stream.finish()

    def _recognise(self, samples: Samples) -> Iterator[list[Event]]:
        for start in range(0, len(samples), self._slice):
            part = samples[start : start + self._slice]
            self._heard += len(part)
            if self._heard > self._limit:
                raise self._too_long
            yield self.stream.feed(part)


class SpeechService:
    """`Speech` of speech.proto."""

    def __init__(self, catalogue: Catalogue, executor: Executor, limits: Limits) -> None:
        self._catalogue = catalogue
        self._executor = executor
        self._limits = limits
        self._calls = 0

    async def recognize(self, request: pb.RecognizeRequest, context: Context) -> pb.RecognizeResponse:
        async with self._answering(context):
            call = messages.read_config(request.config, self._catalogue)
            content = self._content(request.audio)
            seconds = self._limits.unary_seconds
            line = _Line(
                call, seconds, ValueError(f"Sync input too long: it has more than {seconds:g} seconds of audio.")
            )
            events = [event async for event in self._events(line.feed(content))]
            events += [event async for event in self._events(line.finish())]
            finals = [event for event in events if isinstance(event, Result) and event.is_final]
            return Writer(call, _request_id()).response(finals)
        raise AssertionError("every error ends the call")

    async def streaming_recognize(
        self, requests: AsyncIterator[pb.StreamingRecognizeRequest], context: Context
    ) -> AsyncIterator[pb.StreamingRecognizeResponse]:
        await context.send_initial_metadata(())  # clients block until they see the headers
        async with self._answering(context):
            call = await self._open(requests)
            writer = Writer(call, _request_id())
            seconds = self._limits.stream_seconds
            line = _Line(
                call,
                seconds,
                StatusError(OUT_OF_RANGE, f"Exceeded maximum allowed stream duration of {seconds:g} seconds."),
            )
            while not line.stream.done and (request := await self._next(requests)) is not None:
                if request.WhichOneof("streaming_request") != "audio_content":
                    raise ValueError(messages.MALORDERED)
                async for event in self._events(line.feed(request.audio_content)):
                    yield writer.streaming_response(event)
            if not line.stream.done:
                async for event in self._events(line.finish()):
                    yield writer.streaming_response(event)

    async def long_running_recognize(self, request: pb.LongRunningRecognizeRequest, context: Context) -> pb.Operation:
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            "LongRunningRecognize is not offered: this server keeps no results. Use StreamingRecognize for long audio.",
        )

    def _content(self, audio: pb.RecognitionAudio) -> bytes:
        if audio.WhichOneof("audio_source") == "uri":
            raise ValueError(
                f"uri '{audio.uri}' is not supported: this server fetches nothing. Send the audio as content."
            )
        if not audio.content:
            raise ValueError(messages.NO_AUDIO)
        if len(audio.content) > self._limits.content_bytes:
            raise ValueError(
                f"Request payload size exceeds the limit: {self._limits.content_bytes} bytes. "
                "Use StreamingRecognize for long audio."
            )
        return audio.content

    async def _open(self, requests: AsyncIterator[pb.StreamingRecognizeRequest]) -> Call:
        first = await self._next(requests)
        if first is None or first.WhichOneof("streaming_request") != "streaming_config":
            raise ValueError(messages.MALORDERED)
        return messages.read_streaming_config(first.streaming_config, self._catalogue)

    async def _next(self, requests: AsyncIterator[T]) -> T | None:
        """The next message, None after the last."""
        try:
            return await asyncio.wait_for(anext(requests, None), self._limits.idle_seconds)
        except TimeoutError:
            raise StatusError(OUT_OF_RANGE, _AUDIO_TIMEOUT.format(f"{self._limits.idle_seconds:g}")) from None

    async def _events(self, work: Iterator[list[Event]]) -> AsyncIterator[Event]:
        """Events as the pool brings them to light, one slice of work at a time."""
        loop = asyncio.get_running_loop()
        while (events := await loop.run_in_executor(self._executor, next, work, None)) is not None:
            for event in events:
                yield event

    @asynccontextmanager
    async def _answering(self, context: Context) -> AsyncIterator[None]:
        """Counts the call and ends it with a status where something is wrong."""
        if self._calls >= self._limits.calls:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._calls} calls are in progress, which is the limit. Try later.",
            )
        self._calls += 1
        try:
            yield
        except StatusError as error:
            await context.abort(error.code, str(error))
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Exception:
            logger.exception("a call failed")
            await context.abort(grpc.StatusCode.INTERNAL, "The server failed on this call; its log says why.")
        finally:
            self._calls -= 1


def add_to_server(service: SpeechService, server: grpc.aio.Server) -> None:
    """Register one servicer under our name and under Google's."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Recognize": grpc.unary_unary_rpc_method_handler(
            service.recognize,
            request_deserializer=pb.RecognizeRequest.FromString,
            response_serializer=pb.RecognizeResponse.SerializeToString,
        ),
        "StreamingRecognize": grpc.stream_stream_rpc_method_handler(
            service.streaming_recognize,
            request_deserializer=pb.StreamingRecognizeRequest.FromString,
            response_serializer=pb.StreamingRecognizeResponse.SerializeToString,
        ),
        "LongRunningRecognize": grpc.unary_unary_rpc_method_handler(
            service.long_running_recognize,
            request_deserializer=pb.LongRunningRecognizeRequest.FromString,
            response_serializer=pb.Operation.SerializeToString,
        ),
    }
    names = (SERVICE_NAME, GOOGLE_SERVICE_NAME)
    server.add_generic_rpc_handlers(tuple(grpc.method_handlers_generic_handler(name, handlers) for name in names))


def _request_id() -> int:
    return random.getrandbits(63)
