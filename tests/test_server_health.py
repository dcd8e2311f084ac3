"""What health says of services without models, how a watch ends, and options that a server refuses."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from asr_server.options import Limits, ServerOptions, Telemetry
from tests.speech_fixtures import save_toy_bundle, serving
from tests.test_vision_bundle import save
from tests.vision_fixtures import TINY
from vision_zoo.nasnet import NASNet

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def asked(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60).status)


@pytest.mark.parametrize("kind", ["speech", "vision"])
def test_services_without_a_model_do_not_serve(tmp_path: Path, kind: str) -> None:
    if kind == "speech":
        save_toy_bundle(tmp_path)
    else:
        save(tmp_path / "birds", NASNet(TINY), name="birds")
    with serving(ServerOptions(port=0, models=(tmp_path,))) as server:
        assert asked(server.address, "") == SERVING
        assert asked(server.address, "earsight.speech.v1.Speech") == (SERVING if kind == "speech" else NOT_SERVING)
        assert asked(server.address, "earsight.vision.v1.Vision") == (SERVING if kind == "vision" else NOT_SERVING)


def test_a_watch_does_not_hold_a_server_that_stops(tmp_path: Path) -> None:
    save(tmp_path / "birds", NASNet(TINY), name="birds")
    seen: list[int] = []
    ended = threading.Event()
    with serving(ServerOptions(port=0, models=(tmp_path,), drain_seconds=60)) as server:
        channel = grpc.insecure_channel(server.address)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        seen.append(next(watch).status)

        def read() -> None:
            with pytest.raises(grpc.RpcError, match="The server is stopping"):
                seen.extend(each.status for each in watch)
            ended.set()

        threading.Thread(target=read, daemon=True).start()
        begin = time.monotonic()
    assert time.monotonic() - begin < 30
    assert ended.wait(60)
    assert seen == [SERVING, NOT_SERVING]
    channel.close()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"telemetry": Telemetry(metrics_port=70000)}, "metrics port 70000 must be between 0 and 65535"),
        ({"message_bytes": 3_000_000_000}, "message_bytes 3000000000 must be above 0 and below 2147483648"),
        ({"keepalive_seconds": float("inf")}, "keepalive_seconds inf must be above 0 and at most 604800"),
        ({"limits": Limits(lag_seconds=float("nan"))}, "lag_seconds nan must be above 0"),
        ({"limits": Limits(stream_seconds=0)}, "stream_seconds 0 must be above 0"),
        ({"reload_seconds": -1}, "reload_seconds -1 must be between 0 and 604800"),
    ],
)
def test_options_that_will_not_do(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ServerOptions(**wrong)
