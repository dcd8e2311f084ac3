"""The straight line on tones: exact texts, times that count from the start of the stream, and any cut = whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from asr_server.endpoint import UNCUT
from asr_server.pcm import Samples
from asr_server.recognizer import Activity, ActivityKind, Engine, Event, Result, StreamOptions
from tests.speech_fixtures import RATE, speak, toy_engine

EVERYTHING = StreamOptions(interim_results=True, activity_events=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return toy_engine(tmp_path_factory.mktemp("models"))


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), np.float32)


def listen(engine: Engine, samples: Samples, options: StreamOptions, cuts: list[int] | None = None) -> list[Event]:
    stream = engine.stream(options)
    events = [event for a, b in pairwise([0, *(cuts or []), len(samples)]) for event in stream.feed(samples[a:b])]
    return events + stream.finish()


def in_pieces(samples: Samples, seconds: float = 0.1) -> list[int]:
    size = round(seconds * RATE)
    return list(range(size, len(samples), size))


def finals(events: list[Event]) -> list[Result]:
    return [event for event in events if isinstance(event, Result) and event.is_final]


TWO = np.concatenate([speak("go north"), silence(1.5), speak("it's here"), silence(1.5), speak("bye")])


def test_text_and_word_times(engine: Engine) -> None:
    (result,) = engine.transcribe(speak("go up"))
    assert result.text == "go up"
    assert [word.text for word in result.alternatives[0].words] == ["go", "up"]
    go, up = result.alternatives[0].words
    assert go.start == pytest.approx(0.3, abs=0.03)
    assert up.start == pytest.approx(0.3 + 3 * 0.2, abs=0.03)
    assert go.start < go.end <= up.start < up.end


def test_pauses_divide_utterances(engine: Engine) -> None:
    results = engine.transcribe(TWO)
    assert [result.text for result in results] == ["go north", "it's here", "bye"]
    starts = [result.alternatives[0].words[0].start for result in results]
    third = (len(speak("go north")) + len(speak("it's here"))) / RATE + 3.0 + 0.3
    assert starts == pytest.approx([0.3, 0.3 + len(speak("go north")) / RATE + 1.5, third], abs=0.03)


def test_uncut_is_one_utterance(engine: Engine) -> None:
    (result,) = engine.transcribe(TWO, StreamOptions(endpoint=UNCUT))
    assert result.text.replace(" ", "") == "gonorthit'sherebye"


def test_any_cut_gives_the_same_results(engine: Engine) -> None:
    noisy = TWO + 0.01 * np.random.default_rng(0).standard_normal(len(TWO)).astype(np.float32)
    whole = finals(listen(engine, noisy, StreamOptions()))
    for seed in range(4):
        cuts = sorted(np.random.default_rng(seed).integers(0, len(noisy), 25).tolist())
        assert finals(listen(engine, noisy, EVERYTHING, cuts)) == whole


def test_utterances_do_not_know_each_other(engine: Engine) -> None:
    """What was said before changes nothing but the times."""
    after_other = engine.transcribe(TWO)[2].alternatives[0]
    alone = engine.transcribe(speak("bye"))[0].alternatives[0]
    assert (after_other.text, after_other.confidence) == (alone.text, alone.confidence)


def test_pauses_of_every_length_lose_nothing(engine: Engine) -> None:
    for pause in np.arange(0.1, 1.6, 0.13):
        joined = np.concatenate([speak("abc", pause=0.2), silence(float(pause)), speak("xyz", pause=0.2)])
        assert "".join(result.text for result in engine.transcribe(joined)) == "abcxyz"


def test_interims_grow_and_finals_close(engine: Engine) -> None:
    samples = np.concatenate([speak("hello"), silence(1.5)])
    results = [event for event in listen(engine, samples, EVERYTHING, in_pieces(samples)) if isinstance(event, Result)]
    texts = [result.text for result in results]
    assert texts == ["h", "he", "hel", "hell", "hello", "hello"]
    assert [result.is_final for result in results] == [False] * 5 + [True]
    assert all(0 < result.stability <= 1 for result in results[:-1])
    assert results[-1].stability == 0
    ends = [result.end for result in results]
    assert ends == sorted(ends)


def test_no_interims_unless_asked(engine: Engine) -> None:
    samples = speak("hello")
    assert all(
        isinstance(e, Result) and e.is_final for e in listen(engine, samples, StreamOptions(), in_pieces(samples))
    )


def test_activity_events(engine: Engine) -> None:
    kinds = [
        (event.kind, round(event.time, 1)) if isinstance(event, Activity) else event.text
        for event in listen(engine, np.concatenate([speak("abc"), silence(1.5), speak("d")]), EVERYTHING)
        if isinstance(event, Activity) or event.is_final
    ]
    begin, end = ActivityKind.BEGIN, ActivityKind.END
    second = round(2 * 0.3 + 3 * 0.2 + 1.5 + 0.3, 1)
    assert kinds == [
        (begin, 0.3),
        (end, 0.8),
        "abc",
        (begin, second),
        (end, round(second + 0.12, 1)),
        "d",
    ]


def test_single_utterance_stops(engine: Engine) -> None:
    stream = engine.stream(StreamOptions(single_utterance=True))
    announced, final = stream.feed(TWO)
    assert isinstance(announced, Activity)
    assert announced.kind is ActivityKind.END_OF_SINGLE_UTTERANCE
    assert isinstance(final, Result)
    assert final.text == "go north"
    assert stream.done
    assert stream.feed(TWO) == []
    assert stream.finish() == []


def test_silence_says_nothing(engine: Engine) -> None:
    assert listen(engine, silence(12.0), EVERYTHING) == []
    assert listen(engine, silence(0.0), EVERYTHING) == []
    assert listen(engine, silence(0.005), EVERYTHING) == []


def test_speech_start_timeout(engine: Engine) -> None:
    options = StreamOptions(activity_events=True, speech_start_timeout=2.0)
    (event,) = listen(engine, silence(4.0), options)
    assert isinstance(event, Activity)
    assert event.kind is ActivityKind.TIMEOUT
    assert event.time == pytest.approx(2.0, abs=0.2)
    assert [result.text for result in finals(listen(engine, speak("abc", pause=1.0), options))] == ["abc"]


def test_speech_end_timeout(engine: Engine) -> None:
    options = StreamOptions(activity_events=True, speech_end_timeout=2.0)
    long_wait = np.concatenate([silence(3.0), speak("abc"), silence(4.0), speak("never heard")])
    events = listen(engine, long_wait, options, in_pieces(long_wait))
    assert [result.text for result in finals(events)] == ["abc"]
    assert isinstance(events[-1], Activity)
    assert events[-1].kind is ActivityKind.TIMEOUT
    assert events[-1].time == pytest.approx(3.0 + 0.3 + 0.56 + 2.0, abs=0.2)


def test_waiting_keeps_no_audio(engine: Engine) -> None:
    """A minute of silence leaves no more behind than two seconds of it."""
    stream = engine.stream(EVERYTHING)
    held = []
    for _ in range(30):
        stream.feed(silence(2.0))
        held.append(len(stream.utterance.kept) + stream._waiting.size)
    assert max(held) <= max(held[:3]) < RATE


def test_a_runner_up_is_no_result_where_silence_is_likeliest(engine: Engine) -> None:
    for alternatives in (1, 5):
        assert engine.transcribe(silence(1.0), StreamOptions(max_alternatives=alternatives)) == []
