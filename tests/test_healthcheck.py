"""The container's health check against real gRPC health servers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from asr_server.healthcheck import main


@pytest.fixture
def state() -> Iterator[tuple[str, health.HealthServicer]]:
    """The address of a server that knows only health, and the servicer to set its state with."""
    servicer = health.HealthServicer()
    with ThreadPoolExecutor(1) as executor:
        server = grpc.server(executor)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}", servicer
        server.stop(None).wait()


def test_serving_and_not_serving(state: tuple[str, health.HealthServicer], capsys: pytest.CaptureFixture[str]) -> None:
    address, servicer = state
    assert main([address]) == 0
    assert capsys.readouterr().err == ""
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert main([address]) == 1
    assert capsys.readouterr().err == f"error: {address} is NOT_SERVING\n"


def test_one_service_of_several(state: tuple[str, health.HealthServicer], capsys: pytest.CaptureFixture[str]) -> None:
    address, servicer = state
    servicer.set("one", health_pb2.HealthCheckResponse.SERVING)
    assert main([address, "--service", "one"]) == 0
    assert main([address, "--service", "two"]) == 1
    assert capsys.readouterr().err == f"error: {address} is NOT_FOUND\n"


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["127.0.0.1:1", "--timeout", "0.5"]) == 1
    assert capsys.readouterr().err == "error: 127.0.0.1:1 is UNAVAILABLE\n"
