"""All streams of a load in one process, which costs as little as it can: it shares the machine with the server.

python -m benchmarks.load_generator --server 127.0.0.1:50051 --recordings DIR --model NAME

DIR holds LINEAR16 recordings, *.raw. A line of JSON on standard input is a level, {"streams", "warm_up", "seconds",
"begin"} with `begin` on the monotonic clock, which processes of one machine share; or {"alone": true}: every recording
once, one after the other and as fast as the server takes it. The reply is one line with the calls.

Messages are made once and sent as bytes, responses are read after the level. asyncio's API costs about 0.2 of a core at
150 streams here; the API with threads a third more.
"""

import argparse
import asyncio
import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio

from asr_server.wire import speech_pb2 as pb
from benchmarks.calls import Call, Response
from benchmarks.schedule import RATE, Pace, Turn, chunk_ends, cut, seconds_of

METHOD = "/{}/StreamingRecognize".format(pb.DESCRIPTOR.services_by_name["Speech"].full_name)
CHANNELS = 4  # connections that the streams share
PATIENCE = 10.0  # seconds after the end of audio; a call that takes longer ends with DEADLINE_EXCEEDED

Method: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"


@dataclass(frozen=True)
class Messages:
    """One recording, ready to be sent."""

    duration: float
    chunks: tuple[bytes, ...]


@dataclass
class _Heard:
    """A call in progress."""

    late: list[float] = field(default_factory=list)
    received: list[tuple[float, bytes]] = field(default_factory=list)


def messages(audio: bytes) -> Messages:
    requests = (pb.StreamingRecognizeRequest(audio_content=chunk) for chunk in cut(audio))
    return Messages(seconds_of(audio), tuple(request.SerializeToString() for request in requests))


def opening(model: str) -> bytes:
    """The first message of every call."""
    config = pb.RecognitionConfig(
        encoding=pb.RecognitionConfig.LINEAR16, sample_rate_hertz=RATE, language_code="en-US", model=model
    )
    streaming = pb.StreamingRecognitionConfig(config=config, interim_results=True)
    return pb.StreamingRecognizeRequest(streaming_config=streaming).SerializeToString()


class Generator:
    """The callers of one server."""

    def __init__(self, methods: Sequence[Method], recordings: Sequence[Messages], first: bytes) -> None:
        self._methods = methods
        self._recordings = recordings
        self._first = first
        self._begin = 0.0

    async def level(self, pace: Pace, begin: float) -> list[Call]:
        """Every call of a level, in the order in which they ended."""
        self._begin = begin
        streams = (self._stream(number, pace) for number in range(pace.streams))
        return [call for calls in await asyncio.gather(*streams) for call in calls]

    async def alone(self) -> list[Call]:
        """Every recording once. Their times mean nothing."""
        self._begin = time.monotonic()
        return [await self._call(self._methods[0], Turn(i, 0.0), False) for i in range(len(self._recordings))]

    async def _stream(self, number: int, pace: Pace) -> list[Call]:
        method, calls = self._methods[number % len(self._methods)], []
        for turn in pace.turns(number, [each.duration for each in self._recordings]):
            await self._until(turn.start)
            calls.append(asyncio.create_task(self._call(method, turn, True)))
        return list(await asyncio.gather(*calls))

    async def _call(self, method: Method, turn: Turn, paced: bool) -> Call:
        recording, heard = self._recordings[turn.recording], _Heard()
        call = method(timeout=(recording.duration if paced else 60.0) + PATIENCE)
        reading = asyncio.create_task(self._read(call, heard))
        try:
            await call.write(self._first)
            for end, chunk in zip(chunk_ends(recording.duration), recording.chunks, strict=True):
                if paced:
                    await self._until(turn.start + end)
                    heard.late.append(self._now() - turn.start - end)
                if reading.done():
                    break
                await call.write(chunk)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.InternalError):
            # The server has ended the call; reading finds its status. A write that meets the end can turn it into
            # INTERNAL, "Internal error from Core" (grpc/grpc#36066).
            pass
        code, details = await reading
        times = (turn.recording, turn.start, recording.duration, self._now())
        return Call(*times, code, details, tuple(heard.late), responses(heard.received))

    async def _read(self, call: Any, heard: _Heard) -> tuple[str, str]:
        """Note what comes and when; returns the status and its details."""
        try:
            while (data := await call.read()) is not grpc.aio.EOF:
                heard.received.append((self._now(), data))
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        return (await call.code()).name, await call.details() or ""

    def _now(self) -> float:
        return time.monotonic() - self._begin

    async def _until(self, due: float) -> None:
        if (wait := due - self._now()) > 0:
            await asyncio.sleep(wait)


def responses(received: Sequence[tuple[float, bytes]]) -> tuple[Response, ...]:
    """Those with results: a final one before interims, as the contract has it."""
    found = []
    for moment, data in received:
        results = pb.StreamingRecognizeResponse.FromString(data).results
        if results:
            end = max(result.result_end_time.ToNanoseconds() for result in results) / 1e9
            text = results[0].alternatives[0].transcript if results[0].alternatives else ""
            found.append(Response(moment, end, results[0].is_final, text))
    return tuple(found)


async def answer(job: dict[str, Any], server: str, recordings: Sequence[Messages], first: bytes) -> list[Call]:
    """One line of standard input."""
    # Without the option channels to one address share a connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(server, options=options) for _ in range(CHANNELS)]
    try:
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        generator = Generator([channel.stream_stream(METHOD) for channel in channels], recordings, first)
        if job.get("alone"):
            return await generator.alone()
        return await generator.level(Pace(job["streams"], job["warm_up"], job["seconds"]), job["begin"])
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


def call_of(fields: dict[str, Any]) -> Call:
    """A call from its JSON."""
    given = tuple(Response(**each) for each in fields["responses"])
    return replace(Call(**{**fields, "late": tuple(fields["late"])}), responses=given)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_generator")
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--recordings", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", required=True, metavar="NAME")
    args = parser.parse_args(arguments)
    recordings = [messages(path.read_bytes()) for path in sorted(args.recordings.glob("*.raw"))]
    gc.freeze()  # what is here stays; a collection in the middle of a level would only make it late
    gc.disable()
    for line in sys.stdin:
        calls = asyncio.run(answer(json.loads(line), args.server, recordings, opening(args.model)))
        print(json.dumps([asdict(call) for call in calls]), flush=True)
        gc.collect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
