"""Spans of calls for OpenTelemetry, and objects of the same shape that do nothing where no endpoint was given.

OpenTelemetry is an optional extra and is imported where an endpoint is given, not before. Spans go to an OTLP/gRPC
collector from a thread of the SDK's own; a collector that is slow or away costs spans, never calls. The SDK's
environment variables (OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_*) apply.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol
from urllib.parse import urlsplit

from asr_server.logs import SPOKEN

SERVICE_NAME = "earsight"

# Status codes that are the server's fault: OpenTelemetry's semantic conventions for RPC, server spans.
_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Span(Protocol):
    """One call. Every method may be called from any thread; after `end` none has an effect."""

    def event(self, name: str, **attributes: object) -> None:
        """Something that happened now: first_audio, first_interim, final."""

    def set(self, **attributes: object) -> None: ...

    def end(self, code: str) -> None:
        """code: the name of the gRPC status, as OK."""


class Tracer(Protocol):
    """Makes spans."""

    def start(self, method: str, request_id: str, metadata: Mapping[str, str]) -> Span:
        """The span of a call to /SERVICE/METHOD; its parent is the W3C traceparent of the metadata, if there is one."""

    def close(self) -> None:
        """Sends what has ended and stops. Waits for the collector, at most some seconds."""


class NoSpan:
    """A span that nobody collects."""

    def event(self, name: str, **attributes: object) -> None:
        pass

    def set(self, **attributes: object) -> None:
        pass

    def end(self, code: str) -> None:
        pass


class NoTracer:
    """The tracer of a server without an endpoint."""

    _SPAN = NoSpan()

    def start(self, method: str, request_id: str, metadata: Mapping[str, str]) -> Span:
        return self._SPAN

    def close(self) -> None:
        pass


_current: ContextVar[Span] = ContextVar("span", default=NoTracer._SPAN)


def current_span() -> Span:
    """The span of the call whose task this is; outside of calls one that does nothing.

    Threads of an executor see no call: take the span in the handler and hand it on.
    """
    return _current.get()


def enter(span: Span) -> None:
    """Makes it the current span of this task."""
    _current.set(span)


def make_tracer(endpoint: str | None) -> Tracer:
    """A tracer that sends to an OTLP/gRPC collector, http://HOST:PORT or https://HOST:PORT; for None one that does not.

    ValueError for another kind of endpoint, and where the packages are missing.
    """
    if endpoint is None:
        return NoTracer()
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"trace endpoint {endpoint!r} must be http://HOST:PORT or https://HOST:PORT (OTLP over gRPC)")
    try:
        exporter = importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
    except ImportError as error:
        raise ValueError(
            f"tracing to {endpoint} needs packages that are not installed ({error.name}): "
            "pip install 'earsight[tracing]'"
        ) from None
    to_collector = exporter.OTLPSpanExporter(endpoint=endpoint, insecure=parts.scheme == "http")
    return OpenTelemetryTracer(export.BatchSpanProcessor(to_collector))


class OpenTelemetryTracer:
    """Spans through the OpenTelemetry SDK, by a provider of its own: nothing global is set."""

    def __init__(self, processor: Any) -> None:
        """processor: an opentelemetry.sdk.trace.SpanProcessor, which the tracer closes."""
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": SERVICE_NAME}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("asr_server")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, method: str, request_id: str, metadata: Mapping[str, str]) -> Span:
        service, _, name = method.strip("/").rpartition("/")
        span = self._tracer.start_span(
            method.strip("/"),
            context=self._propagator.extract(metadata),
            kind=self._trace.SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "earsight.request_id": request_id,
            },
        )
        return _OpenTelemetrySpan(span, self._trace.Status(self._trace.StatusCode.ERROR))

    def close(self) -> None:
        self._provider.shutdown()


class _OpenTelemetrySpan:
    def __init__(self, span: Any, failed: Any) -> None:
        self._span = span
        self._failed = failed

    def event(self, name: str, **attributes: object) -> None:
        self._span.add_event(name, _attributes(attributes))

    def set(self, **attributes: object) -> None:
        self._span.set_attributes(_attributes(attributes))

    def end(self, code: str) -> None:
        self._span.set_attribute("rpc.response.status_code", code)
        if code in _ERRORS:
            self._span.set_status(self._failed)
        self._span.end()


def _attributes(values: Mapping[str, object]) -> dict[str, str | bool | int | float]:
    """Names under our prefix, values as OpenTelemetry takes them. What was said stays out of traces."""
    return {
        f"earsight.{name}": value if isinstance(value, str | bool | int | float) else str(value)
        for name, value in values.items()
        if name not in SPOKEN
    }
