"""What can go wrong around a server that runs: signals, callers who stall or vanish, full disks, clocks that jump.

Nothing here asserts how long something takes. Where a test waits, it waits for what has to happen.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest

from asr_server.cli import main
from asr_server.wire import speech_pb2 as pb
from asr_server.wire import speech_pb2_grpc
from tests.fault_clients import (
    LONG,
    ROOT,
    Caller,
    audio,
    eventually,
    is_closed,
    opening,
    raise_descriptor_limit,
    recording,
    silent_call,
    started,
    status,
    texts,
    transcript,
)
from tests.speech_fixtures import RATE, pcm, save_toy_bundle, speak

Code = grpc.StatusCode
LIVE = 50
IDLE = 1000
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65535)]  # as HTTP/2 begins


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_toy_bundle(folder)
    return folder


# --- signals ---


def test_sigterm_loses_no_final(models: Path) -> None:
    with started(models, "--drain-seconds", str(LONG)) as server, grpc.insecure_channel(server.address) as channel:
        callers = [Caller(channel, text) for text in texts(LIVE)]
        for caller in callers:
            caller.heard()
        server.process.send_signal(signal.SIGTERM)
        with grpc.insecure_channel(server.address) as other:
            eventually(lambda: not _serves(other))
            assert status(other, recording(speak("go"))) is Code.UNAVAILABLE
        assert server.process.poll() is None
        with ThreadPoolExecutor(LIVE) as pool:
            assert list(pool.map(Caller.finish, callers)) == texts(LIVE)
        server.process.wait(LONG)
        assert server.process.returncode == 0


def _serves(channel: grpc.Channel) -> bool:
    try:
        return transcript(channel, "go") == "go"
    except grpc.RpcError as error:
        if error.code() in (Code.UNAVAILABLE, Code.CANCELLED):  # the latter in the very moment of stopping
            return False
        raise


def test_drain_has_an_end(models: Path) -> None:
    with started(models, "--drain-seconds", "0.5") as server, grpc.insecure_channel(server.address) as channel:
        caller = Caller(channel, "go north")
        caller.heard()
        server.process.send_signal(signal.SIGTERM)
        assert caller.failure() in (Code.UNAVAILABLE, Code.CANCELLED)
        server.process.wait(LONG)
        assert server.process.returncode == 0


def test_sigkill_and_retry(models: Path) -> None:
    with started(models) as server, grpc.insecure_channel(server.address) as channel:
        callers = [Caller(channel, "go north") for _ in range(10)]
        for caller in callers:
            caller.heard()
        server.process.kill()
        assert [caller.failure() for caller in callers] == [Code.UNAVAILABLE] * 10
        server.process.wait(LONG)
        with started(models, "--port", server.address.rpartition(":")[2]) as again:
            assert again.address == server.address
            grpc.channel_ready_future(channel).result(LONG)
            assert transcript(channel) == "go north"
            # Google's client sends the rest of the iterator that it has begun, without the configuration.
            assert status(channel, iter([audio(pcm(speak("north")))])) is Code.INVALID_ARGUMENT


# --- callers ---


def test_idle_connections(models: Path) -> None:
    """As many as that, on a server that may have only 256 descriptors until it asks for more."""
    raise_descriptor_limit(3 * IDLE)

    def few_descriptors() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    with started(models, limit=few_descriptors) as server, grpc.insecure_channel(server.address) as channel:
        assert transcript(channel) == "go north"
        descriptors, memory = server.descriptors, server.resident
        host, _, port = server.address.rpartition(":")
        raw = [socket.create_connection((host, int(port))) for _ in range(IDLE // 2)]
        asyncio.run(_idle_channels(server.address, channel))
        assert server.resident - memory < 100  # MiB, a tenth for each connection
        for connection in raw:
            connection.close()
        eventually(lambda: server.descriptors <= descriptors)
        assert transcript(channel) == "go north"


async def _idle_channels(address: str, channel: grpc.Channel) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    idle = [grpc.aio.insecure_channel(address, options=options) for _ in range(IDLE // 2)]
    await asyncio.wait_for(asyncio.gather(*(each.channel_ready() for each in idle)), LONG)
    assert await asyncio.to_thread(transcript, channel) == "go north"
    await asyncio.gather(*(each.close() for each in idle))


class Talker:
    """Sends an hour as fast as it is taken, and never reads a result."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.sent = 0  # pieces of a second
        self._data = pcm(np.tile(speak("abcde", pause=0.1), 2)[:RATE])
        self.call = speech_pb2_grpc.SpeechStub(channel).StreamingRecognize(self._requests(), timeout=10 * LONG)

    def _requests(self) -> Iterator[pb.StreamingRecognizeRequest]:
        yield opening()
        for self.sent in range(1, 3600):
            yield audio(self._data)


def test_a_caller_who_never_reads_is_held_back_and_then_let_go(models: Path) -> None:
    """What waits is bounded, the place is free again in the end, and who reads at last finds out why."""
    with (
        started(models, "--max-calls", "1", "--stall-seconds", "2") as server,
        grpc.insecure_channel(server.address, SMALL_WINDOW) as channel,
        grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as other,
    ):
        assert transcript(other) == "go north"
        memory = server.resident
        talker = Talker(channel)
        eventually(lambda: talker.sent > 0)
        eventually(lambda: _has_place(other))
        assert 0 < talker.sent < 3599
        assert server.resident - memory < 64  # MiB; the hour has 110
        with pytest.raises(grpc.RpcError, match="Results have not been read for 2 seconds") as error:
            list(talker.call)
        assert error.value.code() is Code.ABORTED


def _has_place(channel: grpc.Channel) -> bool:
    try:
        return transcript(channel) == "go north"
    except grpc.RpcError as error:
        if error.code() is Code.RESOURCE_EXHAUSTED:
            return False
        raise


def test_a_caller_who_sends_nothing(models: Path) -> None:
    with started(models, "--idle-seconds", "1") as server, grpc.insecure_channel(server.address) as channel:
        caller = Caller(channel, "go north")
        caller.heard()
        assert caller.failure() is Code.OUT_OF_RANGE


def test_half_open_connections(models: Path) -> None:
    """Callers who are gone without a word: their connections are closed and their places free."""
    with (
        started(models, "--max-calls", "2", "--keepalive-seconds", "15") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        # A ping goes out at once, to measure the connection; 5 seconds later it has not been answered.
        gone = [silent_call(server.address, opening().SerializeToString()) for _ in range(2)]
        # Both have come in, unless this machine is so slow that they are closed before it could be seen.
        eventually(lambda: not _has_place(channel) or all(map(is_closed, gone)))
        eventually(lambda: all(map(is_closed, gone)))
        eventually(lambda: _has_place(channel))
        for connection in gone:
            connection.close()


# --- the machine ---


def test_clock_jumps(models: Path, tmp_path: Path) -> None:
    """The wall clock of the whole process goes a week ahead and two weeks back while a stream is live."""
    library, jump = tmp_path / "clock.so", tmp_path / "offset"
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c", "-o", library, ROOT / "tests" / "clock.c"], check=True)
    jump.write_text("0")
    environment = {**os.environ, "LD_PRELOAD": str(library), "CLOCK_OFFSET": str(jump)}
    log = tmp_path / "log"
    with (
        log.open("w") as errors,
        started(
            models, "--idle-seconds", "20", "--log-format", "json", environment=environment, errors=errors
        ) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        for seconds in (7 * 86400, -7 * 86400):
            caller = Caller(channel, "go north")
            caller.heard()
            jump.write_text(str(seconds))
            assert transcript(channel, "bye") == "bye"  # a call that has its deadline after the jump
            assert caller.finish() == "go north"  # and one that had it before
        assert server.process.poll() is None
    days = {line[15:25] for line in log.read_text().splitlines() if line.startswith('{"timestamp"')}
    assert len(days) >= 2  # the server has seen the jumps


def test_full_disk(models: Path) -> None:
    """From one moment on not a byte can be written, to any file or to the log."""
    with (
        open("/dev/full", "w") as full,
        started(models, errors=full) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, 0))
        for _ in range(3):
            assert transcript(channel) == "go north"
        assert status(channel, iter([audio(b"")])) is Code.INVALID_ARGUMENT
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(LONG)
        assert server.process.returncode == 0


@pytest.mark.parametrize("damage", ["emptied", "cut", "overwritten"])
def test_corrupt_bundles_are_refused_in_one_line(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start; while a server runs, see test_reloading.py."""
    weights = save_toy_bundle(tmp_path, "broken") / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(
        {"emptied": b"", "cut": whole[: len(whole) // 2], "overwritten": b"\xff" * 8 + whole[8:]}[damage]
    )
    assert main(["serve", "--port", "0", "--models", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "model.safetensors" in printed.err
