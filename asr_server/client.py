"""A client: audio from files or a microphone to a running server, and what it hears back.

Audio goes out as LINEAR16 at 16 kHz, mono, in messages of a tenth of a second; files are decoded here, so every format
that libsndfile reads can be transcribed, and pacing is exact.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import soundfile
import soxr

from asr_server.connection import Connection
from asr_server.pcm import Samples
from asr_server.transcripts import Segment, Word
from asr_server.wire import speech_pb2 as pb
from asr_server.wire import speech_pb2_grpc

RATE = 16000  # Hz
CHUNK_SECONDS = 0.1

Heard = str | Segment  # an interim text, or a finished utterance


class ClientError(Exception):
    """One line that tells the user what went wrong."""


@dataclass(frozen=True)
class ClientOptions:
    """Which server, and what to ask it for."""

    connection: Connection = field(default_factory=Connection)
    model: str = ""
    language_code: str = "en-US"
    interim_results: bool = True


# --- audio ---


def file_chunks(path: Path) -> Iterator[Samples]:
    """The first channel of a file at RATE, in pieces of CHUNK_SECONDS."""
    try:
        with soundfile.SoundFile(path) as file:
            size = round(CHUNK_SECONDS * file.samplerate)
            channel = (
                np.ascontiguousarray(block[:, 0]) for block in file.blocks(size, dtype="float32", always_2d=True)
            )
            yield from channel if file.samplerate == RATE else _resampled(channel, file.samplerate)
    except soundfile.SoundFileError as error:
        raise ClientError(f"{path}: cannot be read as audio: {error}") from None


def until(stop: threading.Event, chunks: Iterable[Samples]) -> Iterator[Samples]:
    """The chunks up to the moment when `stop` is set."""
    return itertools.takewhile(lambda _: not stop.is_set(), chunks)


def paced(chunks: Iterable[Samples]) -> Iterator[Samples]:
    """The same chunks, each no earlier than a microphone would have had it."""
    start, seconds = time.monotonic(), 0.0
    for chunk in chunks:
        seconds += len(chunk) / RATE
        time.sleep(max(0.0, start + seconds - time.monotonic()))
        yield chunk


def microphone_chunks(stop: threading.Event, device: str | None = None) -> Iterator[Samples]:
    """What the microphone hears until `stop` is set; ClientError when there is none."""
    try:
        import sounddevice  # needs the PortAudio library, which servers rarely have
    except (ImportError, OSError) as error:
        raise ClientError(
            f"the microphone needs the Python package sounddevice and the PortAudio library ({error}). "
            "On Debian: apt install libportaudio2"
        ) from None
    heard: queue.SimpleQueue[Samples] = queue.SimpleQueue()
    wanted: str | int | None = int(device) if device is not None and device.isdigit() else device
    try:
        with sounddevice.InputStream(
            samplerate=RATE,
            channels=1,
            dtype="float32",
            blocksize=round(CHUNK_SECONDS * RATE),
            device=wanted,
            callback=lambda block, _frames, _time, _status: heard.put(block[:, 0].copy()),
        ):
            while not stop.is_set():
                yield heard.get()
            for _ in range(heard.qsize()):  # heard before the end, and not yet sent
                yield heard.get()
    except (sounddevice.PortAudioError, ValueError) as error:
        devices = ", ".join(d["name"] for d in sounddevice.query_devices() if d["max_input_channels"]) or "none"
        raise ClientError(f"no microphone could be opened ({error}). Input devices: {devices}") from None


def _resampled(chunks: Iterable[Samples], rate: int) -> Iterator[Samples]:
    resampler = soxr.ResampleStream(rate, RATE, 1, dtype="float32")
    for chunk in chunks:
        yield resampler.resample_chunk(chunk)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


# --- recognition ---


def hear_remotely(chunks: Iterable[Samples], options: ClientOptions) -> Iterator[Heard]:
    """Stream to the server; ClientError when it cannot be reached or refuses."""
    failures: list[ClientError] = []

    def requests() -> Iterator[pb.StreamingRecognizeRequest]:
        """Runs in a thread of gRPC, which would log an error of ours and report another one."""
        try:
            yield from _requests(chunks, options)
        except ClientError as error:
            failures.append(error)

    with options.connection.channel() as channel:
        stub = speech_pb2_grpc.SpeechStub(channel)
        try:
            for response in stub.StreamingRecognize(requests(), metadata=options.connection.metadata):
                for result in response.results:
                    yield _segment(result) if result.is_final else result.alternatives[0].transcript.strip()
        except grpc.RpcError as error:
            failures.append(ClientError(_explain(error, options.connection.server)))
    if failures:
        raise failures[0]


def _requests(chunks: Iterable[Samples], options: ClientOptions) -> Iterator[pb.StreamingRecognizeRequest]:
    config = pb.RecognitionConfig(
        encoding=pb.RecognitionConfig.LINEAR16,
        sample_rate_hertz=RATE,
        language_code=options.language_code,
        model=options.model,
        enable_word_time_offsets=True,
        enable_word_confidence=True,
    )
    yield pb.StreamingRecognizeRequest(
        streaming_config=pb.StreamingRecognitionConfig(config=config, interim_results=options.interim_results)
    )
    for chunk in chunks:
        yield pb.StreamingRecognizeRequest(audio_content=linear16(chunk))


def linear16(samples: Samples) -> bytes:
    """What goes over the wire."""
    return np.clip(np.round(samples * 32768), -32768, 32767).astype("<i2").tobytes()


def _segment(result: pb.StreamingRecognitionResult) -> Segment:
    best = result.alternatives[0]
    words = tuple(
        Word(w.word, w.start_time.ToTimedelta().total_seconds(), w.end_time.ToTimedelta().total_seconds(), w.confidence)
        for w in best.words
    )
    end = result.result_end_time.ToTimedelta().total_seconds()
    return spanning(best.transcript.strip(), words, best.confidence, end)


def spanning(text: str, words: tuple[Word, ...], confidence: float, end: float) -> Segment:
    """A segment that lasts from its first word to its last."""
    return Segment(text, words[0].start if words else end, words[-1].end if words else end, confidence, words)


def _explain(error: grpc.RpcError, server: str) -> str:
    assert isinstance(error, grpc.Call)
    code, details = error.code(), error.details()
    if code == grpc.StatusCode.UNAVAILABLE:
        return f"no server answers at {server} ({details}). Start one with: asr-server serve"
    return f"{code.name}: {details}"
