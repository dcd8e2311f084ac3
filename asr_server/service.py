"""The speech service: messages in, messages out, errors as gRPC status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import grpc.aio

from asr_server import logs, messages
from asr_server.catalogue import Catalogue
from asr_server.gate import Context, Gate, own_settings
from asr_server.long_running import LongRunning
from asr_server.messages import Call, Writer
from asr_server.operations_service import message as operation_message
from asr_server.recognizer import Result
from asr_server.session import Session
from asr_server.telemetry_interceptor import request_number
from asr_server.wire import speech_pb2 as pb

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Speech"].full_name
GOOGLE_SERVICE_NAME = "google.cloud.speech.v1.Speech"  # the same numbers on the wire, see speech.proto


class SpeechService:
    """`Speech` of speech.proto."""

    def __init__(self, catalogue: Catalogue, gate: Gate, long_running: LongRunning | None = None) -> None:
        self._catalogue = catalogue
        self._gate = gate
        self._long_running = long_running

    async def recognize(self, request: pb.RecognizeRequest, context: Context) -> pb.RecognizeResponse:
        async with self._gate.answering(context):
            content = self._content(request.audio)
            own = own_settings(context)
            call = await asyncio.to_thread(messages.read_config, request.config, self._catalogue, own)
            with self._gate.session(call, is_bulk=True) as session:
                reader = asyncio.create_task(_send(session, content))
                try:
                    heard = [(channel, event) async for channel, event in session.events()]
                finally:
                    reader.cancel()
                finals = [(channel, event) for channel, event in heard if isinstance(event, Result) and event.is_final]
                self._gate.metrics.finals(len(finals))
                return Writer(call, request_number(logs.request_id.get())).response(finals, session.seconds)
        raise AssertionError("every error ends the call")

    async def streaming_recognize(
        self, requests: AsyncIterator[pb.StreamingRecognizeRequest], context: Context
    ) -> AsyncIterator[pb.StreamingRecognizeResponse]:
        await context.send_initial_metadata(())  # clients block until they see the headers
        async with self._gate.answering(context):
            call = await self._open(requests, own_settings(context))
            writer = Writer(call, request_number(logs.request_id.get()))
            with self._gate.session(call) as session:
                reader = asyncio.create_task(self._read(requests, session))
                seen: set[str] = set()
                try:
                    async for channel, event in session.events():
                        self._gate.hand_out(event, seen)
                        yield writer.streaming_response(event, channel)
                finally:
                    reader.cancel()

    async def long_running_recognize(self, request: pb.LongRunningRecognizeRequest, context: Context) -> pb.Operation:
        if self._long_running is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "LongRunningRecognize is not offered here.")
        async with self._gate.answering(context):
            own = own_settings(context)
            call = await asyncio.to_thread(messages.read_config, request.config, self._catalogue, own)
            return operation_message(await self._long_running.begin(call, request))
        raise AssertionError("every error ends the call")

    async def _open(self, requests: AsyncIterator[pb.StreamingRecognizeRequest], own: Mapping[str, str]) -> Call:
        first = await self._gate.next(requests)
        if first is None or first.WhichOneof("streaming_request") != "streaming_config":
            raise ValueError(messages.MALORDERED)
        return await asyncio.to_thread(messages.read_streaming_config, first.streaming_config, self._catalogue, own)

    async def _read(self, requests: AsyncIterator[pb.StreamingRecognizeRequest], session: Session) -> None:
        try:
            while not session.done and (request := await self._gate.next(requests)) is not None:
                if request.WhichOneof("streaming_request") != "audio_content":
                    raise ValueError(messages.MALORDERED)
                await session.feed(request.audio_content)
            if not session.done:
                await session.finish()
        except Exception as error:
            session.fail(error)

    def _content(self, audio: pb.RecognitionAudio) -> bytes:
        if audio.WhichOneof("audio_source") == "uri":
            raise ValueError(
                f"uri '{audio.uri}' is not supported: this server fetches nothing. Send the audio as content."
            )
        if not audio.content:
            raise ValueError(messages.NO_AUDIO)
        if len(audio.content) > self._gate.limits.content_bytes:
            raise ValueError(
                f"Request payload size exceeds the limit: {self._gate.limits.content_bytes} bytes. "
                "Use StreamingRecognize or LongRunningRecognize for long audio."
            )
        return audio.content


async def _send(session: Session, content: bytes) -> None:
    """All of a recording."""
    try:
        await session.feed(content)
        await session.finish()
    except Exception as error:
        session.fail(error)


def add_to_server(service: SpeechService, server: grpc.aio.Server) -> None:
    """Register one servicer under our name and under Google's."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Recognize": grpc.unary_unary_rpc_method_handler(
            service.recognize,
            request_deserializer=pb.RecognizeRequest.FromString,
            response_serializer=pb.RecognizeResponse.SerializeToString,
        ),
        "StreamingRecognize": grpc.stream_stream_rpc_method_handler(
            service._gate.writing(service.streaming_recognize),
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
