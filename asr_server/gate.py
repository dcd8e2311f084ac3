"""The way into the speech services: who is let in, and with what status a call ends where something is wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeAlias, TypeVar, cast

import grpc
import grpc.aio

from asr_server import logs, settings, tracing
from asr_server.logs import transcript_for_log
from asr_server.messages import Call
from asr_server.metrics import Metrics
from asr_server.operations import ExhaustedError
from asr_server.options import Limits
from asr_server.quotas import CURRENT, QuotaError
from asr_server.recognizer import Event, Result
from asr_server.session import Line, Session

OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE
_AUDIO_TIMEOUT = (
    "Audio Timeout Error: Long duration elapsed without audio. Audio should be sent close to real time. "
    "Nothing came for {} seconds."
)

_SHOWN = 1000  # characters of an error; percent-encoded at most 12 bytes each, and gRPC takes 16 KB of metadata
_STALLED = "Results have not been read for {} seconds."

logger = logging.getLogger(__name__)
T = TypeVar("T")
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class StatusError(Exception):
    """An answer with a status other than INVALID_ARGUMENT, which ValueErrors become."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Gate:
    """Counts the calls of all speech contracts together, and opens their sessions."""

    def __init__(self, line: Line, limits: Limits, metrics: Metrics) -> None:
        self.line = line
        self.limits = limits
        self.metrics = metrics
        self._calls = 0
        self.draining = False  # the server is stopping: who is in may finish, nobody else comes in

    @asynccontextmanager
    async def answering(self, context: Context) -> AsyncIterator[None]:
        """Lets a call in or refuses it at once, and ends it with a status where something is wrong."""
        if self.draining:
            self.metrics.rejected("draining")
            await context.abort(grpc.StatusCode.UNAVAILABLE, "The server is stopping. Try another one.")
        if refusal := self._refusal():
            self.metrics.rejected("overload")
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, refusal)
        self._calls += 1
        try:
            yield
        except QuotaError:
            raise  # the interceptor knows the status and when to try again
        except Exception as error:
            if isinstance(error, ExhaustedError):
                self.metrics.rejected("overload")
            await context.abort(*status_of(error))
        finally:
            self._calls -= 1

    @contextmanager
    def session(self, call: Call, *, is_bulk: bool = False, max_seconds: float | None = None) -> Iterator[Session]:
        """A stream's, or with `is_bulk` that of a recording sent at once. max_seconds: in place of their limits."""
        limits = self.limits
        seconds = max_seconds or (limits.unary_seconds if is_bulk else limits.stream_seconds)
        account, span = CURRENT.get().quota, tracing.current_span()

        def charge(seconds: float) -> None:
            account.charge_audio(seconds)
            self.metrics.audio(call.engine.name, seconds)
            if not session.seconds:
                span.event("first_audio")

        session = Session(
            self.line,
            call,
            _too_long_recording(seconds, max_seconds is None) if is_bulk else _too_long_stream(seconds),
            max_seconds=seconds,
            ahead_seconds=limits.ahead_seconds,
            charge=charge,
            is_bulk=is_bulk,
        )
        logs.note(model=call.engine.name)
        self.metrics.streams_open(call.engine.name, 1)
        try:
            yield session
        finally:
            session.close()
            self.metrics.streams_open(call.engine.name, -1)
            if session.latency is not None and not is_bulk:  # of recordings it says how long they are
                self.metrics.final_latency(session.latency)

    def hand_out(self, event: Event, seen: set[str]) -> None:
        """Counts what is about to be sent to the caller, of whom `seen` says what was sent before."""
        if not isinstance(event, Result):
            return
        kind = "final" if event.is_final else "interim"
        (self.metrics.finals if event.is_final else self.metrics.interims)()
        if event.is_final or kind not in seen:
            tracing.current_span().event("final" if event.is_final else "first_interim", audio_seconds=event.end)
            logger.debug("%s result: %s", kind, transcript_for_log(event.text))
        seen.add(kind)

    async def next(self, requests: AsyncIterator[T]) -> T | None:
        """The next message, None after the last; OUT_OF_RANGE when none comes for too long."""
        try:
            return await asyncio.wait_for(anext(requests, None), self.limits.idle_seconds)
        except TimeoutError:
            raise StatusError(OUT_OF_RANGE, _AUDIO_TIMEOUT.format(f"{self.limits.idle_seconds:g}")) from None

    def writing(
        self, answers: Callable[[AsyncIterator[T], Context], AsyncIterator[Any]]
    ) -> Callable[[AsyncIterator[T], Context], Coroutine[Any, Any, None]]:
        """The handler of a stream whose responses these are; ABORTED for a caller who does not take them.

        A write returns when the window of the caller's connection has room. One who never makes any would keep
        place, audio and results for ever, so these are given back before the status is sent, which he may never take.
        """

        async def handle(requests: AsyncIterator[T], context: Context) -> None:
            generator = cast("AsyncGenerator[Any, None]", answers(requests, context))
            async with aclosing(generator) as responses:
                async for response in responses:
                    if not await self._write(response, context):
                        break
                else:
                    return
            await context.abort(grpc.StatusCode.ABORTED, _STALLED.format(f"{self.limits.stall_seconds:g}"))

        return handle

    async def _write(self, response: Any, context: Context) -> bool:
        """Whether the caller took it in time."""
        try:
            async with asyncio.timeout(self.limits.stall_seconds):
                await context.write(response)
        except TimeoutError:
            return False
        return True

    def _refusal(self) -> str | None:
        """Why no further call is let in; queueing it would only make all of them late."""
        if self._calls >= self.limits.calls:
            return f"{self._calls} calls are in progress, which is the limit. Try later."
        lag = self.line.scheduler.lag
        if lag > self.limits.lag_seconds:
            return f"The server is {lag:.1f} seconds behind, more than {self.limits.lag_seconds:g}. Try later."
        return None


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What a caller gets to read about an error of his call, or of what goes on after it in the background."""
    if isinstance(error, StatusError):
        return error.code, _readable(error)
    if isinstance(error, QuotaError | ExhaustedError):
        return grpc.StatusCode.RESOURCE_EXHAUSTED, _readable(error)
    if isinstance(error, ValueError):
        return grpc.StatusCode.INVALID_ARGUMENT, _readable(error)
    logger.error("a call failed", exc_info=error)
    return grpc.StatusCode.INTERNAL, "The server failed on this call; its log says why."


def own_settings(context: Context) -> dict[str, str]:
    """The settings in a call's metadata."""
    metadata = context.invocation_metadata() or ()
    return settings.from_metadata({key: value for key, value in metadata if isinstance(value, str)})


def _readable(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _too_long_stream(seconds: float) -> Callable[[], Exception]:
    return lambda: StatusError(OUT_OF_RANGE, f"Exceeded maximum allowed stream duration of {seconds:g} seconds.")


def _too_long_recording(seconds: float, is_awaited: bool) -> Callable[[], Exception]:
    kind = "Sync input" if is_awaited else "Input"
    return lambda: ValueError(f"{kind} too long: it has more than {seconds:g} seconds of audio.")
