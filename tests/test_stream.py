"""What belongs to one stream: its options beside other streams' in one step, and utterances that leak nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_server.decoding import DecodingOptions
from asr_server.endpoint import USUAL
from asr_server.hot_words import HotWords
from asr_server.language_model import LanguageModel
from asr_server.pcm import Samples
from asr_server.recognizer import Activity, ActivityKind, Engine, Event, Result, StreamOptions
from asr_server.settings import read, with_pauses
from asr_server.stream import Stream
from tests.speech_fixtures import ALPHABET, RATE, speak, toy_engine

EVERYTHING = StreamOptions(interim_results=True, activity_events=True)
BEAM = DecodingOptions(beam_width=200)  # so that every order of two letters stays until the end of the word

ARPA = """\\data\\
ngram 1=5
ngram 2=1

\\1-grams:
-3\t<unk>
-99\t<s>\t0
-1\t</s>
-0.25\ta\t0
-2\tb\t0

\\2-grams:
-0.25\t<s> a

\\end\\
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return toy_engine(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """To which "a" is likely, "b" less so and everything else hardly possible."""
    path = tmp_path_factory.mktemp("language") / "a.arpa"
    path.write_text(ARPA)
    return LanguageModel(path)


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), np.float32)


def both(one: str, other: str) -> Samples:
    """Two texts at once: the model cannot decide between letters that sound together."""
    return 0.5 * speak(one) + 0.5 * speak(other)


def noisy(*parts: Samples, seed: int = 0) -> Samples:
    clean = np.concatenate(parts)
    return np.clip(clean + 0.02 * np.random.default_rng(seed).standard_normal(len(clean)), -1, 1).astype(np.float32)


def finals(events: Sequence[Event]) -> list[Result]:
    return [event for event in events if isinstance(event, Result) and event.is_final]


def interims(events: Sequence[Event]) -> list[Result]:
    return [event for event in events if isinstance(event, Result) and not event.is_final]


def without_interims(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, Result) or event.is_final]


def together(engine: Engine, *streams: tuple[Samples, StreamOptions]) -> list[list[Event]]:
    """All streams in every step, as long as they have audio for it."""
    live = [engine.stream(options) for _, options in streams]
    for stream, (samples, _) in zip(live, streams, strict=True):
        stream.put(samples)
        stream.end()
    heard: list[list[Event]] = [[] for _ in live]
    while ready := [i for i, stream in enumerate(live) if stream.ready]:
        for i, outcome in zip(ready, engine.advance([live[i] for i in ready]).outcomes, strict=True):
            assert not isinstance(outcome, Exception)
            heard[i] += outcome
    return heard


def texts(engine: Engine, samples: Samples, *options: StreamOptions) -> list[str]:
    """The only final result of each of the streams that hear the same in the same steps."""
    heard = [finals(events) for events in together(engine, *((samples, each) for each in options))]
    assert all(len(results) == 1 for results in heard)
    return [result.text for (result,) in heard]


# --- options of one stream beside those of others ---


def test_hot_words_decide_for_their_stream_only(engine: Engine) -> None:
    samples = both("a", "b")
    for_a, for_b = (StreamOptions(hot_words=HotWords({letter: 12.0}, ALPHABET)) for letter in "ab")
    plain = texts(engine, samples, StreamOptions())[0]
    assert texts(engine, samples, for_a, StreamOptions(), for_b) == ["a", plain, "b"]


def test_a_language_model_decides_for_its_stream_only(engine: Engine, language_model: LanguageModel) -> None:
    samples = both("a", "b")
    decoding = replace(BEAM, alpha=3.0, beta=0.0)
    with_model = StreamOptions(decoding=decoding, language_model=language_model)
    without = StreamOptions(decoding=decoding, bundled_language_model=False)
    (plain,) = texts(engine, samples, without)
    assert "b" in plain
    assert texts(engine, samples, with_model, without) == ["a", plain]
    own = Engine(replace(engine.bundle, language_model=language_model))
    assert texts(own, samples, StreamOptions(decoding=decoding), without) == ["a", plain]


def test_alpha_is_each_streams_own(engine: Engine, language_model: LanguageModel) -> None:
    options = [
        StreamOptions(decoding=replace(BEAM, alpha=alpha, beta=0.0), language_model=language_model)
        for alpha in (0.0, 3.0)
    ]
    without, with_model = texts(engine, both("a", "b"), *options)
    assert "b" in without
    assert with_model == "a"


def test_beta_is_each_streams_own(engine: Engine) -> None:
    """A space and a letter sound together: a reward for words finds two, a penalty one."""
    options = [StreamOptions(decoding=replace(BEAM, beta=beta)) for beta in (8.0, -8.0)]
    two, one = texts(engine, both("a b", "acb"), *options)
    assert len(two.split()) > len(one.split()) == 1


def test_beams_and_alternatives_are_each_streams_own(engine: Engine) -> None:
    options = [
        StreamOptions(decoding=replace(BEAM, beam_width=width), max_alternatives=most)
        for width, most in ((8, 5), (1, 5), (8, 2))
    ]
    heard = together(engine, *((both("a", "b"), each) for each in options))
    counts = [len(result.alternatives) for events in heard for result in finals(events)]
    assert counts[0] > 2
    assert counts[1:] == [1, 2]


def test_endpointing_is_each_streams_own(engine: Engine) -> None:
    samples = np.concatenate([speak("ab"), speak("cd")])
    short = StreamOptions(endpoint=with_pauses(USUAL, {"silence": 0.4}))
    heard = together(engine, (samples, short), (samples, StreamOptions()))
    assert [[result.text for result in finals(events)] for events in heard] == [["ab", "cd"], ["abcd"]]


def test_company_of_other_options_changes_nothing(engine: Engine, language_model: LanguageModel) -> None:
    samples = [noisy(both("a bad", "b cab"), silence(1.5), speak("go"), seed=seed) for seed in range(4)]
    options = [
        replace(EVERYTHING, hot_words=HotWords({"bad": 4.0}, ALPHABET)),
        replace(EVERYTHING, decoding=replace(BEAM, alpha=2.0), language_model=language_model),
        replace(EVERYTHING, endpoint=with_pauses(USUAL, {"silence": 0.3, "first_pass": 0.2}), max_alternatives=4),
        EVERYTHING,
    ]
    pairs = list(zip(samples, options, strict=True))
    for events, pair in zip(together(engine, *pairs), pairs, strict=True):
        (alone,) = together(engine, pair)
        same(events, alone)


def same(ours: Sequence[Event], theirs: Sequence[Event], shift: float = 0.0) -> None:
    """Equal to rounding; `shift`: seconds by which our times are later."""
    assert [type(event) for event in ours] == [type(event) for event in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, Activity) or isinstance(other, Activity):
            assert isinstance(one, Activity) and isinstance(other, Activity)
            assert one.kind == other.kind
            assert one.time == pytest.approx(other.time + shift)
            continue
        assert (one.text, one.is_final) == (other.text, other.is_final)
        assert one.end == pytest.approx(other.end + shift)
        assert one.stability == pytest.approx(other.stability, abs=1e-4)
        assert one.alternatives[0].confidence == pytest.approx(other.alternatives[0].confidence, abs=1e-4)
        starts = [word.start for word in one.alternatives[0].words]
        assert starts == pytest.approx([word.start + shift for word in other.alternatives[0].words])


# --- utterances ---


def heard_in_pieces(stream: Stream, samples: Samples, cuts: Sequence[int]) -> list[Event]:
    events = [event for a, b in pairwise([0, *cuts, len(samples)]) for event in stream.feed(samples[a:b])]
    return events + stream.finish()


def test_an_utterance_knows_nothing_of_the_one_before(engine: Engine) -> None:
    """It is what a new stream hears that begins with the sample at which the utterance began."""
    samples = noisy(speak("go north"), silence(1.5), both("bad", "cab"), silence(1.2), speak("end"))
    for options in (EVERYTHING, replace(EVERYTHING, hot_words=HotWords({"bad cab": 5.0, "north": 2.0}, ALPHABET))):
        stream = engine.stream(options)
        events: list[Event] = []
        starts: list[tuple[int, int]] = []
        for piece in np.array_split(samples, 100):
            events += stream.feed(piece)
            if len(finals(events)) > len(starts):
                starts.append((len(events), stream.utterance.start))
        events += stream.finish()
        assert len(starts) == 2 and len(finals(events)) == 3
        for told, start in starts:
            assert 0 < start < len(samples)
            fresh = engine.stream(options)
            same(events[told:], heard_in_pieces(fresh, samples[start:], []), shift=start / RATE)


AUDIO = noisy(speak("go north"), silence(1.3), both("ab", "cd"), silence(0.9), speak("it's"), silence(6.0), speak("x"))


@pytest.fixture(scope="module")
def whole(engine: Engine) -> list[Event]:
    return heard_in_pieces(engine.stream(EVERYTHING), AUDIO, [])


@settings(deadline=None, max_examples=12)
@given(cuts=st.lists(st.integers(0, len(AUDIO)), max_size=40).map(sorted))
def test_any_cut_gives_the_same_events(engine: Engine, whole: list[Event], cuts: list[int]) -> None:
    assert len(finals(whole)) == 4
    same(heard_in_pieces(engine.stream(EVERYTHING), AUDIO, cuts), whole)


def test_audio_that_waits_with_its_end_gives_the_same_results(engine: Engine, whole: list[Event]) -> None:
    """Only interims may be others where the end is known before the last steps."""
    (waiting,) = together(engine, (AUDIO, EVERYTHING))
    same(without_interims(waiting), without_interims(whole))


def test_the_caller_ends_an_utterance(engine: Engine) -> None:
    """In the middle of speech: two results, each that of its part alone."""
    samples = noisy(speak("north"))
    border = round((0.3 + 2 * 0.2) * RATE)  # after two letters
    stream = engine.stream()
    events = stream.feed(samples[:border])
    stream.end_utterance()
    events += stream.feed(samples[border:])
    events += stream.finish()
    first, second = (engine.stream() for _ in range(2))
    assert [result.text for result in finals(events)] == ["no", "rth"]
    same(finals(events)[:1], heard_in_pieces(first, samples[:border], []))
    same(finals(events)[1:], heard_in_pieces(second, samples[border:], []), shift=border / RATE)


def test_ends_where_nothing_is_said_give_nothing(engine: Engine) -> None:
    stream = engine.stream(EVERYTHING)
    for _ in range(3):
        stream.end_utterance()
    assert stream.feed(silence(0.1)) == []
    stream.end_utterance()
    assert stream.feed(silence(0.0)) == []
    events = stream.feed(speak("go"))
    for _ in range(2):
        stream.end_utterance()
    assert [result.text for result in finals(events + stream.finish())] == ["go"]


@pytest.mark.parametrize(
    "values",
    [
        {"stop_history": "1"},
        {"stop_history": "60", "stop_threshold": "0.01"},
        {"stop_history": "60000"},
        {"start_history": "60000"},
        {"stop_history": "1", "stop_history_eou": "1", "start_history": "100", "start_threshold": "1"},
    ],
)
def test_no_setting_loses_audio(engine: Engine, values: dict[str, str]) -> None:
    """Utterances of single letters or one of all: the letters are the same, wherever the audio is cut."""
    samples = np.concatenate([speak("go north"), silence(1.3), speak("it's"), silence(6.0), speak("x")])
    options = replace(EVERYTHING, endpoint=read(values, BEAM, USUAL).endpoint)
    events = heard_in_pieces(engine.stream(options), samples, range(1000, len(samples), 1000))
    assert "".join(result.text for result in finals(events)).replace(" ", "") == "gonorthit'sx"
    ends = [event.end for event in events if isinstance(event, Result)]
    assert ends == sorted(ends)
    same(events, heard_in_pieces(engine.stream(options), samples, []))


# --- endpointing as events ---


def test_the_first_pass_is_an_interim_of_stability_one(engine: Engine) -> None:
    options = replace(EVERYTHING, endpoint=with_pauses(USUAL, {"first_pass": 0.3}))
    samples = np.concatenate([both("ab", "cd"), speak("e"), silence(1.5)])
    results = [event for event in together(engine, (samples, options))[0] if isinstance(event, Result)]
    announced = [result for result in results if result.stability == 1.0]
    (final,) = finals(results)
    assert len(announced) == 2  # before the third letter, which came all the same, and before the end
    assert announced[0].text + "e" == announced[1].text == final.text
    assert results.index(announced[1]) == len(results) - 2
    assert announced[1].end < final.end - 0.3
    plain = [event for event in together(engine, (samples, EVERYTHING))[0] if isinstance(event, Result)]
    assert all(result.stability < 1.0 for result in plain)


def test_a_click_is_no_speech_where_a_history_is_asked_for(engine: Engine) -> None:
    """Events only: what the network wrote stays, and a letter more than the click begins speech."""
    samples = np.concatenate([speak("a"), silence(2.0), speak("abc")])
    options = replace(EVERYTHING, endpoint=replace(USUAL, start_history=0.4, start_threshold=0.5))
    events = together(engine, (samples, options))[0]
    begins = [event.time for event in events if isinstance(event, Activity) and event.kind is ActivityKind.BEGIN]
    assert len(begins) == 1
    assert begins[0] == pytest.approx(len(speak("a")) / RATE + 2.3, abs=0.2)


def test_a_noisy_pause_ends_by_its_share(engine: Engine) -> None:
    """Crackling every 0.2 s: loud, and blank to the network."""
    pause = silence(4.0)
    time = np.arange(round(0.06 * RATE)) / RATE
    for start in range(round(0.3 * RATE), len(pause), round(0.2 * RATE)):
        pause[start : start + len(time)] = 0.3 * np.sin(2 * np.pi * 7900 * time)
    samples = np.concatenate([speak("ab", pause=0.0), pause])
    ends = []
    for share in (1.0, 0.5):
        options = StreamOptions(endpoint=replace(USUAL, stop_threshold=share))
        (final,) = finals(together(engine, (samples, options))[0])
        assert final.text == "ab"
        ends.append(final.end)
    assert ends[1] < ends[0] - 0.2


def test_timeouts_count_from_the_last_speech(engine: Engine) -> None:
    options = StreamOptions(activity_events=True, speech_start_timeout=1.0, speech_end_timeout=2.5)
    samples = np.concatenate([speak("a"), silence(1.5), speak("b"), silence(5.0), speak("c")])
    stream = engine.stream(options)
    events = heard_in_pieces(stream, samples, range(1600, len(samples), 1600))
    assert [result.text for result in finals(events)] == ["a", "b"]
    end, timeout = (event for event in events[-3:] if isinstance(event, Activity))
    assert (end.kind, timeout.kind) == (ActivityKind.END, ActivityKind.TIMEOUT)
    assert timeout.time == pytest.approx(end.time + 2.5, abs=0.2)
    assert stream.done


# --- interims ---


def test_interims_say_how_sure_they_are(engine: Engine) -> None:
    """Stability is computed: of two equal letters neither is certain, of a clear one it is."""
    sure, unsure = (interims(together(engine, (samples, EVERYTHING))[0]) for samples in (speak("a"), both("a", "b")))
    assert sure[0].stability > 0.99
    assert 0.2 < unsure[0].stability < 0.8
    assert all(0 < result.stability <= 1 and result.text for result in sure + unsure)


def test_interims_stand_before_their_final_and_times_rise(whole: list[Event]) -> None:
    results = [event for event in whole if isinstance(event, Result)]
    assert all(one.end <= other.end for one, other in pairwise(results))
    assert all(one.text != other.text for one, other in pairwise(interims(whole)))
    said = 0.0  # until when the finals so far have spoken
    for result in results:
        assert result.alternatives[0].words[0].start >= said
        if result.is_final:
            said = result.alternatives[0].words[-1].end
    assert results[-1].is_final
