"""LongRunningRecognize and its operations over a real port, with our stubs and with Google's client."""

from __future__ import annotations

import asyncio
import json
import queue
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import soundfile
from google.longrunning import operations_pb2 as google  # type: ignore[import-untyped]
from google.protobuf.duration_pb2 import Duration

from asr_server import operations_service, service
from asr_server.auth_interceptor import AuthInterceptor
from asr_server.catalogue import Catalogue
from asr_server.gate import Gate
from asr_server.long_running import PIECE_BYTES, LongRunning, percent
from asr_server.messages import Call, read_config
from asr_server.metrics import Metrics
from asr_server.model import DeepSpeech
from asr_server.operations import Operation, OperationLimits
from asr_server.operations_service import OperationsService
from asr_server.options import Limits
from asr_server.recognizer import Engine
from asr_server.recordings import Recording
from asr_server.service import SpeechService
from asr_server.session import Line, Session
from asr_server.token_file import TokenFile
from asr_server.wire import operations_pb2, operations_pb2_grpc, speech_pb2_grpc
from asr_server.wire import speech_pb2 as pb
from tests.speech_fixtures import RATE, pcm, speak, toy_engine
from tests.test_secure_server import make_token

Config = pb.RecognitionConfig
Status = grpc.StatusCode

LIMITS = Limits(content_bytes=1 << 20, ahead_seconds=2.0)
OPERATIONS = OperationLimits(content_bytes=2 << 20, seconds=1800, running=1, waiting=1)
PAUSE = np.zeros(round(1.2 * RATE), np.float32)
TWO = np.concatenate([speak("go north"), PAUSE, speak("it's"), PAUSE])
MINUTES = 20


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Of tones, with steps of a second in place of a tenth: recordings of minutes pass in seconds."""
    bundle = toy_engine(tmp_path_factory.mktemp("models")).bundle
    model = DeepSpeech(replace(bundle.model.config, chunk=50))
    model.load_state_dict(bundle.model.state_dict())
    return Engine(replace(bundle, model=model.eval()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audio folder with a short recording and one of many minutes."""
    folder = tmp_path_factory.mktemp("audio")
    soundfile.write(folder / "two.wav", TWO, RATE, subtype="PCM_16")
    phrase = np.concatenate([speak("go north", pause=1.0), speak("it's", pause=1.0)])
    with soundfile.SoundFile(folder / "long.wav", "w", RATE, 1, "PCM_16") as file:
        for _ in range(round(MINUTES * 60 / (len(phrase) / RATE))):
            file.write(phrase)
    return folder


@dataclass(frozen=True)
class Served:
    """Stubs of one client, and the runner behind them."""

    address: str
    runner: LongRunning
    speech: speech_pb2_grpc.SpeechStub
    operations: operations_pb2_grpc.OperationsStub

    def begin(self, content: bytes = b"", uri: str = "", **fields: Any) -> pb.Operation:
        """LINEAR16 at 16 kHz in English, unless said otherwise."""
        audio = pb.RecognitionAudio(uri=uri) if uri else pb.RecognitionAudio(content=content)
        request = pb.LongRunningRecognizeRequest(config=config(**fields), audio=audio)
        return self.speech.LongRunningRecognize(request, timeout=60)

    def get(self, name: str) -> pb.Operation:
        return self.operations.GetOperation(operations_pb2.GetOperationRequest(name=name), timeout=60)

    def wait(self, name: str, seconds: float | None = None) -> pb.Operation:
        timeout = None if seconds is None else Duration(nanos=round(seconds * 1e9))
        return self.operations.WaitOperation(operations_pb2.WaitOperationRequest(name=name, timeout=timeout))

    def cancel(self, name: str) -> None:
        self.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=name), timeout=60)

    def delete(self, name: str) -> None:
        self.operations.DeleteOperation(operations_pb2.DeleteOperationRequest(name=name), timeout=60)

    def list(self, **fields: Any) -> operations_pb2.ListOperationsResponse:
        return self.operations.ListOperations(operations_pb2.ListOperationsRequest(**fields), timeout=60)


def config(**fields: Any) -> Config:
    return Config(**{"encoding": Config.LINEAR16, "sample_rate_hertz": RATE, "language_code": "en-US", **fields})


@contextmanager
def serving(
    engine: Engine, folder: Path | None = None, tokens: Path | None = None, limits: OperationLimits = OPERATIONS
) -> Iterator[tuple[str, LongRunning]]:
    """The speech and operations services on a loopback port, in a thread with an event loop of its own."""
    answers: queue.Queue[tuple[str, LongRunning] | BaseException] = queue.Queue()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def run() -> None:
        catalogue, interceptors = Catalogue([engine]), []
        if tokens:
            interceptors.append(AuthInterceptor(TokenFile(tokens), [service.SERVICE_NAME]))
        server = grpc.aio.server(interceptors=interceptors)
        with ThreadPoolExecutor(1) as executor:
            line = Line(executor)
            gate = Gate(line, LIMITS, Metrics())
            runner = LongRunning(gate, limits, folder)
            service.add_to_server(SpeechService(catalogue, gate, runner), server)
            operations_service.add_to_server(OperationsService(runner), server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            answers.put((f"127.0.0.1:{port}", runner))
            await stop.wait()
            await server.stop(0.2)
            await runner.close()
            line.close()

    def main() -> None:
        try:
            loop.run_until_complete(run())
        except BaseException as error:
            answers.put(error)

    thread = threading.Thread(target=main)
    thread.start()
    try:
        answer = answers.get(timeout=60)
        if isinstance(answer, BaseException):
            raise answer
        yield answer
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@contextmanager
def calling(address: str, runner: LongRunning, token: str = "") -> Iterator[Served]:
    with grpc.insecure_channel(address) as channel:
        shown = grpc.intercept_channel(channel, _Bearer(token)) if token else channel
        speech, operations = speech_pb2_grpc.SpeechStub(shown), operations_pb2_grpc.OperationsStub(shown)
        yield Served(address, runner, speech, operations)


class _Bearer(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=[("authorization", f"Bearer {self._token}")]), request)


@pytest.fixture(scope="module")
def served(engine: Engine, folder: Path) -> Iterator[Served]:
    with serving(engine, folder) as (address, runner):
        with calling(address, runner) as client:
            yield client


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Recordings end only when this is set: after what can be read at once, the reader waits for it."""
    release, read = threading.Event(), Recording.read

    def waits(recording: Recording, size: int) -> bytes:
        piece = read(recording, size)
        if len(piece) < size:
            release.wait(60)
        return piece

    monkeypatch.setattr(Recording, "read", waits)
    yield release
    release.set()


def refusal(attempt: Callable[[], object]) -> tuple[Status, str]:
    with pytest.raises(grpc.RpcError) as caught:
        attempt()
    return caught.value.code(), caught.value.details() or ""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def response(operation: pb.Operation) -> pb.LongRunningRecognizeResponse:
    assert operation.done
    assert operation.WhichOneof("result") == "response", operation.error
    assert operation.response.type_url == ("type.googleapis.com/google.cloud.speech.v1.LongRunningRecognizeResponse")
    return pb.LongRunningRecognizeResponse.FromString(operation.response.value)


def metadata(operation: pb.Operation) -> pb.LongRunningRecognizeMetadata:
    assert operation.metadata.type_url == ("type.googleapis.com/google.cloud.speech.v1.LongRunningRecognizeMetadata")
    return pb.LongRunningRecognizeMetadata.FromString(operation.metadata.value)


def recognize(served: Served, content: bytes, **fields: Any) -> pb.RecognizeResponse:
    request = pb.RecognizeRequest(config=config(**fields), audio=pb.RecognitionAudio(content=content))
    return served.speech.Recognize(request, timeout=60)


# --- results ---


def assert_same(found: list[pb.SpeechRecognitionResult], expected: list[pb.SpeechRecognitionResult]) -> None:
    """But for confidences, which are the same to rounding: steps may have been shared in another way."""
    confidences: list[list[float]] = [[], []]
    for results, numbers in zip((found, expected), confidences, strict=True):
        for alternative in (alternative for result in results for alternative in result.alternatives):
            items: list[Any] = [alternative, *alternative.words]
            for item in items:
                numbers.append(item.confidence)
                item.ClearField("confidence")
    assert found == expected
    assert confidences[0] == pytest.approx(confidences[1], abs=1e-4)


def _place(result: pb.SpeechRecognitionResult) -> tuple[int, int]:
    """The channels may end at the same time."""
    return result.result_end_time.ToMilliseconds(), result.channel_tag


def test_same_results_as_at_once(served: Served) -> None:
    fields: dict[str, Any] = {"enable_word_time_offsets": True, "enable_word_confidence": True, "max_alternatives": 3}
    operation = served.begin(pcm(TWO), **fields)
    assert not operation.done
    assert metadata(operation).progress_percent == 0
    ended = served.wait(operation.name)
    whole = recognize(served, pcm(TWO), **fields)
    assert [result.alternatives[0].transcript for result in whole.results] == ["go north", " it's"]
    assert_same(list(response(ended).results), list(whole.results))
    assert response(ended).total_billed_time == whole.total_billed_time
    assert response(ended).request_id >= 0
    told = metadata(ended)
    assert (told.progress_percent, told.uri) == (100, "")
    assert 0 <= told.last_update_time.ToMilliseconds() - told.start_time.ToMilliseconds() < 60_000
    assert abs(told.start_time.ToSeconds() - time.time()) < 120
    assert served.get(operation.name) == ended


def test_each_channel(served: Served) -> None:
    """Sorted by their ends, though each channel is heard for itself."""
    first, second = np.concatenate([speak("left"), PAUSE, speak("it")]), np.concatenate([PAUSE, PAUSE, speak("kept")])
    size = max(len(first), len(second))
    stereo = np.stack([np.pad(each, (0, size - len(each))) for each in (first, second)], axis=1)
    fields: dict[str, Any] = {"audio_channel_count": 2, "enable_separate_recognition_per_channel": True}
    whole = recognize(served, pcm(stereo), **fields)
    assert {result.channel_tag for result in whole.results} == {1, 2}
    ended = served.wait(served.begin(pcm(stereo), **fields).name)
    found = list(response(ended).results)
    ends = [result.result_end_time.ToMilliseconds() for result in found]
    assert ends == sorted(ends)
    assert_same(*(sorted(each, key=_place) for each in (found, whole.results)))


def test_a_file_of_the_folder(served: Served) -> None:
    ended = served.wait(served.begin(uri="file:///two.wav", encoding=0, sample_rate_hertz=0).name)
    assert [result.alternatives[0].transcript for result in response(ended).results] == ["go north", " it's"]
    assert metadata(ended).uri == "file:///two.wav"


def test_recordings_are_let_go(served: Served) -> None:
    served.wait(served.begin(pcm(TWO)).name)
    until(lambda: served.runner.spool.used == 0)
    assert served.runner._jobs == {}
    assert served.runner._tasks == {}


# --- errors ---


@pytest.mark.parametrize(
    ("audio", "fields", "text"),
    [
        ({"content": pcm(TWO)}, {"model": "nobody"}, "model 'nobody' is not known"),
        ({"content": pcm(TWO)}, {"max_alternatives": 31}, "bad max_alternatives"),
        ({}, {}, "RecognitionAudio not set."),
        ({"content": bytes((2 << 20) + 2)}, {}, "Request payload size exceeds the limit: 2097152 bytes."),
        ({"uri": "gs://bucket/a.wav"}, {}, "uri 'gs://bucket/a.wav' is not supported: this server fetches nothing."),
        ({"uri": "https://example.org/a.wav"}, {}, "this server fetches nothing."),
        ({"uri": "file:///../a.wav"}, {}, "without '..'"),
        ({"uri": "file:///none.wav"}, {}, "no such file in the server's audio folder"),
    ],
)
def test_refused_at_once(served: Served, audio: dict[str, Any], fields: dict[str, Any], text: str) -> None:
    code, details = refusal(lambda: served.begin(**audio, **fields))
    assert code == Status.INVALID_ARGUMENT
    assert text in details


def test_output_is_refused(served: Served) -> None:
    request = pb.LongRunningRecognizeRequest(config=config(), audio=pb.RecognitionAudio(content=pcm(TWO)))
    request.output_config.gcs_uri = "gs://bucket/out.json"
    code, details = refusal(lambda: served.speech.LongRunningRecognize(request, timeout=60))
    assert (code, details[:13]) == (Status.INVALID_ARGUMENT, "output_config")


def test_without_a_folder(engine: Engine) -> None:
    with serving(engine) as (address, runner), calling(address, runner) as client:
        code, details = refusal(lambda: client.begin(uri="file:///two.wav"))
        assert (code, "has no audio folder" in details) == (Status.INVALID_ARGUMENT, True)


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (b"fLaC but not really, and then some more", {"encoding": Config.FLAC}),
        (b"\0", {}),
        (b"RIFF\x24\0\0\0WAVEfmt ", {"encoding": 0}),
    ],
)
def test_errors_are_those_of_recognize(served: Served, content: bytes, fields: dict[str, Any]) -> None:
    told = refusal(lambda: recognize(served, content, **fields))
    ended = served.wait(served.begin(content, **fields).name)
    assert ended.done
    assert (ended.error.code, ended.error.message) == (3, told[1])
    assert told[0] == Status.INVALID_ARGUMENT
    assert metadata(ended).progress_percent < 100


def test_too_long(engine: Engine) -> None:
    limits = replace(OPERATIONS, seconds=5)
    with serving(engine, limits=limits) as (address, runner), calling(address, runner) as client:
        ended = client.wait(client.begin(pcm(np.zeros(6 * RATE, np.float32))).name)
        told = "Input too long: it has more than 5 seconds of audio."
        assert (ended.error.code, ended.error.message) == (3, told)
        assert (
            response(client.wait(client.begin(pcm(np.zeros(5 * RATE, np.float32))).name)).total_billed_time.seconds == 5
        )


def test_a_fault_of_the_server(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(recording: Recording, size: int) -> bytes:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Recording, "read", fails)
    ended = served.wait(served.begin(pcm(TWO)).name)
    assert (ended.error.code, ended.error.message[:18]) == (13, "The server failed ")


# --- operations ---


def test_progress_and_waiting(served: Served, held: threading.Event) -> None:
    content = pcm(np.concatenate([speak("go north"), np.zeros(4 * RATE, np.float32)]))
    assert len(content) > PIECE_BYTES
    name = served.begin(content).name
    until(lambda: metadata(served.get(name)).progress_percent > 0)
    early = served.wait(name, 0.05)
    assert not early.done
    assert 0 < metadata(early).progress_percent < 100
    threading.Timer(0.05, held.set).start()
    assert response(served.wait(name)).results


def test_progress_is_of_what_was_recognised() -> None:
    assert percent(0, 1000, 0.0, 0.0) == 0
    assert percent(500, 1000, 5.0, 10.0) == 25  # half is read, half of that waits
    assert percent(1000, 1000, 10.0, 10.0) == 100
    assert percent(0, 0, 0.0, 0.0) == 0


def test_cancel_one_that_runs(served: Served, held: threading.Event) -> None:
    name = served.begin(pcm(TWO)).name
    until(lambda: served.runner.store.get("anonymous", name).running)
    served.cancel(name)
    ended = served.get(name)
    assert (ended.done, ended.error.code, ended.error.message) == (True, 1, "The operation was cancelled.")
    served.cancel(name)  # no effect
    assert served.wait(name) == ended
    held.set()
    until(lambda: served.runner.spool.used == 0)
    assert served.get(name) == ended


def test_cancel_stops_the_work(served: Served) -> None:
    """Nothing more of a long recording is read or recognised."""
    scheduler = served.runner._gate.line.scheduler
    name = served.begin(uri="file:///long.wav").name
    until(lambda: metadata(served.get(name)).progress_percent >= 1)
    assert metadata(served.get(name)).progress_percent < 50
    served.cancel(name)
    until(lambda: scheduler.waiting == 0 and not served.runner._jobs)
    assert metadata(served.get(name)).progress_percent < 60


def test_queue(served: Served, held: threading.Event) -> None:
    first, second = served.begin(pcm(TWO)).name, served.begin(pcm(TWO)).name
    code, details = refusal(lambda: served.begin(pcm(TWO)))
    assert (code, details[:31]) == (Status.RESOURCE_EXHAUSTED, "2 operations have not ended, an")
    assert [name for name, task in served.runner._tasks.items() if not task.done()] == [first]
    served.cancel(second)  # which has not begun
    third = served.begin(pcm(speak("go"))).name
    held.set()
    assert [result.alternatives[0].transcript for result in response(served.wait(third)).results] == ["go"]
    assert response(served.get(first)).results
    assert served.get(second).error.code == 1
    until(lambda: served.runner.spool.used == 0)


def test_delete(served: Served, held: threading.Event) -> None:
    name = served.begin(pcm(TWO)).name
    waiter: queue.Queue[tuple[Status, str]] = queue.Queue()
    thread = threading.Thread(target=lambda: waiter.put(refusal(lambda: served.wait(name))))
    thread.start()
    served.delete(name)
    thread.join()
    unknown = (Status.NOT_FOUND, f"Operation '{name}' is not known.")
    code, details = waiter.get()
    assert (code, details[: len(unknown[1])]) == unknown
    for attempt in (served.get, served.cancel, served.delete, served.wait):
        code, details = refusal(lambda attempt=attempt: attempt(name))  # type: ignore[misc]
        assert (code, details[: len(unknown[1])]) == unknown
    until(lambda: not served.runner._jobs)  # it has been stopped


def test_list(served: Served) -> None:
    for operation in served.list().operations:
        served.delete(operation.name)
    names = [served.wait(served.begin(pcm(speak(text))).name).name for text in ("a", "b", "c")]
    page = served.list(page_size=2)
    assert [operation.name for operation in page.operations] == [names[2], names[1]]
    last = served.list(page_size=2, page_token=page.next_page_token)
    assert ([operation.name for operation in last.operations], last.next_page_token) == ([names[0]], "")
    assert page.operations[0] == served.get(names[2])
    assert refusal(lambda: served.list(filter="done=true"))[0] == Status.INVALID_ARGUMENT
    assert refusal(lambda: served.list(page_size=-1))[0] == Status.INVALID_ARGUMENT
    assert refusal(lambda: served.list(page_token="?"))[0] == Status.INVALID_ARGUMENT
    assert refusal(lambda: served.wait(names[0], -1))[0] == Status.INVALID_ARGUMENT


def test_clients_and_their_quotas(engine: Engine, tmp_path: Path, held: threading.Event) -> None:
    """An operation is its client's alone, and so is its audio, also where it begins when another client's has ended."""
    tokens = tmp_path / "tokens.json"
    ann, bob = make_token(tokens, "ann"), make_token(tokens, "bob", "--audio-seconds-per-hour", "3")
    with serving(engine, tokens=tokens) as (address, runner):
        with calling(address, runner, ann) as of_ann, calling(address, runner, bob) as of_bob:
            name, waiting = of_ann.begin(pcm(TWO)).name, of_bob.begin(pcm(TWO)).name
            held.set()
            assert response(of_ann.wait(name)).results
            ended = of_bob.wait(waiting)
            assert ended.error.code == 8
            assert ended.error.message.startswith("Quota audio_seconds_per_hour of client 'bob'")
            of_bob.delete(waiting)
            for attempt in (of_bob.get, of_bob.cancel, of_bob.delete, of_bob.wait):
                assert refusal(lambda attempt=attempt: attempt(name))[0] == Status.NOT_FOUND  # type: ignore[misc]
            assert list(of_bob.list().operations) == []
            assert [operation.name for operation in of_ann.list().operations] == [name]


def test_a_server_that_stops(engine: Engine, held: threading.Event) -> None:
    """Whatever runs or waits ends with it, and no recording stays open."""
    with serving(engine) as (address, runner), calling(address, runner) as client:
        names = [client.begin(pcm(TWO)).name for _ in range(2)]
        until(lambda: bool(runner._tasks))
        threading.Timer(0.5, held.set).start()  # the reader's thread is not interrupted
    for name in names:
        failure = runner.store.get("anonymous", name).failure
        assert failure and (failure.code, failure.text) == (14, "The server is stopping.")
    assert runner.spool.used == 0


def test_a_caller_who_goes_early(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the recording is being written down: nobody has heard of the operation, so there is none."""
    entered, release, opened = threading.Event(), threading.Event(), LongRunning._open

    def slowly(runner: LongRunning, audio: pb.RecognitionAudio) -> Recording:
        recording = opened(runner, audio)
        entered.set()
        release.wait(60)
        return recording

    monkeypatch.setattr(LongRunning, "_open", slowly)
    with serving(engine) as (address, runner), calling(address, runner) as client:
        request = pb.LongRunningRecognizeRequest(config=config(), audio=pb.RecognitionAudio(content=pcm(TWO)))
        call = client.speech.LongRunningRecognize.future(request)
        assert entered.wait(60)
        assert runner.spool.used > 0
        call.cancel()
        time.sleep(0.1)  # for the server to see it; if it has not, the test proves less and passes
        release.set()
        until(lambda: runner.spool.used == 0)


# --- long recordings ---


class _Watching(Gate):
    """Keeps the sessions that it opened."""

    def __init__(self, line: Line) -> None:
        super().__init__(line, LIMITS, Metrics())
        self.sessions: list[Session] = []

    @contextmanager
    def session(self, call: Call, *, is_bulk: bool = False, max_seconds: float | None = None) -> Iterator[Session]:
        with super().session(call, is_bulk=is_bulk, max_seconds=max_seconds) as session:
            self.sessions.append(session)
            yield session


def test_memory_does_not_grow(engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 minutes, 38 MB, never more than seconds are held; what comes of them grows by its text."""
    ahead, outbox, read = [], [], Recording.read

    async def run() -> tuple[Operation, int]:
        with ThreadPoolExecutor(1) as executor:
            line = Line(executor)
            gate = _Watching(line)
            runner = LongRunning(gate, OPERATIONS, folder)

            def watched(recording: Recording, size: int) -> bytes:
                assert size == PIECE_BYTES
                (session,) = gate.sessions
                ahead.append(session.seconds - session.passed)
                outbox.append(len(session._outbox))
                if len(ahead) == 60:
                    tracemalloc.start(1)
                return read(recording, size)

            monkeypatch.setattr(Recording, "read", watched)
            call = read_config(config(), Catalogue([engine]))
            request = pb.LongRunningRecognizeRequest(audio=pb.RecognitionAudio(uri="file:///long.wav"))
            operation = await runner.begin(call, request)
            while not operation.done:
                operation = await runner.wait(operation.name, None)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            await runner.close()
            line.close()
            return operation, peak

    operation, peak = asyncio.run(run())
    results = pb.LongRunningRecognizeResponse.FromString(operation.response).results
    phrases = [result.alternatives[0].transcript.strip() for result in results]
    assert phrases == ["go north", "it's"] * (len(phrases) // 2)
    assert len(phrases) > 300
    assert len(ahead) > 550  # pieces
    chunk, piece = 1.0, PIECE_BYTES / 2 / RATE
    assert max(ahead) <= LIMITS.ahead_seconds + piece + chunk
    assert max(outbox) < 10
    assert peak < 2_000_000  # bytes that Python and numpy took from the 60th of 580 pieces on


# --- Google's side ---


def test_googles_client(served: Served, folder: Path) -> None:
    for operation in served.list().operations:
        served.delete(operation.name)
    script = Path(__file__).with_name("google_long_running_client.py")
    command = [sys.executable, str(script), served.address, str(folder / "two.wav"), "file:///long.wav"]
    answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300).stdout)
    finished = answer["finished"]
    assert finished["at_once"] == {"done": False, "type": "LongRunningRecognizeMetadata"}
    assert finished["transcripts"] == ["go north", " it's"]
    assert (finished["type"], finished["percent"], finished["done"]) == ("LongRunningRecognizeResponse", 100, True)
    assert finished["billed"] == np.ceil(len(TWO) / RATE)
    assert finished["seconds"] >= 0
    assert answer["settings"] == ["go northit's"]  # no pause is long enough to end an utterance
    assert answer["failed"].startswith("InvalidArgument: sample_rate_hertz (8000) in RecognitionConfig must either")
    assert answer["refused"].startswith("InvalidArgument: uri 'gs://bucket/talk.wav' is not supported")
    cancelled = answer["cancelled"]
    assert cancelled["cancelled"] is True
    assert cancelled["uri"] == "file:///long.wav"
    assert cancelled["error"].startswith("Cancelled: ") or cancelled["error"].endswith("The operation was cancelled.")
    assert 1 <= cancelled["percent"] < 100
    listed = answer["listed"]
    assert listed["codes"] == [1, 3, 0, 0]
    assert (listed["same"], listed["left"]) == (True, 0)
    assert listed["deleted"].startswith("NotFound: Operation '")


def test_numbers_are_googles() -> None:
    for name, theirs in google.DESCRIPTOR.message_types_by_name.items():
        ours = {**operations_pb2.DESCRIPTOR.message_types_by_name, **pb.DESCRIPTOR.message_types_by_name}.get(name)
        if ours is None:
            assert name == "OperationInfo"  # an annotation for programmers
            continue
        described = [
            {(each.name, each.number, each.type, each.is_repeated) for each in of.fields} for of in (ours, theirs)
        ]
        assert described[0] == described[1], name
    names = {method.name for method in operations_service.DESCRIPTOR.methods}
    assert names == {method.name for method in google.DESCRIPTOR.services_by_name["Operations"].methods}
