"""What goes wrong inside a step, and work that nobody wants any more: whom it concerns, and nobody else.

The server runs in this process, and the engine's steps wait where a test needs them to, so nothing depends on timing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from asr_server.batching import LiveStream
from asr_server.options import Limits, ServerOptions
from asr_server.recognizer import Engine, Step, Stream
from asr_server.wire import speech_pb2 as pb
from asr_server.wire import speech_pb2_grpc
from tests.fault_clients import LONG, Caller, config, eventually, recording, status, texts, transcript
from tests.speech_fixtures import pcm, save_toy_bundle, serving, speak

Code = grpc.StatusCode
POISON = 7  # alternatives asked for by the stream in whose step something goes wrong


class Steps:
    """The engine's steps: the streams that took part in each; they wait while the door is shut."""

    def __init__(self) -> None:
        self.taken: list[list[Stream]] = []
        self.begun = threading.Event()
        self.door = threading.Event()
        self.door.set()

    def of(self, stream: Stream) -> int:
        return sum(stream in step for step in self.taken)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_toy_bundle(folder)
    return folder


@pytest.fixture
def channel(models: Path) -> Iterator[grpc.Channel]:
    options = ServerOptions(port=0, models=(models,), limits=Limits(lag_seconds=0.2), drain_seconds=0.5)
    with serving(options) as server, grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def steps(channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    """Of the server, which is ready: its own first steps are over."""
    found, advance = Steps(), Engine.advance

    def waiting(engine: Engine, streams: Sequence[Stream]) -> Step:
        found.taken.append(list(streams))
        found.begun.set()
        assert found.door.wait(LONG)
        return advance(engine, streams)

    monkeypatch.setattr(Engine, "advance", waiting)
    yield found
    found.door.set()


def is_poisoned(stream: Stream) -> bool:
    return stream._options.max_alternatives == POISON


def fail_in_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone's product fails where the stream takes part."""
    network = Engine._network

    def failing(engine: Engine, streams: Sequence[Stream], blocks: Sequence[object]) -> object:
        if any(map(is_poisoned, streams)):
            raise RuntimeError("injected into the network")
        return network(engine, streams, blocks)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "_network", failing)


def fail_in_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    hear = Stream.hear

    def failing(stream: Stream, log_probs: object) -> int:
        if is_poisoned(stream):
            raise RuntimeError("injected into the endpointer")
        return hear(stream, log_probs)  # type: ignore[arg-type]

    monkeypatch.setattr(Stream, "hear", failing)


def fail_in_results(monkeypatch: pytest.MonkeyPatch) -> None:
    conclude = Stream.conclude

    def failing(stream: Stream) -> object:
        if is_poisoned(stream):
            raise RuntimeError("injected into the results")
        return conclude(stream)

    monkeypatch.setattr(Stream, "conclude", failing)


@pytest.mark.parametrize("fail", [fail_in_network, fail_in_endpoint, fail_in_results])
def test_a_fault_ends_one_call(
    fail: object, channel: grpc.Channel, steps: Steps, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """INTERNAL for the stream in whose step it happens; ten others of the same steps finish with their own texts."""
    assert callable(fail)
    fail(monkeypatch)
    steps.door.clear()
    callers = [Caller(channel, text) for text in texts(10)]
    poisoned = Caller(channel, "go north", max_alternatives=POISON)
    steps.begun.wait(LONG)  # the others gather meanwhile, so that the next step has them all
    steps.door.set()
    assert poisoned.failure() is Code.INTERNAL
    for caller in callers:
        caller.heard()
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(Caller.finish, callers)) == texts(10)
    assert any(len(step) > 1 and any(map(is_poisoned, step)) for step in steps.taken)
    assert "injected" in caplog.text  # and the log says why
    assert transcript(channel) == "go north"


@pytest.mark.parametrize("end", ["cancel", "deadline"])
@pytest.mark.parametrize("method", ["streaming", "unary"])
def test_work_stops_within_a_step(
    end: str, method: str, channel: grpc.Channel, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step in hand ends, and none follows: a minute of audio was there for hundreds."""
    closed, close = threading.Event(), LiveStream.close

    def noted(live: LiveStream) -> None:
        close(live)
        closed.set()

    monkeypatch.setattr(LiveStream, "close", noted)
    minute = np.tile(speak("go north"), 30)
    stub = speech_pb2_grpc.SpeechStub(channel)
    steps.door.clear()
    timeout = 2.0 if end == "deadline" else LONG
    call: Any
    if method == "streaming":
        call = stub.StreamingRecognize(recording(minute), timeout=timeout)
    else:
        request = pb.RecognizeRequest(config=config(), audio=pb.RecognitionAudio(content=pcm(minute)))
        call = stub.Recognize.future(request, timeout=timeout)
    assert steps.begun.wait(LONG)
    (stream,) = steps.taken[0]
    if end == "cancel":
        call.cancel()
    assert closed.wait(LONG)
    assert call.code() is (Code.CANCELLED if end == "cancel" else Code.DEADLINE_EXCEEDED)
    steps.door.set()
    eventually(lambda: _heard(channel))  # the engine is still working, for those who want it to
    assert steps.of(stream) == 1


def _heard(channel: grpc.Channel) -> bool:
    """False while the engine is late."""
    try:
        return transcript(channel) == "go north"
    except grpc.RpcError as error:
        if error.code() is Code.RESOURCE_EXHAUSTED:
            return False
        raise


def test_a_late_engine_takes_no_new_calls(channel: grpc.Channel, steps: Steps) -> None:
    """Refused while the step is still in hand, so at once; who is in finishes."""
    steps.door.clear()
    first = Caller(channel, "go north")
    assert steps.begun.wait(LONG)
    second = Caller(channel, "it's here")  # too late for the first's step
    eventually(lambda: status(channel, iter([])) is Code.RESOURCE_EXHAUSTED)  # the second has become late
    assert len(steps.taken) == 1
    steps.door.set()
    assert (first.finish(), second.finish()) == ("go north", "it's here")
    assert status(channel, iter([])) is Code.INVALID_ARGUMENT
