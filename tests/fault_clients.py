"""For the tests of faults: servers as processes of their own, callers who stop in the middle of a word."""

from __future__ import annotations

import re
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import grpc

from asr_server.pcm import Samples
from asr_server.wire import speech_pb2 as pb
from asr_server.wire import speech_pb2_grpc
from tests.speech_fixtures import RATE, pcm, speak

ROOT = Path(__file__).resolve().parent.parent
LONG = 120.0  # seconds that a test waits for what has to happen; nothing is asserted about how long it took
METHOD = "/earsight.speech.v1.Speech/StreamingRecognize"


@dataclass(frozen=True)
class Server:
    """`asr-server serve` that is ready."""

    process: subprocess.Popen[str]
    address: str

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @property
    def resident(self) -> float:
        """MiB"""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1024


@contextmanager
def started(
    models: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    errors: IO[str] | None = None,
    limit: Callable[[], None] | None = None,
) -> Iterator[Server]:
    """limit: called in the new process before it becomes the server."""
    words = ["serve", "--models", str(models), *arguments]
    process = subprocess.Popen(
        [sys.executable, "-m", "asr_server", *words, *(() if "--port" in words else ("--port", "0"))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=environment,
        preexec_fn=limit,
    )
    try:
        yield Server(process, _address(process))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    for line in process.stdout:
        if found := re.match(r"listening on (\S+)", line):
            return found[1]
    raise AssertionError(f"the server ended with status {process.wait()}")


def eventually(holds: Callable[[], bool]) -> None:
    """Waits for what has to become true."""
    end = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def config(**fields: object) -> pb.RecognitionConfig:
    usual = {"encoding": pb.RecognitionConfig.LINEAR16, "sample_rate_hertz": RATE, "language_code": "en-US"}
    return pb.RecognitionConfig(**{**usual, **fields})  # type: ignore[arg-type]


def opening(**fields: object) -> pb.StreamingRecognizeRequest:
    """With the fields of the configuration of the recognition."""
    streaming = pb.StreamingRecognitionConfig(config=config(**fields), interim_results=True)
    return pb.StreamingRecognizeRequest(streaming_config=streaming)


def audio(data: bytes) -> pb.StreamingRecognizeRequest:
    return pb.StreamingRecognizeRequest(audio_content=data)


def recording(samples: Samples, **fields: object) -> Iterator[pb.StreamingRecognizeRequest]:
    """All messages of a call, in pieces of 100 ms."""
    yield opening(**fields)
    data = pcm(samples)
    for start in range(0, len(data), 3200):
        yield audio(data[start : start + 3200])


def finals(responses: Iterator[pb.StreamingRecognizeResponse]) -> str:
    """The text of a call to its end."""
    results = [result for response in responses for result in response.results if result.is_final]
    return "".join(result.alternatives[0].transcript for result in results)


def transcript(channel: grpc.Channel, text: str = "go north") -> str:
    """What is heard of a text, which should be the text."""
    return finals(speech_pb2_grpc.SpeechStub(channel).StreamingRecognize(recording(speak(text)), timeout=LONG))


def status(channel: grpc.Channel, requests: Iterator[pb.StreamingRecognizeRequest]) -> grpc.StatusCode:
    """With which a call ends that must fail."""
    try:
        list(speech_pb2_grpc.SpeechStub(channel).StreamingRecognize(requests, timeout=LONG))
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    raise AssertionError("the call has succeeded")


class Caller:
    """Says the first half of a text, and the other one when told to."""

    def __init__(self, channel: grpc.Channel, text: str, **fields: object) -> None:
        self._more = threading.Event()
        self._data, self._fields = pcm(speak(text)), fields
        self.call = speech_pb2_grpc.SpeechStub(channel).StreamingRecognize(self._requests(), timeout=2 * LONG)

    def _requests(self) -> Iterator[pb.StreamingRecognizeRequest]:
        half = len(self._data) // 4 * 2
        yield opening(**self._fields)
        yield audio(self._data[:half])
        self._more.wait(LONG)
        yield audio(self._data[half:])

    def heard(self) -> None:
        """Waits for the first result: the call is in the middle of its text."""
        assert not next(self.call).results[0].is_final

    def go_on(self) -> None:
        self._more.set()

    def finish(self) -> str:
        self.go_on()
        return finals(self.call)

    def failure(self) -> grpc.StatusCode:
        """The status of a call that fails by itself."""
        try:
            list(self.call)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        finally:
            self.go_on()
        raise AssertionError("the call has succeeded")


def raise_descriptor_limit(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))


def silent_call(address: str, message: bytes) -> socket.socket:
    """A connection of HTTP/2 by hand, with one call and its first message, that will never say anything again."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    names = [(":method", "POST"), (":scheme", "http"), (":path", METHOD), (":authority", address)]
    names += [("content-type", "application/grpc"), ("te", "trailers")]
    headers = b"".join(b"\0" + _text(name) + _text(value) for name, value in names)  # RFC 7541, 6.2.2: not indexed
    data = struct.pack(">BI", 0, len(message)) + message
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    connection.sendall(preface + _frame(4, 0, 0, b"") + _frame(1, 4, 1, headers) + _frame(0, 0, 1, data))
    return connection


def _text(value: str) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed it, after all that it has sent is read."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def texts(count: int) -> Sequence[str]:
    """Different ones, so that no final can be taken for another's."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [f"{letters[i % 26]}{letters[i // 26]} go" for i in range(count)]
