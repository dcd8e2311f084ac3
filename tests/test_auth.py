"""Tokens and quotas over real channels: a server whose handlers say who calls."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from asr_server import token_file, tokens
from asr_server.auth_interceptor import NO_TOKEN, WRONG_TOKEN, AuthInterceptor, service_of
from asr_server.quotas import CURRENT, Quotas
from asr_server.security_options import SecurityOptions
from asr_server.token_file import TokenFile
from asr_server.tokens import ClientEntry, HashedToken, TokenTable
from asr_server.transport import bind

SPEECH, VISION = "toy.Speech", "toy.Vision"
CODES = grpc.StatusCode
Context = grpc.aio.ServicerContext[Any, Any]


class Clock:
    """The token file's, the accounts' too."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Toy:
    """Every kind of call. Messages are bytes; answers name the caller."""

    def __init__(self) -> None:
        self.decoded = 0  # messages that reached us
        self.ended = 0  # streams whose handler came to its end
        self.go = asyncio.Event()

    def decode(self, data: bytes) -> bytes:
        self.decoded += 1
        return data

    async def unary(self, request: bytes, context: Context) -> bytes:
        return CURRENT.get().name.encode()

    async def listing(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            for _ in range(3):
                yield CURRENT.get().name.encode()
            if request == b"flood":
                while True:
                    yield bytes(100_000)
            if request == b"wait":
                await self.go.wait()
        finally:
            self.ended += 1

    async def upload(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """Charges a second of audio for each byte."""
        context.set_trailing_metadata((("request", "17"),))
        async for request in requests:
            CURRENT.get().quota.charge_audio(len(request))
        return CURRENT.get().name.encode()

    async def chat(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """In grpc.aio's other style: writes instead of yielding."""
        async for request in requests:
            if request == b"fail":
                raise KeyError("a broken handler")
            await context.write(CURRENT.get().name.encode() + b" " + request)

    def handlers(self, service: str) -> grpc.GenericRpcHandler:
        makers: dict[str, tuple[Any, Any]] = {
            "Unary": (grpc.unary_unary_rpc_method_handler, self.unary),
            "List": (grpc.unary_stream_rpc_method_handler, self.listing),
            "Upload": (grpc.stream_unary_rpc_method_handler, self.upload),
            "Chat": (grpc.stream_stream_rpc_method_handler, self.chat),
        }
        return grpc.method_handlers_generic_handler(
            service, {name: make(method, request_deserializer=self.decode) for name, (make, method) in makers.items()}
        )


@dataclass
class Served:
    toy: Toy
    clock: Clock
    path: Path
    address: str
    channel: Any  # grpc.aio.Channel, whose stubs cannot say that messages are bytes

    def write(self, *clients: ClientEntry) -> None:
        token_file.save(self.path, TokenTable(clients))
        self.clock.now += 2

    def unary(self, token: str | None = None, service: str = SPEECH) -> Any:
        return self.channel.unary_unary(f"/{service}/Unary")(b"x", metadata=bearer(token))

    def listing(self, token: str | None, request: bytes = b"x") -> Any:
        return self.channel.unary_stream(f"/{SPEECH}/List")(request, metadata=bearer(token))

    def chat(self, token: str | None) -> Any:
        return self.channel.stream_stream(f"/{SPEECH}/Chat")(metadata=bearer(token))

    def upload(self, token: str | None, *requests: bytes) -> Any:
        return self.channel.stream_unary(f"/{SPEECH}/Upload")(iter(requests), metadata=bearer(token))


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)


def client(name: str, *secrets: str, **more: Any) -> ClientEntry:
    return ClientEntry(name, tuple(HashedToken(tokens.hash_token(secret)) for secret in secrets), **more)


@asynccontextmanager
async def serving(folder: Path, *clients: ClientEntry, with_tokens: bool = True) -> AsyncIterator[Served]:
    clock, path, toy = Clock(), folder / "tokens.json", Toy()
    token_file.save(path, TokenTable(clients))
    auth = AuthInterceptor(TokenFile(path, clock) if with_tokens else None, {SPEECH})
    server = grpc.aio.server(interceptors=[auth])
    server.add_generic_rpc_handlers((toy.handlers(SPEECH), toy.handlers(VISION)))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    reflection.enable_server_reflection((SPEECH, reflection.SERVICE_NAME), server)
    address = bind(server, "127.0.0.1", 0, SecurityOptions())
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Served(toy, clock, path, address, channel)
    finally:
        await server.stop(None)


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asyncio.wait_for(call, 10)
    return error.value.code(), error.value.details() or ""


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_every_kind_of_call_knows_its_client(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, client("ann", "a"), client("bob", "b")) as served:
            for token, name in (("a", b"ann"), ("b", b"bob")):
                assert await served.unary(token) == name
                assert [answer async for answer in served.listing(token)] == [name] * 3
                assert await served.upload(token, b"xx") == name
            # Two calls on one connection, message by message: their contexts do not mix.
            ann, bob = served.chat("a"), served.chat("b")
            for word in (b"1", b"2"):
                await ann.write(word)
                await bob.write(word)
                assert (await ann.read(), await bob.read()) == (b"ann " + word, b"bob " + word)
            for call in (ann, bob):
                await call.done_writing()
                assert await call.code() == CODES.OK
            assert CURRENT.get().name == "anonymous"

    run(test())


def test_strangers_are_told_what_to_send(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, client("ann", "a")) as served:
            call = served.channel.unary_unary(f"/{SPEECH}/Unary")
            wrong_forms = [(), ("Basic a",), ("a",), ("Bearer",), ("Bearer ",), ("Bearer a", "Bearer a")]
            for values in wrong_forms:
                metadata = tuple(("authorization", value) for value in values)
                assert await refusal(call(b"x", metadata=metadata)) == (CODES.UNAUTHENTICATED, NO_TOKEN)
            assert await refusal(served.unary("A")) == (CODES.UNAUTHENTICATED, WRONG_TOKEN)
            assert await refusal(served.unary("x" * 4000)) == (CODES.UNAUTHENTICATED, WRONG_TOKEN)
            assert await call(b"x", metadata=(("authorization", "bearer  a"),)) == b"ann"

    run(test())


def test_every_kind_of_call_is_refused_before_its_body(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, client("ann", "a")) as served:
            assert await refusal(served.unary("x")) == (CODES.UNAUTHENTICATED, WRONG_TOKEN)
            assert await refusal(served.listing("x").read()) == (CODES.UNAUTHENTICATED, WRONG_TOKEN)
            assert await refusal(served.upload("x", b"1", b"2")) == (CODES.UNAUTHENTICATED, WRONG_TOKEN)
            silent = served.chat("x")  # has sent nothing and never will
            assert await refusal(silent.read()) == (CODES.UNAUTHENTICATED, WRONG_TOKEN)
            unknown = served.channel.unary_unary("/toy.Secret/Method")
            assert await refusal(unknown(b"")) == (CODES.UNAUTHENTICATED, NO_TOKEN)
            assert (await refusal(unknown(b"", metadata=bearer("a"))))[0] == CODES.UNIMPLEMENTED
            assert served.toy.decoded == 0

    run(test())


def test_services_of_a_client(tmp_path: Path) -> None:
    async def test() -> None:
        clients = client("ann", "a", services=(VISION, "toy.Other")), client("bob", "b", services=())
        async with serving(tmp_path, *clients) as served:
            assert await served.unary("a", VISION) == b"ann"
            assert await refusal(served.unary("a", SPEECH)) == (
                CODES.PERMISSION_DENIED,
                "Client 'ann' may not call service 'toy.Speech'. It may call: toy.Other, toy.Vision.",
            )
            assert (await refusal(served.unary("b", VISION)))[1].endswith("It may call: none.")

    run(test())


def test_health_is_open_and_reflection_is_not(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, client("ann", "a")) as served:
            probe = health_pb2_grpc.HealthStub(served.channel)
            answer = await probe.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            ask = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo
            request = reflection_pb2.ServerReflectionRequest(list_services="*")
            assert await refusal(ask(iter([request])).read()) == (CODES.UNAUTHENTICATED, NO_TOKEN)
            call = ask(iter([request]), metadata=bearer("a"))
            found = [service.name for service in (await call.read()).list_services_response.service]
            assert SPEECH in found
            assert (await refusal(served.unary("", "grpc.health.v1.Healthy")))[0] == CODES.UNAUTHENTICATED

    run(test())


def test_without_a_token_file_everybody_is_anonymous(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, with_tokens=False) as served:
            assert await served.unary() == b"anonymous"
            assert await served.unary("whatever") == b"anonymous"
            assert await served.upload(None, bytes(10_000)) == b"anonymous"

    run(test())


def test_tokens_change_without_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, client("ann", "old")) as served:
            live = served.chat("old")
            await live.write(b"1")
            assert await live.read() == b"ann 1"
            served.write(client("ann", "old", "new"))
            assert await served.unary("new") == await served.unary("old") == b"ann"
            served.write(client("ann", "new"))
            assert await refusal(served.unary("old")) == (CODES.UNAUTHENTICATED, WRONG_TOKEN)
            assert await served.unary("new") == b"ann"
            await live.write(b"2")  # a call that began with the old token goes on
            assert await live.read() == b"ann 2"
            served.path.write_text("half a file")
            served.clock.now += 2
            assert await served.unary("new") == b"ann"

    run(test())


def test_streams(tmp_path: Path) -> None:
    """Two may run, the third may not, on another connection neither; when one ends, one more may."""

    async def test() -> None:
        async with serving(tmp_path, client("ann", "a", quotas=Quotas(streams=2)), client("bob", "b")) as served:
            first, second = served.chat("a"), served.chat("a")
            for call in (first, second):
                await call.write(b"x")
                assert await call.read() == b"ann x"
            expected = (
                CODES.RESOURCE_EXHAUSTED,
                "Quota streams of client 'ann': 2 calls are in progress and 2 may be. "
                "Try again when one of them has ended.",
            )
            assert await refusal(served.chat("a").read()) == expected
            assert await refusal(served.unary("a")) == expected
            options = (("grpc.use_local_subchannel_pool", 1),)
            async with grpc.aio.insecure_channel(served.address, options) as channel:
                another: Any = channel.unary_unary(f"/{SPEECH}/Unary")
                assert await refusal(another(b"x", metadata=bearer("a"))) == expected
            assert await served.unary("a", VISION) == b"ann"  # no speech, so no stream
            assert await served.unary("b") == b"bob"
            await first.done_writing()
            assert await first.code() == CODES.OK
            assert await served.unary("a") == b"ann"
            served.write(client("ann", "a", quotas=Quotas(streams=1)))
            assert (await refusal(served.unary("a")))[0] == CODES.RESOURCE_EXHAUSTED
            second.cancel()

    run(test())


@pytest.mark.parametrize("way", ["cancelled waiting", "cancelled writing", "failed", "deadline"])
def test_a_stream_is_given_back_however_it_ends(tmp_path: Path, way: str) -> None:
    async def test() -> None:
        async with serving(tmp_path, client("ann", "a", quotas=Quotas(streams=1))) as served:
            gc.disable()  # nothing may depend on the collector
            if way.startswith("cancelled"):
                call = served.listing("a", b"wait" if way.endswith("waiting") else b"flood")
                assert await call.read() == b"ann"
                await asyncio.sleep(0.05)  # for a flood to fill the connection
                assert (await refusal(served.unary("a")))[0] == CODES.RESOURCE_EXHAUSTED
                call.cancel()
                await until(lambda: served.toy.ended == 1)
            elif way == "failed":
                chat = served.chat("a")
                await chat.write(b"fail")
                assert (await refusal(chat.read()))[0] == CODES.UNKNOWN
            else:
                upload = served.channel.stream_unary(f"/{SPEECH}/Upload")(metadata=bearer("a"), timeout=0.1)
                assert (await refusal(upload))[0] == CODES.DEADLINE_EXCEEDED

            async def free() -> bool:
                try:
                    return bool(await served.unary("a") == b"ann")
                except grpc.aio.AioRpcError:
                    return False

            async with asyncio.timeout(10):
                while not await free():
                    await asyncio.sleep(0.005)

    try:
        run(test())
    finally:
        gc.enable()


def test_requests(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, client("ann", "a", quotas=Quotas(requests_per_minute=2))) as served:
            await served.unary("a")
            await served.unary("a", VISION)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await served.unary("a")
            assert error.value.code() == CODES.RESOURCE_EXHAUSTED
            assert error.value.details() == (
                "Quota requests_per_minute of client 'ann': all of 2 is used. Try again in 30 seconds."
            )
            trailing = dict(error.value.trailing_metadata())
            assert trailing["retry-after"] == "30"
            served.clock.now += 30
            assert await served.unary("a") == b"ann"

    run(test())


def test_audio(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, client("ann", "a", quotas=Quotas(audio_seconds_per_hour=60))) as served:
            assert await served.upload("a", bytes(20), bytes(20)) == b"ann"
            call = served.upload("a", bytes(20), bytes(5))
            assert await refusal(call) == (
                CODES.RESOURCE_EXHAUSTED,
                "Quota audio_seconds_per_hour of client 'ann': all of 60 is used. Try again in 300 seconds.",
            )
            trailing = dict(await call.trailing_metadata())
            assert trailing == {"request": "17", "retry-after": "300", "grpc-retry-pushback-ms": "300000"}
            served.clock.now += 300
            assert await served.upload("a", bytes(5)) == b"ann"

    run(test())


def test_service_of() -> None:
    assert service_of("/a.b.C/M") == "a.b.C"
    assert [service_of(odd) for odd in ("", "/", "x", "//x", "/grpc.health.v1.Health/x/y")] == [
        "",
        "",
        "",
        "",
        "grpc.health.v1.Health/x",
    ]
