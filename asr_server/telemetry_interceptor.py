"""Every call counted, traced, logged and given an id: the outermost interceptor of the server.

A call is one asyncio task: interceptors, handler and the sending of its status run in it, and its end is the call's
end, whatever ended it. So the interceptor's work is one callback on that task and, for the id that is sent back and for
the status, a thin layer around the handler. Requests pass untouched; streamed responses are written from here, in
grpc's place, at the same cost.

The access record, logger `asr_server.access`, level INFO (successful health checks: DEBUG): method, code, duration in
seconds, peer (an address), client (the peer, or the name that `logs.note(client=...)` gave) and other notes as extras.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from hashlib import blake2b
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from asr_server import logs, tracing
from asr_server.metrics import UNKNOWN_METHOD, Metrics
from asr_server.tracing import Span, Tracer

REQUEST_ID = "x-request-id"

_REQUEST_ID_CHARACTERS = 128
_QUIET = "/grpc.health."
_METHOD_CHARACTERS = 200
_CODES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}

access = logging.getLogger("asr_server.access")
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"


def method_names(services: Mapping[str, ServiceDescriptor]) -> frozenset[str]:
    """/SERVICE/METHOD of each method, the services under the names that they are registered with."""
    return frozenset(f"/{name}/{method.name}" for name, service in services.items() for method in service.methods)


def request_number(request_id: str) -> int:
    """The id as int64, for the request_id field of Google's responses: ids that we made are that number already."""
    if request_id.isdecimal() and len(request_id) <= 19 and int(request_id) < 1 << 63:
        return int(request_id)
    return int.from_bytes(blake2b(request_id.encode(), digest_size=8).digest()) >> 1


class TelemetryInterceptor(grpc.aio.ServerInterceptor):
    """First in the chain, so that what other interceptors refuse is counted too.

    methods: the registered ones; calls of others are counted as "unknown", because clients could invent names for ever.
    """

    def __init__(self, metrics: Metrics, tracer: Tracer, methods: Collection[str]) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._methods = frozenset(methods)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        call = self._begin(handler_call_details)
        try:
            handler = await continuation(handler_call_details)
        except Exception:
            call.code = grpc.StatusCode.UNKNOWN.name
            raise
        if handler is None:
            call.code = grpc.StatusCode.UNIMPLEMENTED.name
            return None
        return _around(handler, call)

    def _begin(self, details: grpc.HandlerCallDetails) -> _Call:
        metadata = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
        number = _sane(metadata.get(REQUEST_ID, "")) or str(random.getrandbits(63))
        logs.request_id.set(number)
        span = self._tracer.start(details.method, number, metadata)
        tracing.enter(span)
        label = details.method if details.method in self._methods else UNKNOWN_METHOD
        call = _Call(details.method, label, number, span, self._metrics)
        self._metrics.rpc_begins(label)
        task = asyncio.current_task()
        assert task, "grpc.aio runs interceptors in the task of the call"
        task.add_done_callback(call.end)
        return call


class _Call:
    """One call from its beginning to its end."""

    def __init__(self, method: str, label: str, number: str, span: Span, metrics: Metrics) -> None:
        self.code: str | None = None  # where it is decided outside of the handler
        self.answered = False  # the handler has come to its end
        self._method = method
        self._label = label
        self._number = number
        self._span = span
        self._metrics = metrics
        self._notes = logs.collect_notes()
        self._context: Context | None = None
        self._peer = ""
        self._begun = time.monotonic()
        self._deadline = float("inf")

    def enter(self, context: Context) -> None:
        """The handler is about to run."""
        self._context = context
        # In the trailer, because handlers choose when to send the initial metadata, and which.
        context.set_trailing_metadata(((REQUEST_ID, self._number),))
        self._peer = context.peer()
        seconds: float | None = context.time_remaining()
        if seconds is not None:
            # The client's clock started earlier, and its deadline was rounded up on the wire.
            self._deadline = time.monotonic() + seconds - max(0.05, seconds / 100)

    def watched(self, function: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
        """A (de)serializer of a single message. grpc runs it outside of the handler and answers its failure itself."""
        if function is None:
            return None

        def watch(message: Any) -> Any:
            try:
                return function(message)
            except Exception:
                self.code = grpc.StatusCode.UNKNOWN.name
                raise

        return watch

    def end(self, task: asyncio.Task[Any]) -> None:
        seconds = time.monotonic() - self._begun
        code = self.code or self._status()
        self._metrics.rpc(self._label, code, seconds)
        fields = {"peer": self._peer, "client": self._peer, **self._notes}
        self._span.set(**fields)
        self._span.end(code)
        level = logging.DEBUG if code == "OK" and self._method.startswith(_QUIET) else logging.INFO
        if access.isEnabledFor(level):
            method = self._method[:_METHOD_CHARACTERS]
            fields |= {"method": method, "code": code, "duration": round(seconds, 6)}
            access.log(level, "%s %s", method, code, extra=logs.extra(fields))

    def _status(self) -> str:
        """The status that the client was sent; where none was sent, why it went away."""
        if self._context is None or not self._context.done():
            return "DEADLINE_EXCEEDED" if time.monotonic() >= self._deadline else "CANCELLED"
        code: Any = self._context.code()
        if code is None:  # nobody set one: grpc sent OK, or UNKNOWN for an exception
            return "OK" if self.answered else "UNKNOWN"
        return code.name if isinstance(code, grpc.StatusCode) else _CODES.get(code, "UNKNOWN")


def _around(handler: Handler, call: _Call) -> Handler:
    """The handler inside of the call, of the same kind."""
    kind = "_".join("stream" if many else "unary" for many in (handler.request_streaming, handler.response_streaming))
    deserialize, serialize = handler.request_deserializer, handler.response_serializer
    constructor = getattr(grpc, f"{kind}_rpc_method_handler")
    wrapped: Handler = constructor(
        _inside(getattr(handler, kind), call),
        deserialize if handler.request_streaming else call.watched(deserialize),
        serialize if handler.response_streaming else call.watched(serialize),
    )
    return wrapped


def _inside(behaviour: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    """The behaviour inside of the call.

    A coroutine also around a generator, whose responses it writes as grpc would: a generator that is suspended when its
    call is cancelled would end when it is collected, which is after the call has been counted.
    """
    generates = isasyncgenfunction(behaviour)
    assert generates or iscoroutinefunction(behaviour), "every handler of this server is asynchronous"

    async def inside(request: Any, context: Context) -> Any:
        call.enter(context)
        response = None
        try:
            if generates:
                async with aclosing(behaviour(request, context)) as responses:
                    async for each in responses:
                        await context.write(each)
            else:  # one response; or a stream in the reader and writer style, which returns nothing
                response = await behaviour(request, context)
        except grpc.aio.InternalError as error:
            # The caller left while something was being sent, which grpc would log as a fault of ours.
            raise asyncio.CancelledError from error
        call.answered = True
        return response

    return inside


def _sane(number: str) -> str:
    """The client's id, or "" where it is too long or not printable ASCII."""
    return number if len(number) <= _REQUEST_ID_CHARACTERS and number.isascii() and number.isprintable() else ""
