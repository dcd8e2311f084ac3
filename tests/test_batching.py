"""Many streams in one step: who goes when, that company changes nothing, and that one stream's fault is its own."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from asr_server.batching import Delivery, LiveStream, Scheduler
from asr_server.options import BatchOptions
from asr_server.pcm import Samples
from asr_server.recognizer import Engine, Event, Result, Step, StreamOptions
from asr_server.stream import Stream
from tests.speech_fixtures import RATE, speak, toy_engine

TEXTS = ("go north", "a bad cab", "it's here", "hello you", "left")
INTERIMS = StreamOptions(interim_results=True)
PAUSE = np.zeros(round(1.5 * RATE), np.float32)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return toy_engine(tmp_path_factory.mktemp("models"))


def noisy(text: str, seed: int) -> Samples:
    """Not so certain that rounding could not show."""
    clean = np.concatenate([speak(text), PAUSE, speak(text)])
    noise = 0.02 * np.random.default_rng(seed).standard_normal(len(clean))
    return np.clip(clean + noise, -1, 1).astype(np.float32)


def finals(events: Sequence[Event]) -> list[Result]:
    return [event for event in events if isinstance(event, Result) and event.is_final]


def same(ours: Sequence[Event], theirs: Sequence[Event]) -> None:
    """Equal to rounding."""
    assert len(ours) == len(theirs)
    for one, other in zip(finals(ours), finals(theirs), strict=True):
        assert (one.text, one.end) == (other.text, other.end)
        assert one.alternatives[0].confidence == pytest.approx(other.alternatives[0].confidence, abs=1e-4)
        assert [word.start for word in one.alternatives[0].words] == [w.start for w in other.alternatives[0].words]


# --- one step ---


def test_company_changes_nothing(engine: Engine) -> None:
    """Streams that begin, speak and end at different times hear what each of them hears alone."""
    draw = random.Random(0)
    audio = [noisy(TEXTS[i % len(TEXTS)], seed=i) for i in range(20)]
    alone = []
    for samples in audio:
        stream = engine.stream(INTERIMS)
        alone.append([*stream.feed(samples), *stream.finish()])
    streams = [engine.stream(INTERIMS) for _ in audio]
    left = [list(np.array_split(samples, draw.randint(3, 60))) for samples in audio]
    heard: list[list[Event]] = [[] for _ in audio]
    while any(not stream.done for stream in streams):
        for stream, pieces in zip(streams, left, strict=True):
            if pieces and draw.random() < 0.7:
                stream.put(pieces.pop(0))
            elif not pieces:
                stream.end()
        ready = [i for i, stream in enumerate(streams) if stream.ready]
        for i, outcome in zip(ready, engine.advance([streams[i] for i in ready]).outcomes, strict=True):
            assert not isinstance(outcome, Exception)
            heard[i] += outcome
    for together, single in zip(heard, alone, strict=True):
        same(together, single)


def test_a_stream_that_fails_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever on the line it happens: in the network, at the endpoint, in the search, at the results."""
    for broken in ("take", "hear", "conclude", "search"):
        streams = [engine.stream() for _ in range(4)]
        for stream in streams:
            stream.put(speak("go north"))
            stream.end()
        if broken == "take":  # samples that no network can take
            block = streams[1].take()
            object.__setattr__(block, "samples", np.zeros((2, 2), np.float32))
            monkeypatch.setattr(streams[1], "take", lambda block=block: block)
        elif broken == "search":
            streams[1].utterance.search.advance(np.log(np.full((1, 29), 1 / 29)))
            monkeypatch.setattr(streams[1], "hear", lambda log_probs: _poison(log_probs))
        else:
            monkeypatch.setattr(streams[1], broken, _fail)
        results: list[list[Event]] = [[] for _ in streams]
        failed = set()
        while ready := [i for i, stream in enumerate(streams) if stream.ready and i not in failed]:
            for i, outcome in zip(ready, engine.advance([streams[i] for i in ready]).outcomes, strict=True):
                if isinstance(outcome, Exception):
                    failed.add(i)
                else:
                    results[i] += outcome
        assert failed == {1}, broken
        assert [[result.text for result in finals(each)] for i, each in enumerate(results) if i != 1] == [
            ["go north"]
        ] * 3


def _fail(*arguments: object) -> None:
    raise RuntimeError("broken")


def _poison(log_probs: Samples) -> int:
    log_probs[:] = np.nan
    return len(log_probs)


def test_a_forced_end(engine: Engine) -> None:
    """The utterance ends where it was said, however much audio was there already; the next one begins right behind."""
    samples = speak("go north", pause=0.1)
    stream = engine.stream()
    stream.put(samples)
    stream.end_utterance()
    stream.put(samples)
    stream.end_utterance()
    stream.put(samples)
    events = [*stream.feed(np.zeros(0, np.float32)), *stream.finish()]
    assert [result.text for result in finals(events)] == ["go north"] * 3
    seconds = len(samples) / RATE
    starts = [result.alternatives[0].words[0].start for result in finals(events)]
    assert starts == pytest.approx([0.1, 0.1 + seconds, 0.1 + 2 * seconds], abs=0.04)


# --- the scheduler ---


class Collector:
    """What was delivered to whom, in order."""

    def __init__(self) -> None:
        self.deliveries: queue.Queue[Delivery] = queue.Queue()
        self.steps: list[int] = []

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.deliveries.put(delivery)

    def stepped(self, model: str, streams: int, step: Step, waited: Sequence[float]) -> None:
        self.steps.append(streams)

    def until_done(self, *streams: LiveStream) -> dict[LiveStream, list[Event]]:
        events: dict[LiveStream, list[Event]] = {stream: [] for stream in streams}
        open_streams = set(streams)
        while open_streams:
            delivery = self.deliveries.get(timeout=60)
            if delivery.error:
                raise delivery.error
            events.setdefault(delivery.stream, []).extend(delivery.events)
            if delivery.done:
                open_streams.discard(delivery.stream)
        return events


@contextmanager
def scheduling(options: BatchOptions | None = None) -> Iterator[tuple[Scheduler, Collector]]:
    collector = Collector()
    scheduler = Scheduler(collector.deliver, options, collector)
    try:
        yield scheduler, collector
    finally:
        scheduler.close()


def open_stream(scheduler: Scheduler, engine: Engine, options: StreamOptions = INTERIMS) -> LiveStream:
    return scheduler.open(engine, options, lambda delivery: None)


def test_streams_of_the_scheduler(engine: Engine) -> None:
    """Put in from several threads at once, in pieces of any size."""
    audio = [noisy(TEXTS[i % len(TEXTS)], seed=i) for i in range(12)]
    with scheduling() as (scheduler, collector):
        streams = [open_stream(scheduler, engine) for _ in audio]

        def send(first: int) -> None:
            for stream, samples in list(zip(streams, audio, strict=True))[first::3]:
                for piece in np.array_split(samples, 40):
                    stream.put(piece)
                stream.end()

        threads = [threading.Thread(target=send, args=(first,)) for first in range(3)]
        for thread in threads:
            thread.start()
        events = collector.until_done(*streams)
        for thread in threads:
            thread.join()
    for stream, samples in zip(streams, audio, strict=True):
        same(finals(events[stream]), engine.transcribe(samples))
    assert max(collector.steps) > 1
    assert all(stream.waiting == 0 for stream in streams)


def test_a_full_step_waits_for_nobody(engine: Engine) -> None:
    """Deadlines a minute away: only that a step is full can begin it."""
    options = BatchOptions(max_batch=3, target=60, live=60, final=60, bulk=60)
    with scheduling(options) as (scheduler, collector):
        scheduler._pace = time.monotonic() + 60
        streams = [open_stream(scheduler, engine) for _ in range(3)]
        for stream in streams:
            stream.put(speak("go")[: engine.samples_before(engine.chunking.frames)])
        for _ in streams:
            collector.deliveries.get(timeout=30)
    assert collector.steps[0] == 3


def test_deadlines_order_the_queue(engine: Engine) -> None:
    """The end of an utterance goes before speech, speech before recordings."""
    options = BatchOptions(max_batch=1, target=60, live=0.4, final=0.2, bulk=0.6)
    with scheduling(options) as (scheduler, collector):
        bulk = scheduler.open(engine, StreamOptions(), lambda delivery: None, is_bulk=True)
        live, ending = open_stream(scheduler, engine), open_stream(scheduler, engine)
        first_chunk = np.zeros(engine.samples_before(engine.chunking.frames), np.float32)
        with scheduler._lock:  # all of them wait before the thread looks
            scheduler._pace = time.monotonic() + 0.1
        for stream in (bulk, live):
            stream.put(first_chunk)
        ending.put(first_chunk[:100])
        ending.end()
        order = [collector.deliveries.get(timeout=30).stream for _ in range(3)]
    assert order == [ending, live, bulk]


def test_recordings_that_have_waited_long_hold_up_no_live_stream(engine: Engine) -> None:
    """Ten places a step, one of them for recordings; with one place, every ninth step."""
    with scheduling() as (scheduler, _):
        live = [open_stream(scheduler, engine) for _ in range(12)]
        bulk = [scheduler.open(engine, StreamOptions(), lambda _: None, is_bulk=True) for _ in range(30)]
        with scheduler._lock:
            now = time.monotonic()
            waiting = {**dict.fromkeys(live, now + 1), **dict.fromkeys(bulk, now - 60)}

            def step(limit: int) -> list[LiveStream]:
                scheduler._queue = dict(waiting)
                first = scheduler._first()
                chosen = scheduler._chosen(list(waiting), limit)
                assert first in chosen
                return chosen

            assert step(10) == [*live[:9], bulk[0]]
            assert step(20) == [*live, *bulk[:8]]
            scheduler._steps_without_longest = 0
            turns = [step(1)[0].is_bulk for _ in range(18)]
            assert turns == [*[False] * 8, True, *[False] * 8, True]
            scheduler._queue = {}


def test_closed_streams_get_no_steps(engine: Engine) -> None:
    with scheduling(BatchOptions(live=0.2)) as (scheduler, collector):
        gone, there = open_stream(scheduler, engine), open_stream(scheduler, engine)
        scheduler._pace = time.monotonic() + 0.2
        for stream in (gone, there):
            stream.put(speak("go"))
            stream.end()
        gone.close()
        events = collector.until_done(there)
        assert gone not in events
        assert not gone.put(speak("go"))
    assert [result.text for result in finals(events[there])] == ["go"]


def test_an_error_ends_one_stream(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with scheduling() as (scheduler, collector):
        good, bad = open_stream(scheduler, engine), open_stream(scheduler, engine)
        monkeypatch.setattr(bad._stream, "conclude", _fail)
        for stream in (good, bad):
            stream.put(speak("go north"))
            stream.end()
        outcomes: dict[LiveStream, Exception | None] = {}
        while len(outcomes) < 2:
            delivery = collector.deliveries.get(timeout=60)
            if delivery.done:
                outcomes[delivery.stream] = delivery.error
    assert outcomes[good] is None
    assert isinstance(outcomes[bad], RuntimeError)


def test_the_thread_outlives_a_step_that_fails(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with scheduling() as (scheduler, collector):
        stream = open_stream(scheduler, engine)
        with monkeypatch.context() as broken:
            broken.setattr(engine, "advance", _fail)
            stream.put(speak("go"))
            assert isinstance(collector.deliveries.get(timeout=60).error, RuntimeError)
        other = open_stream(scheduler, engine)
        other.put(speak("go"))
        other.end()
        assert [result.text for result in finals(collector.until_done(other)[other])] == ["go"]


def test_lag(engine: Engine) -> None:
    """How late the most urgent stream is; nobody waits, nobody is late."""
    with scheduling(BatchOptions(live=0.0)) as (scheduler, _):
        assert scheduler.lag == 0.0
        late = open_stream(scheduler, engine)
        with scheduler._lock:
            scheduler._queue[late] = time.monotonic() - 5
            assert scheduler.waiting == 1
        assert scheduler.lag >= 5
        recording = scheduler.open(engine, StreamOptions(), lambda _: None, is_bulk=True)
        with scheduler._lock:
            scheduler._queue = {recording: time.monotonic() - 60}
        assert scheduler.lag == 0.0, "recordings can wait"
        with scheduler._lock:
            scheduler._queue = {}


def test_batch_options_are_checked() -> None:
    for wrong in ({"max_batch": 0}, {"target": 0.0}, {"live": -1.0}):
        with pytest.raises(ValueError, match="at least one stream"):
            BatchOptions(**wrong)


def test_stream_options_reach_the_search(engine: Engine) -> None:
    """A beam of one prefix, no language model, and what does not fit is said at once."""
    from asr_server.decoding import DecodingOptions

    narrow = StreamOptions(decoding=DecodingOptions(beam_width=1), bundled_language_model=False, max_alternatives=5)
    (result,) = engine.transcribe(speak("go"), narrow)
    assert len(result.alternatives) == 1
    with pytest.raises(ValueError, match="lexicon"):
        Stream(engine, StreamOptions(decoding=DecodingOptions(lexicon=True)))
