"""Riva's speech recognition on the same engine and port: messages in, messages out, errors as gRPC status.

Its clients count: each message of a stream has one response, empty where there is nothing to say. So a stream is
answered in lockstep: a message that completes a step is answered with what the step brought, others at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio

from asr_server import messages, riva_messages
from asr_server.catalogue import Catalogue
from asr_server.gate import Context, Gate, own_settings
from asr_server.riva_messages import Writer
from asr_server.session import Heard, Session
from asr_server.wire import riva_asr_pb2 as pb

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["RivaSpeechRecognition"]
SERVICE_NAME = DESCRIPTOR.full_name
RIVA_SERVICE_NAME = "nvidia.riva.asr.RivaSpeechRecognition"  # the same numbers on the wire, see riva_asr.proto

_Requests = AsyncIterator[pb.StreamingRecognizeRequest]


class RivaService:
    """`RivaSpeechRecognition` of riva_asr.proto."""

    def __init__(self, catalogue: Catalogue, gate: Gate) -> None:
        self._catalogue = catalogue
        self._gate = gate

    async def recognize(self, request: pb.RecognizeRequest, context: Context) -> pb.RecognizeResponse:
        async with self._gate.answering(context):
            self._check_size(request.audio)
            own = own_settings(context)
            call = await asyncio.to_thread(riva_messages.read_config, request.config, self._catalogue, own)
            with self._gate.session(call, is_bulk=True) as session:
                heard = await session.hear(request.audio)
                await session.finish()
                finals = riva_messages.news(heard + await session.settle())
                self._gate.metrics.finals(len(finals))
                return Writer(call).response(finals, request)
        raise AssertionError("every error ends the call")

    async def streaming_recognize(
        self, requests: _Requests, context: Context
    ) -> AsyncIterator[pb.StreamingRecognizeResponse]:
        await context.send_initial_metadata(())  # clients block until they see the headers
        async with self._gate.answering(context):
            request = await self._gate.next(requests)
            if request is None or request.WhichOneof("streaming_request") != "streaming_config":
                raise ValueError(messages.MALORDERED)
            call = await asyncio.to_thread(
                riva_messages.read_streaming_config, request.streaming_config, self._catalogue, own_settings(context)
            )
            with self._gate.session(call) as session:
                async for response in self._answers(requests, request, session):
                    yield response

    async def get_config(
        self, request: pb.RivaSpeechRecognitionConfigRequest, context: Context
    ) -> pb.RivaSpeechRecognitionConfigResponse:
        async with self._gate.answering(context):
            return riva_messages.models(self._catalogue, request.model_name)
        raise AssertionError("every error ends the call")

    async def _answers(
        self, requests: _Requests, opening: pb.StreamingRecognizeRequest, session: Session
    ) -> AsyncIterator[pb.StreamingRecognizeResponse]:
        """One for each message, and what the end of the audio brought."""
        writer, seen = Writer(session.call), set[str]()

        def response(heard: Iterable[Heard], request: pb.StreamingRecognizeRequest) -> pb.StreamingRecognizeResponse:
            results = riva_messages.news(heard)
            for _, result in results:
                self._gate.hand_out(result, seen)
            return writer.streaming_response(results, request if request.HasField("id") else opening)

        while (request := await self._gate.next(requests)) is not None:
            yield response(await _hear(session, request), request)
        await session.finish()
        if rest := await session.settle():
            yield response(rest, opening)

    def _check_size(self, audio: bytes) -> None:
        if not audio:
            raise ValueError(messages.EMPTY_AUDIO)
        if len(audio) > self._gate.limits.content_bytes:
            raise ValueError(
                f"Request payload size exceeds the limit: {self._gate.limits.content_bytes} bytes. "
                "Use StreamingRecognize for long audio."
            )


async def _hear(session: Session, request: pb.StreamingRecognizeRequest) -> list[Heard]:
    """What a message brings to light."""
    kind = request.WhichOneof("streaming_request")
    if kind == "streaming_config" or (kind is None and not request.runtime_config):
        raise ValueError(messages.MALORDERED)
    is_end = riva_messages.forces_end(request.runtime_config)
    heard = await session.hear(request.audio_content)
    if is_end:
        session.end_utterance()
        heard += await session.settle()
    return heard


def add_to_server(service: RivaService, server: grpc.aio.Server) -> None:
    """Register one servicer under our name and under Riva's."""
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
        "GetRivaSpeechRecognitionConfig": grpc.unary_unary_rpc_method_handler(
            service.get_config,
            request_deserializer=pb.RivaSpeechRecognitionConfigRequest.FromString,
            response_serializer=pb.RivaSpeechRecognitionConfigResponse.SerializeToString,
        ),
    }
    names = (SERVICE_NAME, RIVA_SERVICE_NAME)
    server.add_generic_rpc_handlers(tuple(grpc.method_handlers_generic_handler(name, handlers) for name in names))
