"""Spans as the SDK's memory exporter and a toy collector see them, and nothing at all without an endpoint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from asr_server import tracing
from asr_server.logs import transcript_for_log
from asr_server.tracing import NoTracer, OpenTelemetryTracer, make_tracer

METHOD = "/earsight.speech.v1.Speech/StreamingRecognize"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Traced:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer = OpenTelemetryTracer(SimpleSpanProcessor(self.exporter))

    @property
    def span(self) -> ReadableSpan:
        (span,) = self.exporter.get_finished_spans()
        return span


@pytest.fixture
def traced() -> Iterator[Traced]:
    traced = Traced()
    yield traced
    traced.tracer.close()


def test_a_call_is_one_server_span(traced: Traced) -> None:
    span = traced.tracer.start(METHOD, "17", {})
    span.event("first_audio", seconds=0.25)
    span.set(model="en", streams=3, path=None)
    assert traced.exporter.get_finished_spans() == ()
    span.end("OK")
    seen = traced.span
    assert seen.name == METHOD[1:] and seen.kind is SpanKind.SERVER and seen.parent is None
    assert seen.resource.attributes["service.name"] == "earsight"
    assert dict(seen.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "earsight.speech.v1.Speech",
        "rpc.method": "StreamingRecognize",
        "rpc.response.status_code": "OK",
        "earsight.request_id": "17",
        "earsight.model": "en",
        "earsight.streams": 3,
        "earsight.path": "None",
    }
    (event,) = seen.events
    assert event.name == "first_audio" and dict(event.attributes or {}) == {"earsight.seconds": 0.25}


def test_the_parent_is_the_callers_span(traced: Traced) -> None:
    traced.tracer.start(METHOD, "1", {"traceparent": PARENT}).end("OK")
    parent = traced.span.parent
    assert parent and f"{parent.trace_id:032x}-{parent.span_id:016x}" == PARENT[3:-3]
    assert traced.span.context and traced.span.context.trace_id == parent.trace_id


@pytest.mark.parametrize("parent", ["", "nonsense", "00-0-0-01", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "ü" * 9000])
def test_a_parent_that_is_none_is_passed_over(traced: Traced, parent: str) -> None:
    traced.tracer.start(METHOD, "1", {"traceparent": parent}).end("OK")
    assert traced.span.parent is None


def test_a_caller_that_does_not_sample_is_obeyed(traced: Traced) -> None:
    traced.tracer.start(METHOD, "1", {"traceparent": PARENT[:-1] + "0"}).end("OK")
    assert traced.exporter.get_finished_spans() == ()


@pytest.mark.parametrize(("code", "failed"), [("INTERNAL", True), ("DEADLINE_EXCEEDED", True), ("CANCELLED", False)])
def test_a_span_failed_where_the_server_did(traced: Traced, code: str, failed: bool) -> None:
    traced.tracer.start(METHOD, "1", {}).end(code)
    assert traced.span.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)
    assert (traced.span.attributes or {})["rpc.response.status_code"] == code


def test_what_was_said_stays_out(traced: Traced) -> None:
    span = traced.tracer.start(METHOD, "1", {})
    span.set(transcript="go north", heard=transcript_for_log("go north"))
    span.event("final", text="go north", words=2)
    span.end("OK")
    assert "north" not in traced.span.to_json()
    assert (traced.span.attributes or {})["earsight.heard"] == "<8 characters>"


def test_outside_of_calls_the_current_span_takes_everything() -> None:
    span = tracing.current_span()
    span.event("first_audio", seconds=1.0)
    span.set(model="en")
    span.end("OK")
    assert span is NoTracer().start(METHOD, "1", {"traceparent": PARENT})


def test_spans_reach_a_collector_when_the_tracer_closes() -> None:
    received: list[trace_service_pb2.ExportTraceServiceRequest] = []

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):  # type: ignore[no-untyped-def]
            received.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    with ThreadPoolExecutor(1) as executor:
        server = grpc.server(executor)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        tracer = make_tracer(f"http://127.0.0.1:{port}")
        tracer.start(METHOD, "17", {}).end("OK")
        tracer.close()
        server.stop(None).wait()
    (request,) = received
    (spans,) = request.resource_spans
    assert spans.scope_spans[0].spans[0].name == METHOD[1:]
    assert {each.key: each.value.string_value for each in spans.resource.attributes}["service.name"] == "earsight"


@pytest.mark.parametrize("endpoint", ["", "localhost:4317", "ftp://localhost:4317", "http://"])
def test_another_kind_of_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"must be http://HOST:PORT or https://HOST:PORT"):
        make_tracer(endpoint)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"not installed \({name}\): pip install 'earsight\[tracing\]'"):
        make_tracer("http://127.0.0.1:4317")


def test_without_an_endpoint_nothing_is_imported() -> None:
    script = (
        "import sys; from asr_server.tracing import make_tracer; make_tracer(None).start('/a/b', '1', {}).end('OK'); "
        "make_tracer(None).close(); print([name for name in sys.modules if name.startswith(('opentelemetry', 'grpc'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
