"""TLS on real connections, and what is said about files that will not do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from asr_server import token_file, tokens
from asr_server.auth_interceptor import AuthInterceptor
from asr_server.certificates import CertificateFiles, read
from asr_server.quotas import CURRENT
from asr_server.security_options import SecurityOptions
from asr_server.token_file import TokenFile
from asr_server.tokens import ClientEntry, HashedToken, TokenTable
from asr_server.transport import bind
from tests.certificates import Authority, Pair, key_pem


async def who(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    return CURRENT.get().name.encode()


@asynccontextmanager
async def serving(security: SecurityOptions, host: str = "127.0.0.1") -> AsyncIterator[str]:
    tokens = TokenFile(security.tokens) if security.tokens else None
    server = grpc.aio.server(interceptors=[AuthInterceptor(tokens, {"toy.Toy"})])
    methods: dict[str, Any] = {"Who": grpc.unary_unary_rpc_method_handler(who)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("toy.Toy", methods),))
    address = bind(server, host, 0, security)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


def call_of(channel: grpc.aio.Channel) -> Any:  # the stubs cannot say that messages are bytes
    return channel.unary_unary("/toy.Toy/Who")


async def ask(address: str, root: bytes, pair: Pair | None = None, token: str | None = None) -> str:
    """The name that the server has for us, or the status's name. Each time over a connection of its own."""
    credentials = grpc.ssl_channel_credentials(root, *((pair.key, pair.certificate) if pair else ()))
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        try:
            return str((await call_of(channel)(b"", metadata=metadata, timeout=10)).decode())
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)


def test_tls_and_tokens(tmp_path: Path) -> None:
    async def test() -> None:
        authority = Authority("toy")
        path = tmp_path / "tokens.json"
        token_file.save(path, TokenTable([ClientEntry("ann", (HashedToken(tokens.hash_token("a")),))]))
        async with serving(
            SecurityOptions(*authority.issue("server").write(tmp_path, "server"), tokens=path)
        ) as address:
            assert await ask(address, authority.certificate, token="a") == "ann"
            assert await ask(address, authority.certificate) == "UNAUTHENTICATED"
            assert await ask(address, Authority("other").certificate, token="a") == "UNAVAILABLE"
            async with grpc.aio.insecure_channel(address) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await call_of(channel)(b"", timeout=10)
                assert error.value.code() == grpc.StatusCode.UNAVAILABLE

    asyncio.run(test())


def test_mutual_tls(tmp_path: Path) -> None:
    async def test() -> None:
        ours, theirs = Authority("ours"), Authority("theirs")
        ca = tmp_path / "ca.pem"
        ca.write_bytes(theirs.certificate)
        security = SecurityOptions(*ours.issue("server").write(tmp_path, "server"), ca)
        async with serving(security) as address:
            assert await ask(address, ours.certificate, theirs.issue("captions")) == "captions"
            assert await ask(address, ours.certificate, theirs.issue(None, "box.example")) == "box.example"
            assert await ask(address, ours.certificate, ours.issue("captions")) == "UNAVAILABLE"
            assert await ask(address, ours.certificate) == "UNAVAILABLE"

    asyncio.run(test())


def test_certificates_change_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        first, second = Authority("first"), Authority("second")
        paths = first.issue("server").write(tmp_path, "server")
        async with serving(SecurityOptions(*paths)) as address:
            assert await ask(address, first.certificate) == "anonymous"
            assert await ask(address, second.certificate) == "UNAVAILABLE"
            renewed = second.issue("server")
            paths[0].write_bytes(renewed.certificate)  # the key has not come yet
            assert await ask(address, first.certificate) == "anonymous"
            assert f"key {paths[1]} does not belong to certificate {paths[0]}; the certificate" in caplog.text
            paths[1].write_bytes(renewed.key)
            assert await ask(address, second.certificate) == "anonymous"
            assert await ask(address, first.certificate) == "UNAVAILABLE"

    asyncio.run(test())


def test_client_authorities_change_without_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        ours, old, new = Authority("ours"), Authority("old"), Authority("new")
        ca = tmp_path / "ca.pem"
        ca.write_bytes(old.certificate)
        security = SecurityOptions(*ours.issue("server").write(tmp_path, "server"), ca)
        async with serving(security) as address:
            assert await ask(address, ours.certificate, old.issue("x")) == "x"
            assert await ask(address, ours.certificate, new.issue("y")) == "UNAVAILABLE"
            ca.write_bytes(new.certificate)
            assert await ask(address, ours.certificate, new.issue("y")) == "y"
            assert await ask(address, ours.certificate, old.issue("x")) == "UNAVAILABLE"

    asyncio.run(test())


def test_plaintext_stays_on_this_machine(tmp_path: Path) -> None:
    async def test() -> None:
        server = grpc.aio.server()
        with pytest.raises(ValueError, match=r"host '0\.0\.0\.0' can be reached"):
            bind(server, "0.0.0.0", 0, SecurityOptions())
        assert bind(server, "0.0.0.0", 0, SecurityOptions(allow_insecure=True)).startswith("0.0.0.0:")
        taken = bind(server, "127.0.0.1", 0, SecurityOptions()).rpartition(":")[2]
        other = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        with pytest.raises(ValueError, match=rf"127\.0\.0\.1:{taken} cannot be listened on"):
            bind(other, "127.0.0.1", int(taken), SecurityOptions())
        async with serving(SecurityOptions(), f"unix:{tmp_path}/socket") as address:
            assert address == f"unix:{tmp_path}/socket"
            async with grpc.aio.insecure_channel(address) as channel:
                assert await call_of(channel)(b"", timeout=10) == b"anonymous"

    asyncio.run(test())


def test_files_that_will_not_do_are_named(tmp_path: Path) -> None:
    pair, other = Authority("a").issue("server"), Authority("a").issue("server")
    certificate, key = pair.write(tmp_path, "server")
    odd = tmp_path / "odd"
    with pytest.raises(ValueError, match=r"certificate .*missing cannot be read: No such file"):
        read(tmp_path / "missing", key, None)
    with pytest.raises(ValueError, match=r"key .*missing cannot be read: No such file"):
        read(certificate, tmp_path / "missing", None)
    odd.write_bytes(b"\x30\x82\x01\x00")
    with pytest.raises(ValueError, match=r"certificate .*odd is not PEM"):
        read(odd, key, None)
    with pytest.raises(ValueError, match=r"key .*server\.crt is not PEM.*PRIVATE KEY"):
        read(certificate, certificate, None)
    with pytest.raises(ValueError, match=r"client CA .*odd is not PEM"):
        read(certificate, key, odd)
    odd.write_bytes(other.key)
    with pytest.raises(ValueError, match=r"key .*odd does not belong to certificate .*server\.crt"):
        read(certificate, odd, None)
    odd.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"))
    with pytest.raises(ValueError, match=r"key .*odd has a passphrase"):
        read(certificate, odd, None)
    odd.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ValueError, match=r"certificate .*odd and key .*server\.key cannot be used"):
        read(odd, key, None)
    with pytest.raises(ValueError, match=r"client CA .*odd holds no certificate that can be read"):
        read(certificate, key, odd)


def test_changes_are_seen_once(tmp_path: Path) -> None:
    pair, other = Authority("a").issue("server"), Authority("b").issue("server")
    certificate, key = pair.write(tmp_path, "server")
    files = CertificateFiles(certificate, key)
    assert files.changed() is None
    other.write(tmp_path, "server")
    identity = files.changed()
    assert identity and (identity.certificate, identity.key) == (other.certificate, other.key)
    assert other.key.decode() not in repr(identity)
    assert files.changed() is None
    certificate.unlink()
    assert files.changed() is None
    assert files.identity is identity
