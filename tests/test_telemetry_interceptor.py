"""A toy service behind the interceptor: what is counted, traced, logged and sent back for every way a call can end."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asr_server import logs, tracing
from asr_server.logs import transcript_for_log
from asr_server.metrics import Metrics
from asr_server.telemetry_interceptor import TelemetryInterceptor, method_names, request_number
from asr_server.tracing import OpenTelemetryTracer
from asr_server.wire import speech_pb2 as pb

TOY = "toy.Toy"
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
logger = logging.getLogger("test.handler")
Context = grpc.aio.ServicerContext[bytes, bytes]


class Toy:
    """Its handlers do what the request says. Requests and responses are bytes."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.closed = asyncio.Event()
        self.flooded = 0

    async def obey(self, order: bytes, context: Context) -> bytes:
        if order == b"abort":
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "too far")
        if order == b"set":
            context.set_code(grpc.StatusCode.NOT_FOUND)
        if order == b"raise":
            raise RuntimeError("a bug")
        if order == b"wait":
            self.started.set()
            try:
                await asyncio.sleep(100)
            finally:
                self.closed.set()
        if order == b"log":
            logger.info("in the handler", extra={"transcript": "go north", "heard": transcript_for_log("go north")})
            logs.note(model="en", client="acme", name="clash")
            tracing.current_span().event("first_audio", seconds=0.5)
        return logs.request_id.get().encode()

    async def one_one(self, request: bytes, context: Context) -> bytes:
        return await self.obey(request, context)

    async def one_many(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        yield b"begin"
        try:
            while request == b"flood":
                self.flooded += 1
                yield bytes(1 << 16)
        finally:
            if request == b"flood":
                self.closed.set()
        yield await self.obey(request, context)

    async def many_one(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        return [await self.obey(request, context) async for request in requests][-1]

    async def many_many(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        await context.send_initial_metadata((("own", "header"),))
        async for request in requests:
            yield await self.obey(request, context)

    async def written(self, requests: AsyncIterator[bytes], context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(await self.obey(request, context))

    async def stalled(self) -> None:
        """Waits until the flood has filled what lies between it and a client that does not read."""
        before = -1
        while before != self.flooded:
            before = self.flooded
            await asyncio.sleep(0.1)

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            TOY,
            {
                "OneOne": grpc.unary_unary_rpc_method_handler(self.one_one, _not_bad, _not_bad),
                "OneMany": grpc.unary_stream_rpc_method_handler(self.one_many, _not_bad, _not_bad),
                "ManyOne": grpc.stream_unary_rpc_method_handler(self.many_one, _not_bad, _not_bad),
                "ManyMany": grpc.stream_stream_rpc_method_handler(self.many_many, _not_bad, _not_bad),
                "Written": grpc.stream_stream_rpc_method_handler(self.written, _not_bad, _not_bad),
            },
        )


def _not_bad(message: bytes) -> bytes:
    if message == b"bad":
        raise ValueError("cannot be read")
    return message


METHODS = frozenset(f"/{TOY}/{name}" for name in ("OneOne", "OneMany", "ManyOne", "ManyMany", "Written"))


class Deny(grpc.aio.ServerInterceptor):
    """Stands for the interceptors after ours: refuses before it has looked whether there is such a method."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        order = dict(details.invocation_metadata).get("deny")
        if order == "raise":
            raise RuntimeError("a bug")
        if order is None:
            return await continuation(details)

        async def refuse(request: bytes, context: Context) -> bytes:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

        return grpc.unary_unary_rpc_method_handler(refuse)


class Served:
    def __init__(self, channel: grpc.aio.Channel, metrics: Metrics, spans: InMemorySpanExporter, toy: Toy) -> None:
        self.channel = channel
        self.metrics = metrics
        self.spans = spans
        self.toy = toy

    def call(self, method: str, *requests: bytes, **options: Any) -> Any:
        """The call to a method of the toy, begun."""
        path = f"/{TOY}/{method}"
        many = iter(requests)
        channel: Any = self.channel
        match method:
            case "OneMany":
                return channel.unary_stream(path)(requests[0], **options)
            case "ManyOne":
                return channel.stream_unary(path)(many, **options)
            case "ManyMany" | "Written":
                return channel.stream_stream(path)(many, **options)
            case _:
                return channel.unary_unary(path)(requests[0], **options)

    async def ask(self, method: str, *requests: bytes, **options: Any) -> tuple[str, list[bytes], dict[str, Any]]:
        """Code, responses and trailing metadata of a whole call; returns when the server has counted it."""
        call = self.call(method, *requests, **options)
        responses = []
        try:
            if method in ("OneOne", "ManyOne", "Missing"):
                responses.append(await call)
            else:
                responses += [response async for response in call]
        except grpc.aio.AioRpcError:
            pass
        code, trailer = (await call.code()).name, dict(await call.trailing_metadata() or ())
        await self.idle()
        return code, responses, trailer

    async def idle(self) -> None:
        async with asyncio.timeout(20):
            while any(
                sample.value
                for family in self.metrics.registry.collect()
                for sample in family.samples
                if sample.name == "earsight_rpcs_in_progress"
            ):
                await asyncio.sleep(0.005)

    @property
    def counted(self) -> dict[tuple[str, str], float]:
        """(method, code) -> number of calls."""
        return {
            (sample.labels["method"].rpartition("/")[2], sample.labels["code"]): sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "earsight_rpcs_total"
        }


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    metrics, spans, toy = Metrics(), InMemorySpanExporter(), Toy()
    tracer = OpenTelemetryTracer(SimpleSpanProcessor(spans))
    names = METHODS | method_names({health.SERVICE_NAME: HEALTH})
    server = grpc.aio.server(interceptors=[TelemetryInterceptor(metrics, tracer, names), Deny()])
    server.add_generic_rpc_handlers((toy.handlers(),))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    reflection.enable_server_reflection((health.SERVICE_NAME,), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(channel, metrics, spans, toy)
    finally:
        await server.stop(None)
        tracer.close()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log as a server writes it by default, as JSON."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    logs.configure("json", "info", False, stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(log: io.StringIO, name: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, log.getvalue().splitlines()) if line["logger"] == name]


EVERY_KIND = ("OneOne", "OneMany", "ManyOne", "ManyMany", "Written")
# grpc itself logs exceptions of handlers, with their tracebacks; nothing here looks at that.
ENDS = {b"fine": "OK", b"abort": "OUT_OF_RANGE", b"set": "NOT_FOUND", b"raise": "UNKNOWN", b"bad": "UNKNOWN"}


@pytest.mark.parametrize("order", ENDS)
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_end_of_every_kind_is_counted_as_the_client_sees_it(kind: str, order: bytes) -> None:
    async def run() -> None:
        async with serving() as served:
            code, responses, _ = await served.ask(kind, order, metadata=(("x-request-id", "i"),))
            assert code == ENDS[order]
            assert served.counted == {(kind, code): 1}
            (span,) = served.spans.get_finished_spans()
            assert (span.name, (span.attributes or {})["rpc.response.status_code"]) == (f"{TOY}/{kind}", code)
            if code == "OK":
                assert responses == ([b"begin"] if kind == "OneMany" else []) + [b"i"]

    asyncio.run(run())


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_response_that_cannot_be_written_is_counted(kind: str) -> None:
    async def run() -> None:
        async with serving() as served:
            # The toy answers with the request id, and its serializer refuses this one.
            code, _, _ = await served.ask(kind, b"fine", metadata=(("x-request-id", "bad"),))
            assert code == "UNKNOWN" and served.counted == {(kind, "UNKNOWN"): 1}

    asyncio.run(run())


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_call_that_the_client_cancels(kind: str) -> None:
    async def run() -> None:
        async with serving() as served:
            call = served.call(kind, b"wait")
            reading = asyncio.ensure_future(_drain(call, kind))
            await served.toy.started.wait()
            call.cancel()
            await asyncio.wait([reading])
            await served.idle()
            assert served.counted == {(kind, "CANCELLED"): 1}
            await asyncio.wait_for(served.toy.closed.wait(), 20)

    asyncio.run(run())


async def _drain(call: Any, kind: str) -> None:
    if kind in ("OneOne", "ManyOne"):
        await call
    else:
        async for _ in call:
            pass


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_deadline(kind: str) -> None:
    async def run() -> None:
        async with serving() as served:
            code, _, _ = await served.ask(kind, b"wait", timeout=0.3)
            assert code == "DEADLINE_EXCEEDED" and served.counted == {(kind, "DEADLINE_EXCEEDED"): 1}

    asyncio.run(run())


def test_what_a_later_interceptor_refuses_is_counted_with_its_id() -> None:
    async def run() -> None:
        async with serving() as served:
            code, _, trailer = await served.ask("OneOne", b"", metadata=(("deny", "yes"), ("x-request-id", "42")))
            assert (code, trailer["x-request-id"]) == ("UNAUTHENTICATED", "42")
            assert (await served.ask("OneOne", b"", metadata=(("deny", "raise"),)))[0] == "UNKNOWN"
            assert served.counted == {("OneOne", "UNAUTHENTICATED"): 1, ("OneOne", "UNKNOWN"): 1}

    asyncio.run(run())


def test_methods_that_are_not_registered_share_one_label() -> None:
    async def run() -> None:
        async with serving() as served:
            assert (await served.ask("Missing", b""))[0] == "UNIMPLEMENTED"
            # Also where the refusal comes before anybody looked whether there is such a method.
            assert (await served.ask("Missing", b"", metadata=(("deny", "yes"),)))[0] == "UNAUTHENTICATED"
            assert served.counted == {("unknown", "UNIMPLEMENTED"): 1, ("unknown", "UNAUTHENTICATED"): 1}

    asyncio.run(run())


def test_the_callers_id_is_seen_by_the_handler_and_sent_back_beside_its_own_header() -> None:
    async def run() -> None:
        async with serving() as served:
            call = served.call("ManyMany", b"fine", metadata=(("x-request-id", "a b~"),))
            assert dict(await call.initial_metadata())["own"] == "header"
            assert [response async for response in call] == [b"a b~"]
            assert dict(await call.trailing_metadata())["x-request-id"] == "a b~"

    asyncio.run(run())


@pytest.mark.parametrize("metadata", [(), (("x-request-id", ""),), (("x-request-id", "1" * 129),)])
def test_an_id_that_is_missing_or_not_sane_is_made(metadata: tuple[tuple[str, str], ...]) -> None:
    async def run() -> None:
        async with serving() as served:
            _, (answer,), trailer = await served.ask("OneOne", b"fine", metadata=metadata)
            assert answer.decode() == trailer["x-request-id"] == str(request_number(answer.decode()))
            _, (other,), _ = await served.ask("OneOne", b"fine", metadata=metadata)
            assert other != answer

    asyncio.run(run())


def test_a_client_that_reads_no_further_and_leaves() -> None:
    async def run() -> None:
        async with serving() as served:
            call = served.call("OneMany", b"flood")
            assert await call.read() == b"begin"
            await served.toy.stalled()
            call.cancel()
            await served.idle()
            assert served.counted == {("OneMany", "CANCELLED"): 1}
            assert served.toy.closed.is_set()  # its handler had ended when the call was counted

    asyncio.run(run())


def test_calls_side_by_side_keep_their_ids() -> None:
    async def run() -> None:
        async with serving() as served:
            calls = [served.call("ManyMany", b"a", b"b", metadata=(("x-request-id", f"{i}"),)) for i in range(20)]
            answers = await asyncio.gather(*(_all(call) for call in calls))
            assert answers == [[f"{i}".encode()] * 2 for i in range(20)]

    async def _all(call: Any) -> list[bytes]:
        return [response async for response in call]

    asyncio.run(run())


def test_the_number_of_an_id() -> None:
    assert request_number("17") == 17
    assert request_number(str(2**63 - 1)) == 2**63 - 1
    numbers = [request_number(text) for text in ("", "a", "b", str(2**63), "9" * 128)]
    assert len(set(numbers)) == 5 and all(0 <= number < 2**63 for number in numbers)


def test_the_access_record_and_a_handler_that_logs_what_was_said(log: io.StringIO) -> None:
    async def run() -> Any:
        async with serving() as served:
            await served.ask("ManyMany", b"log", metadata=(("x-request-id", "7"),))
            return served.spans.get_finished_spans()[0]

    span = asyncio.run(run())
    (handler,), (access,) = lines(log, "test.handler"), lines(log, "asr_server.access")
    assert "north" not in log.getvalue()
    assert (handler["request_id"], handler["transcript"], handler["heard"]) == ("7",) + ("<8 characters>",) * 2
    assert access["request_id"] == "7" and access["level"] == "INFO" and access["message"] == f"/{TOY}/ManyMany OK"
    assert (access["method"], access["code"], access["client"]) == (f"/{TOY}/ManyMany", "OK", "acme")
    assert (access["model"], access["extra_name"]) == ("en", "clash")
    assert access["peer"].startswith("ipv4:127.0.0.1:") and 0 < access["duration"] < 60
    assert (span.attributes["earsight.request_id"], span.attributes["earsight.model"]) == ("7", "en")
    assert [event.name for event in span.events] == ["first_audio"]


def test_an_exception_of_a_handler_is_logged_with_the_id(log: io.StringIO) -> None:
    async def run() -> None:
        async with serving() as served:
            await served.ask("OneOne", b"raise", metadata=(("x-request-id", "8"),))

    asyncio.run(run())
    (access,) = lines(log, "asr_server.access")
    (failure,) = [line for line in map(json.loads, log.getvalue().splitlines()) if "exception" in line]
    assert failure["exception"].endswith("RuntimeError: a bug")
    assert failure["request_id"] == access["request_id"] == "8" and access["code"] == "UNKNOWN"


def test_health_and_reflection_work_and_a_probe_is_quiet(log: io.StringIO) -> None:
    async def run() -> None:
        async with serving() as served:
            stub = health_pb2_grpc.HealthStub(served.channel)
            answer = health_pb2.HealthCheckResponse
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == answer.SERVING
            watch = stub.Watch(health_pb2.HealthCheckRequest())  # a handler that writes to the context
            assert (await watch.read()).status == answer.SERVING
            watch.cancel()
            ask = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            replies = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo(ask)
            (reply,) = [reply async for reply in replies]
            assert [each.name for each in reply.list_services_response.service] == [health.SERVICE_NAME]
            await served.idle()
            assert served.counted == {
                ("Check", "OK"): 1,
                ("Watch", "CANCELLED"): 1,
                ("unknown", "OK"): 1,  # reflection: it was left out of the names
            }

    asyncio.run(run())
    methods = sorted(line["method"].rpartition("/")[2] for line in lines(log, "asr_server.access"))
    assert methods == ["ServerReflectionInfo", "Watch"]


def test_method_names() -> None:
    speech = pb.DESCRIPTOR.services_by_name["Speech"]
    assert {"/a.A/Recognize", "/b.B/Recognize", "/b.B/StreamingRecognize"} < method_names(
        {"a.A": speech, "b.B": speech}
    )
