"""Who calls, found out before a handler sees the call; and the client's quotas around the handler.

Without a token the call ends before anything of its body is read. The client then stands in `quotas.CURRENT` while the
handler runs: grpc.aio runs interceptors and handler of a call in one context. A handler charges audio to
`CURRENT.get().quota` and lets QuotaError pass; here it becomes RESOURCE_EXHAUSTED.

Health needs no token, because probes carry none. Reflection does: it describes the server.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio

from asr_server import logs, quotas
from asr_server.metrics import Reason
from asr_server.quotas import ANONYMOUS, CURRENT, Client, QuotaError
from asr_server.token_file import TokenFile

OPEN_SERVICES = frozenset({"grpc.health.v1.Health"})

NO_TOKEN = "This server needs a bearer token. Send it as metadata 'authorization: Bearer TOKEN'."
WRONG_TOKEN = "The bearer token is not valid: it is unknown, expired or revoked."

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"


class Refused(Exception):
    """A call that gets a status instead of a handler."""

    def __init__(
        self, code: grpc.StatusCode, reason: Reason, text: str, metadata: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(text)
        self.code = code
        self.reason: Reason = reason
        self.metadata = metadata

    @staticmethod
    def over_quota(error: QuotaError) -> Refused:
        return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota", str(error), _retry_metadata(error.retry_after))


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Tokens where there is a token file, else the certificate's name where callers show one, else anonymous.

    `speech_services`: full names of those whose calls take one of the client's streams. `rejected` counts refusals.
    """

    def __init__(
        self,
        tokens: TokenFile | None,
        speech_services: Collection[str],
        rejected: Callable[[Reason], None] = lambda _: None,
    ) -> None:
        self._tokens = tokens
        self._speech = frozenset(speech_services)
        self._rejected = rejected

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        service = service_of(handler_call_details.method)
        if service in OPEN_SERVICES:
            return await continuation(handler_call_details)
        try:
            client = await self._admit(service, handler_call_details.invocation_metadata)
        except Refused as refusal:
            self._rejected(refusal.reason)
            return _refusing(refusal)
        _enter(client)
        handler = await continuation(handler_call_details)
        return handler and _guarded(handler, service in self._speech, self._rejected)

    async def _admit(self, service: str, metadata: Collection[tuple[str, str | bytes]]) -> Client:
        if self._tokens is None:
            return ANONYMOUS
        token = bearer_token(metadata)
        if self._tokens.due():
            await asyncio.to_thread(self._tokens.refresh)
        client = self._tokens.client(token)
        if client is None:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "unauthenticated", WRONG_TOKEN)
        if not client.may_call(service):
            allowed = ", ".join(sorted(client.services or ())) or "none"
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED,
                "forbidden",
                f"Client '{client.name}' may not call service '{service}'. It may call: {allowed}.",
            )
        try:
            client.quota.count_request()
        except QuotaError as error:
            raise Refused.over_quota(error) from error
        return client


def service_of(method: str) -> str:
    """`/package.Service/Method` to `package.Service`."""
    return method.removeprefix("/").rpartition("/")[0]


def bearer_token(metadata: Collection[tuple[str, str | bytes]]) -> str:
    """The one bearer token of a call (RFC 6750, section 2.1; the scheme's name has no case)."""
    values = [value for key, value in metadata if key == "authorization"]
    if len(values) == 1 and isinstance(values[0], str):
        scheme, _, token = values[0].strip().partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
    raise Refused(grpc.StatusCode.UNAUTHENTICATED, "unauthenticated", NO_TOKEN)


def certificate_name(auth_context: Mapping[str, Any]) -> str | None:
    """The common name of a caller's certificate, its first alternative name where it has none, None without one."""
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        for value in auth_context.get(key) or ():
            if value:
                return str(value.decode(errors="replace"))
    return None


def _enter(client: Client) -> None:
    CURRENT.set(client)
    if client is not ANONYMOUS:  # whose calls are better told apart by their address
        logs.note(client=client.name)


def _refusing(refusal: Refused) -> Handler:
    """Answers any kind of call; taking a stream, it need not wait for a message and decodes none."""

    async def refuse(requests: AsyncIterator[Any], context: Context) -> NoReturn:
        await _abort(context, refusal)

    return grpc.stream_unary_rpc_method_handler(refuse)


def _guarded(handler: Handler, takes_stream: bool, rejected: Callable[[Reason], None]) -> Handler:
    """The same handler with the client's quotas around it."""
    kinds = {
        (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
        (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
        (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
        (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
    }
    attribute, make = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
    behaviour = getattr(handler, attribute)

    # A coroutine also where responses stream: a generator that is suspended when its call is cancelled would end only
    # when it is collected, and its stream would stay taken until then.
    async def answer(request: Any, context: Context) -> Any:
        try:
            with _charged(context, takes_stream):
                return await _run(behaviour(request, context), context)
        except QuotaError as error:
            rejected("quota")
            await _abort(context, Refused.over_quota(error))

    guarded: Handler = make(
        answer, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )
    return guarded


def _charged(context: Context, takes_stream: bool) -> AbstractContextManager[None]:
    client = CURRENT.get()
    if client is ANONYMOUS and (name := certificate_name(context.auth_context())):
        client = quotas.without_quota(name)
        _enter(client)
    return client.quota.stream() if takes_stream else nullcontext()


async def _run(answer: Any, context: Context) -> Any:
    """What an asynchronous handler of any shape returned: a coroutine, or responses one by one."""
    if not hasattr(answer, "__aiter__"):
        return await answer
    if inspect.isasyncgen(answer):
        async with aclosing(answer):
            return await _send(answer, context)
    return await _send(answer, context)


async def _send(responses: AsyncIterator[Any], context: Context) -> None:
    async for response in responses:
        await context.write(response)


async def _abort(context: Context, refusal: Refused) -> NoReturn:
    # What an outer interceptor or the handler has set, as a request's id, would be lost beside metadata of our own.
    metadata = (*(context.trailing_metadata() or ()), *refusal.metadata)
    await context.abort(refusal.code, str(refusal), metadata)
    raise AssertionError("abort raises")


def _retry_metadata(seconds: float | None) -> tuple[tuple[str, str], ...]:
    """For people in seconds, as HTTP has it; for gRPC's own retries in ms (gRFC A6, server pushback)."""
    if seconds is None:
        return ()
    return ("retry-after", str(math.ceil(seconds))), ("grpc-retry-pushback-ms", str(math.ceil(seconds * 1000)))
