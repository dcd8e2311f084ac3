"""Bytes that are no message are their sender's fault: INVALID_ARGUMENT, where gRPC says UNKNOWN and logs a traceback.

gRPC parses requests outside of the handlers, and what goes wrong there is an exception of the server to it. So parsing
gives a marker instead, and the marker becomes an error where the handler would have seen the message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from inspect import isasyncgenfunction
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
_KINDS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class MalformedError(ValueError):
    """A handler that turns ValueErrors into a status of its own may do so with this one."""


@dataclass(frozen=True)
class _Malformed:
    """In the place of the message."""

    text: str


class MalformedInterceptor(grpc.aio.ServerInterceptor):
    """Last in the chain, next to the handlers."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        return handler and _checking(handler)


def _checking(handler: Handler) -> Handler:
    """The handler, of the same kind."""
    attribute, make = _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
    behaviour = getattr(handler, attribute)
    style = _generator if isasyncgenfunction(behaviour) else _coroutine
    checking: Handler = make(
        style(behaviour),
        request_deserializer=handler.request_deserializer and _marking(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )
    return checking


def _marking(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse_or_mark(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError as error:
            return _Malformed(f"Malformed message of {len(data)} bytes. {error}")

    return parse_or_mark


def _generator(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async with aclosing(behaviour(_checked(request, context), context)) as responses:
                async for response in responses:
                    yield response
        except MalformedError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    return answers


def _coroutine(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(request: Any, context: Context) -> Any:
        try:
            return await behaviour(_checked(request, context), context)
        except MalformedError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except NotImplementedError as error:  # as the List of grpc's own health service
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, str(error))

    return answer


def _checked(request: Any, context: Context) -> Any:
    """A message, or the messages of a stream."""
    if isinstance(request, _Malformed):
        raise MalformedError(request.text)
    return _each_checked(context) if hasattr(request, "__anext__") else request


async def _each_checked(context: Context) -> AsyncIterator[Any]:
    """None is kept while the next one is awaited: by grpc's own iterator, an idle stream would hold a whole image."""
    while (request := await context.read()) is not grpc.aio.EOF:
        yield _checked(request, context)
        del request
