"""One call between the event loop and the engine: bounds that hold it back, ends, errors, and what runs where."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
import pytest
import soundfile

from asr_server import session as session_module
from asr_server.audio import AudioDecoder, AudioFormat
from asr_server.messages import Call
from asr_server.options import BatchOptions
from asr_server.pcm import ChannelSamples, Samples
from asr_server.quotas import QuotaError
from asr_server.recognizer import Activity, Engine, Event, Result, Step, StreamOptions
from asr_server.session import Heard, Line, Session
from asr_server.stream import Stream
from tests.speech_fixtures import RATE, pcm, speak, toy_engine

T = TypeVar("T")
PAUSE = np.zeros(round(1.5 * RATE), np.float32)
TWO = np.concatenate([speak("go north"), PAUSE, speak("it's here"), PAUSE])
LINEAR16 = AudioFormat("LINEAR16", RATE)


class TooLongError(Exception):
    """Of these tests."""


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Its own for each test, because some of them break it."""
    return toy_engine(tmp_path_factory.mktemp("models"))


@asynccontextmanager
async def lined(options: BatchOptions | None = None) -> AsyncIterator[Line]:
    with ThreadPoolExecutor(1, "codecs") as executor:
        line = Line(executor, options)
        try:
            yield line
        finally:
            await asyncio.to_thread(line.close)


def opened(line: Line, call: Call, ahead: float = 10.0, longest: float = 600.0, **more: Any) -> Session:
    return Session(line, call, TooLongError, max_seconds=longest, ahead_seconds=ahead, **more)


def run(work: Coroutine[Any, Any, T]) -> T:
    """What hangs fails."""
    return asyncio.run(asyncio.wait_for(work, 120))


async def send(session: Session, data: bytes, piece: int | None = None) -> None:
    """All of the audio; like the services' readers, an error becomes the session's."""
    try:
        for start in range(0, len(data), piece or len(data)):
            await session.feed(data[start : start + (piece or len(data))])
        await session.finish()
    except Exception as error:
        session.fail(error)


async def hear(session: Session, data: bytes, piece: int | None = None) -> list[Heard]:
    reader = asyncio.create_task(send(session, data, piece))
    try:
        return [heard async for heard in session.events()]
    finally:
        await reader
        session.close()


async def stands_still(task: asyncio.Task[Any]) -> bool:
    """It has had time to go on and has not."""
    await asyncio.wait({task}, timeout=0.2)
    return not task.done()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def finals(heard: Sequence[Heard], channel: int = 0) -> list[str]:
    return [event.text for number, event in heard if number == channel and isinstance(event, Result) and event.is_final]


def of_channels(*rows: Samples) -> bytes:
    """LINEAR16 of rows that are filled with silence to one length."""
    longest = max(map(len, rows))
    return pcm(np.stack([np.pad(row, (0, longest - len(row))) for row in rows], axis=1))


class Gated:
    """`Engine.advance` that waits for a sign."""

    def __init__(self, engine: Engine) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self._advance = engine.advance
        object.__setattr__(engine, "advance", self)

    def __call__(self, streams: Sequence[Stream]) -> Step:
        self.begun.set()
        assert self.go_on.wait(60)
        return self._advance(streams)


# --- what is heard ---


@pytest.mark.parametrize("piece", [1234, 3200, None])
def test_events_are_the_engines(engine: Engine, piece: int | None) -> None:
    options = StreamOptions(activity_events=True)

    async def work() -> None:
        async with lined() as line:
            session = opened(line, Call(engine, LINEAR16, options))
            heard = await hear(session, pcm(TWO), piece)
            stream = engine.stream(options)
            samples = np.frombuffer(pcm(TWO), "<i2").astype(np.float32) / np.float32(32768)
            expected = [*stream.feed(samples), *stream.finish()]
            assert [shown(event) for _, event in heard] == [shown(event) for event in expected]
            assert session.latency is not None and session.latency >= 0
            assert session.done
            assert session.recognised == pytest.approx(len(TWO) / RATE, abs=2.0)

    run(work())


def shown(event: Event) -> tuple[object, ...]:
    return (event.text, round(event.end, 3)) if isinstance(event, Result) else (event.kind, round(event.time, 3))


def test_channels_are_heard_beside_each_other(engine: Engine) -> None:
    async def work() -> None:
        async with lined() as line:
            call = Call(engine, AudioFormat("LINEAR16", RATE, 3), StreamOptions(), separate_channels=True)
            heard = await hear(opened(line, call), of_channels(speak("left"), PAUSE, speak("right")), 4800)
            assert [finals(heard, channel) for channel in range(3)] == [["left"], [], ["right"]]

    run(work())


def test_single_utterances_end_channel_by_channel(engine: Engine) -> None:
    async def work() -> None:
        async with lined() as line:
            options = StreamOptions(single_utterance=True)
            call = Call(engine, AudioFormat("LINEAR16", RATE, 2), options, separate_channels=True)
            audio = of_channels(TWO, np.concatenate([PAUSE, PAUSE, speak("one"), PAUSE, speak("two")]))
            session = opened(line, call)
            heard = await hear(session, audio, 3200)
            ends = [number for number, event in heard if isinstance(event, Activity)]
            assert ends == [0, 1]
            assert [finals(heard, channel) for channel in range(2)] == [["go north"], ["one"]]

    run(work())


def test_the_caller_ends_the_utterance(engine: Engine) -> None:
    async def work() -> None:
        async with lined() as line:
            session = opened(line, Call(engine, LINEAR16, StreamOptions()))
            await session.feed(pcm(speak("go", pause=0.1)))
            session.end_utterance()
            assert finals(await session.settle()) == ["go"]
            await session.feed(pcm(speak("up", pause=0.1)))
            await session.finish()
            assert finals([heard async for heard in session.events()]) == ["up"]
            session.close()

    run(work())


# --- bounds ---


def test_feeding_waits_while_too_much_is_ahead(engine: Engine) -> None:
    gate = Gated(engine)

    async def work() -> None:
        async with lined() as line:
            session = opened(line, Call(engine, LINEAR16, StreamOptions()), ahead=2.0)
            reader = asyncio.create_task(send(session, pcm(np.concatenate([TWO, TWO, TWO]))))
            await asyncio.to_thread(gate.begun.wait, 60)
            assert await stands_still(reader)
            assert 2.0 <= session.seconds < 4.0
            gate.go_on.set()
            heard = [event async for event in session.events()]
            await reader
            session.close()
            assert finals(heard) == ["go north", "it's here"] * 3

    run(work())


def test_a_bound_below_a_chunk_holds_nobody_up(engine: Engine) -> None:
    """What waits for the rest of its chunk is not ahead."""

    async def work() -> None:
        async with lined() as line:
            session = opened(line, Call(engine, LINEAR16, StreamOptions()), ahead=0.001)
            assert finals(await hear(session, pcm(TWO), 160)) == ["go north", "it's here"]

    run(work())


def test_a_channel_that_is_done_holds_nobody_up(engine: Engine) -> None:
    """Half a minute of it waits for ever, because its only utterance is over; the other channel goes on."""
    rows = [np.concatenate([speak("a"), np.zeros(30 * RATE, np.float32), speak(text)]) for text in ("", "b")]
    rows[1][: len(speak("a"))] = 0
    rows[0] = np.pad(rows[0], (0, len(rows[1]) - len(rows[0])))
    file = io.BytesIO()
    soundfile.write(file, np.stack(rows, axis=1), RATE, format="FLAC", subtype="PCM_16")

    async def work() -> None:
        async with lined() as line:
            options = StreamOptions(single_utterance=True)
            call = Call(engine, AudioFormat("FLAC"), options, separate_channels=True)
            heard = await hear(opened(line, call, ahead=5.0), file.getvalue())
            assert [finals(heard, channel) for channel in range(2)] == [["a"], ["b"]]

    run(work())


def test_feeding_waits_for_a_caller_who_does_not_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_MAX_OUTBOX", 3)

    async def work() -> None:
        async with lined() as line:
            session = opened(line, Call(engine, LINEAR16, StreamOptions(activity_events=True)), ahead=1.0)
            reader = asyncio.create_task(send(session, pcm(np.concatenate([TWO] * 5))))
            await until(lambda: len(session._outbox) > 3)
            assert await stands_still(reader)
            held, seconds = len(session._outbox), session.seconds
            assert held < 12 and seconds < 20
            heard = [event async for event in session.events()]
            await reader
            session.close()
            assert finals(heard) == ["go north", "it's here"] * 5

    run(work())


def test_only_the_newest_interim_of_a_channel_waits(engine: Engine) -> None:
    async def work() -> None:
        async with lined() as line:
            call = Call(
                engine,
                AudioFormat("LINEAR16", RATE, 2),
                StreamOptions(interim_results=True),
                separate_channels=True,
            )
            session = opened(line, call)
            data = of_channels(speak("hello", pause=0.2), speak("world", pause=0.2))
            await session.feed(data)
            heard = await session.settle()
            assert [(number, event.text) for number, event in heard if isinstance(event, Result)] == [
                (0, "hello"),
                (1, "world"),
            ]
            await session.finish()
            rest = [event async for event in session.events()]
            assert [event.is_final for _, event in rest if isinstance(event, Result)] == [True, True]
            session.close()

    run(work())


def test_interims_that_are_read_all_come(engine: Engine) -> None:
    async def work() -> None:
        async with lined() as line:
            session = opened(line, Call(engine, LINEAR16, StreamOptions(interim_results=True)))
            texts = []
            for piece in np.array_split(speak("abc"), 30):
                await session.feed(pcm(piece))
                texts += [event.text for _, event in await session.settle() if isinstance(event, Result)]
            assert texts == ["a", "ab", "abc"]
            session.close()

    run(work())


# --- ends and errors ---


def test_an_error_comes_after_what_was_heard(engine: Engine) -> None:
    async def work() -> None:
        async with lined() as line:
            session = opened(line, Call(engine, LINEAR16, StreamOptions()))
            await session.feed(pcm(TWO))
            await until(lambda: len(session._outbox) == 2)
            session.fail(ValueError("first"))
            session.fail(ValueError("second"))
            events = session.events()
            assert finals([await anext(events), await anext(events)]) == ["go north", "it's here"]
            with pytest.raises(ValueError, match="first"):
                await anext(events)
            assert session.done
            session.close()

    run(work())


def test_a_step_that_fails_ends_its_call_only(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with lined() as line:
            good, bad = (opened(line, Call(engine, LINEAR16, StreamOptions())) for _ in range(2))
            await bad.feed(pcm(speak("go"))[:320])
            monkeypatch.setattr(bad._channels[0]._stream, "hear", lambda log_probs: 1 / 0)
            results = await asyncio.gather(
                hear(good, pcm(TWO), 3200), hear(bad, pcm(TWO), 3200), return_exceptions=True
            )
            assert not isinstance(results[0], BaseException)
            assert finals(results[0]) == ["go north", "it's here"]
            assert isinstance(results[1], ZeroDivisionError)

    run(work())


@pytest.mark.parametrize("data", [b"", b"\0", b"R"])
def test_no_sample_is_an_error(engine: Engine, data: bytes) -> None:
    async def work() -> None:
        async with lined() as line:
            session = opened(line, Call(engine, LINEAR16, StreamOptions()))
            await session.feed(data)
            with pytest.raises(ValueError, match=r"The audio is empty: it holds no samples\."):
                await session.finish()
            session.close()

    run(work())


def test_too_long_audio_is_not_taken(engine: Engine) -> None:
    charged: list[float] = []

    async def work() -> None:
        async with lined() as line:
            session = opened(line, Call(engine, LINEAR16, StreamOptions()), longest=1.0, charge=charged.append)
            await session.feed(bytes(2 * RATE))  # exactly a second
            assert session.seconds == sum(charged) == pytest.approx(1.0)
            with pytest.raises(TooLongError):
                await session.feed(bytes(2))
            assert session.seconds == sum(charged)
            session.close()

    run(work())


def test_every_channel_that_is_recognised_is_charged(engine: Engine) -> None:
    async def seconds(separate: bool) -> tuple[float, float]:
        charged: list[float] = []
        async with lined() as line:
            call = Call(engine, AudioFormat("LINEAR16", RATE, 4), StreamOptions(), separate_channels=separate)
            session = opened(line, call, charge=charged.append)
            await hear(session, bytes(4 * 2 * 2 * RATE), 1000)
            return session.seconds, sum(charged)

    assert run(seconds(separate=True)) == pytest.approx((2.0, 8.0))
    assert run(seconds(separate=False)) == pytest.approx((2.0, 2.0))


def test_seconds_do_not_add_up_to_more(engine: Engine) -> None:
    """Ten times a tenth of a second is one, not a little more, which would be billed as two."""

    async def work() -> None:
        async with lined() as line:
            session = opened(line, Call(engine, LINEAR16, StreamOptions()))
            for _ in range(30):
                await session.feed(bytes(3200))
            assert session.seconds == 3.0
            session.close()

    run(work())


def test_a_spent_quota_ends_the_call(engine: Engine) -> None:
    def charge(seconds: float) -> None:
        raise QuotaError("spent", 5.0)

    async def work() -> None:
        async with lined() as line:
            session = opened(line, Call(engine, LINEAR16, StreamOptions()), charge=charge)
            with pytest.raises(QuotaError, match="spent"):
                await hear(session, pcm(TWO))
            assert session.seconds == 0.0

    run(work())


def test_closing_frees_the_stream_and_stops_its_steps(engine: Engine) -> None:
    gate = Gated(engine)

    async def work() -> weakref.ref[Stream]:
        async with lined() as line:
            session = opened(line, Call(engine, LINEAR16, StreamOptions()), ahead=60.0)
            await session.feed(pcm(TWO))
            await asyncio.to_thread(gate.begun.wait, 60)
            (channel,) = session._channels
            stream = weakref.ref(channel._stream)
            session.close()
            gate.go_on.set()
            await until(lambda: channel.steps == 1)
            assert not channel.put(speak("go"))
            await until(lambda: line.scheduler.waiting == 0)
            assert session.steps == 0  # nobody is told
            return stream

    stream = run(work())
    gc.collect()
    assert stream() is None


# --- what runs where ---


def threads_of_decoding(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, audio_format: AudioFormat, data: bytes
) -> set[str]:
    names = set()
    feed = AudioDecoder.feed

    def noted(self: AudioDecoder, data: bytes) -> ChannelSamples:
        names.add("loop" if threading.current_thread() is threading.main_thread() else threading.current_thread().name)
        return feed(self, data)

    monkeypatch.setattr(AudioDecoder, "feed", noted)

    async def work() -> list[Heard]:
        async with lined() as line:
            return await hear(opened(line, Call(engine, audio_format, StreamOptions())), data, 1000)

    assert finals(run(work())) == ["bad"]
    return names


def written(container: str, subtype: str, samples: Samples, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def test_plain_samples_are_decoded_in_passing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of_decoding(engine, monkeypatch, LINEAR16, pcm(speak("bad"))) == {"loop"}
    mulaw = written("RAW", "ULAW", speak("bad", rate=8000), 8000)
    assert threads_of_decoding(engine, monkeypatch, AudioFormat("MULAW", 8000), mulaw) == {"loop"}


def test_codecs_run_off_the_loop(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    flac = written("FLAC", "PCM_16", speak("bad"))
    for audio_format in (AudioFormat("FLAC"), AudioFormat()):
        assert threads_of_decoding(engine, monkeypatch, audio_format, flac) == {"codecs_0"}


def test_what_nobody_named_is_sniffed_off_the_loop(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wav = written("WAV", "PCM_16", speak("bad"))
    assert threads_of_decoding(engine, monkeypatch, AudioFormat(), wav) == {"codecs_0", "loop"}
