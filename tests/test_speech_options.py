"""What one call asks for, over a real port: vocabulary, decoding, language models, channels, codecs, replacements.

Where the toy network cannot decide between letters that sound together, a call's own options do.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import grpc
import numpy as np
import pytest
import soundfile

from asr_server.options import ServerOptions
from asr_server.pcm import Samples
from asr_server.wire import speech_pb2 as pb
from asr_server.wire import speech_pb2_grpc
from tests.compressed_fixtures import encode
from tests.speech_fixtures import RATE, pcm, save_toy_bundle, serving, speak
from tests.test_speech_service import Config, Response, audio, config, finals, opening, refusal
from tests.test_stream import ARPA, both

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PAUSE = np.zeros(round(1.5 * RATE), np.float32)
EITHER = pcm(both("a", "b"))
Metadata = Sequence[tuple[str, str]]


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[speech_pb2_grpc.SpeechStub]:
    """Of a server with one toy bundle and a language model, "likes_a"."""
    models, languages = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("languages")
    save_toy_bundle(models)
    (languages / "likes_a.arpa").write_text(ARPA)
    options = ServerOptions(port=0, models=(models,), language_models=(languages,), drain_seconds=0.5)
    with serving(options) as server, grpc.insecure_channel(server.address) as channel:
        yield speech_pb2_grpc.SpeechStub(channel)


def text(stub: speech_pb2_grpc.SpeechStub, content: bytes, recognition: Config, metadata: Metadata = ()) -> str:
    response = whole(stub, content, recognition, metadata)
    return "".join(result.alternatives[0].transcript for result in response.results)


def whole(
    stub: speech_pb2_grpc.SpeechStub, content: bytes, recognition: Config, metadata: Metadata = ()
) -> pb.RecognizeResponse:
    request = pb.RecognizeRequest(config=recognition, audio=pb.RecognitionAudio(content=content))
    return stub.Recognize(request, timeout=120, metadata=tuple(metadata))


def beside_each_other(stub: speech_pb2_grpc.SpeechStub, *configs: Config, content: bytes = EITHER) -> list[str]:
    """The texts of streams that all are open before the first of them has ended."""
    calls = [stub.StreamingRecognize(iter([opening(each), *audio(content)]), timeout=120) for each in configs]
    return ["".join(finals(call)) for call in calls]


def boosted(phrase: str, boost: float = 12.0) -> Config:
    return config(speech_contexts=[pb.SpeechContext(phrases=[phrase], boost=boost)])


# --- vocabulary ---


def test_hot_words_decide_for_their_stream_only(stub: speech_pb2_grpc.SpeechStub) -> None:
    plain = text(stub, EITHER, config())
    assert beside_each_other(stub, boosted("a"), config(), boosted("b")) == ["a", plain, "b"]
    assert [text(stub, EITHER, boosted(letter)) for letter in "ab"] == ["a", "b"]


def test_adaptation_supersedes_contexts(stub: speech_pb2_grpc.SpeechStub) -> None:
    letters = pb.CustomClass(custom_class_id="letter", items=[pb.CustomClass.ClassItem(value="b")])
    phrase = pb.PhraseSet.Phrase(value="$letter", boost=12)
    adaptation = pb.SpeechAdaptation(phrase_sets=[pb.PhraseSet(phrases=[phrase])], custom_classes=[letters])
    both_ways = boosted("a")
    both_ways.adaptation.CopyFrom(adaptation)
    assert text(stub, EITHER, both_ways) == "b"


@pytest.mark.parametrize(
    ("fields", "details"),
    [
        ({"speech_contexts": [pb.SpeechContext(phrases=["route 66"])]}, "'route 66' has '6', which the model cannot"),
        ({"speech_contexts": [pb.SpeechContext(phrases=["x"] * 5001)]}, "There are more than 5000 phrases"),
        ({"speech_contexts": [pb.SpeechContext(phrases=["x"], boost=21)]}, "A boost is 21; it must be at most 20"),
        (
            {"adaptation": pb.SpeechAdaptation(phrase_sets=[pb.PhraseSet(phrases=[pb.PhraseSet.Phrase(value="$x")])])},
            "The phrase '$x' names the class 'x'; the request has: none.",
        ),
        (
            {"speech_contexts": [pb.SpeechContext(phrases=[" ".join("a" * n) for n in range(1, 13)], boost=20)]},
            "end at one place add up to",
        ),
        ({"settings": {"alpha": "loud"}}, "Invalid settings: alpha is 'loud'; it must be a number."),
        ({"settings": {"beam_width": "2000"}}, "Invalid settings: beam_width is 2000: at most 1024"),
        ({"settings": {"stop_history": "1e400"}}, "stop_history is inf; it must be 1 to 60000 milliseconds"),
        ({"settings": {"language_model": "x"}}, "language_model 'x' is not known. Select from {none, likes_a}"),
        ({"settings": {"lexicon": "true"}}, "lexicon is on, but there is no language model"),
        (
            {"transcript_normalization": pb.TranscriptNormalization(entries=[pb.TranscriptNormalization.Entry()])},
            "bad transcript_normalization. An entry searches for ''",
        ),
    ],
)
def test_wrong_options(stub: speech_pb2_grpc.SpeechStub, fields: dict[str, object], details: str) -> None:
    unary = refusal(lambda: whole(stub, EITHER, config(**fields)))
    streaming = refusal(lambda: list(stub.StreamingRecognize(iter([opening(config(**fields))]), timeout=60)))
    for code, said in (unary, streaming):
        assert code == INVALID
        assert details in said


# --- settings ---

WITH_MODEL = {"language_model": "likes_a", "alpha": "3", "beta": "0", "beam_width": "200"}
WITHOUT = {**WITH_MODEL, "language_model": "none"}


def test_language_models_decide_for_their_stream_only(stub: speech_pb2_grpc.SpeechStub) -> None:
    with_model, without, no_weight = beside_each_other(
        stub,
        config(settings=WITH_MODEL),
        config(settings=WITHOUT),
        config(settings={**WITH_MODEL, "alpha": "0"}),
    )
    assert with_model == "a"
    assert "b" in without
    assert no_weight == without


def test_settings_in_metadata(stub: speech_pb2_grpc.SpeechStub) -> None:
    """As clients of the Google contract send them, who have no such field; they supersede those in the config."""
    metadata = [(f"earsight-{name.replace('_', '-')}", value) for name, value in WITH_MODEL.items()]
    assert text(stub, EITHER, config(), metadata) == "a"
    assert text(stub, EITHER, config(settings=WITHOUT), metadata) == "a"
    requests = iter([opening(), *audio(EITHER)])
    assert finals(stub.StreamingRecognize(requests, timeout=120, metadata=tuple(metadata))) == ["a"]
    code, details = refusal(lambda: whole(stub, EITHER, config(), [("earsight-speed", "2")]))
    assert code == INVALID
    assert "'speed' is not known" in details


def test_pauses(stub: speech_pb2_grpc.SpeechStub) -> None:
    content = pcm(np.concatenate([speak("ab"), speak("cd")]))
    short, usual = beside_each_other(stub, config(settings={"stop_history": "400"}), config(), content=content)
    assert (short, usual) == ("ab cd", "abcd")


def test_the_first_pass_comes_before_the_final(stub: speech_pb2_grpc.SpeechStub) -> None:
    recognition = config(settings={"stop-history-eou": "300"})
    content = pcm(np.concatenate([both("ab", "cd"), PAUSE]))
    responses = list(stub.StreamingRecognize(iter([opening(recognition, interim_results=True), *audio(content)])))
    *_, announced, final = [result for response in responses for result in response.results]
    assert (announced.is_final, announced.stability) == (False, 1.0)
    assert final.is_final
    assert final.alternatives[0].transcript == announced.alternatives[0].transcript


# --- results ---


def normalization(*entries: tuple[str, str, bool]) -> pb.TranscriptNormalization:
    made = [pb.TranscriptNormalization.Entry(search=a, replace=b, case_sensitive=c) for a, b, c in entries]
    return pb.TranscriptNormalization(entries=made)


def test_transcript_normalization(stub: speech_pb2_grpc.SpeechStub) -> None:
    """In interims and finals, never in the words."""
    entries = normalization(("NORTH", "N.", False), ("Go", "Walk", True), ("it's here", "arrived", False))
    recognition = config(transcript_normalization=entries, enable_word_time_offsets=True)
    content = pcm(np.concatenate([speak("go north"), PAUSE, speak("it's here"), PAUSE]))
    response = whole(stub, content, recognition)
    assert [result.alternatives[0].transcript for result in response.results] == ["go N.", " arrived"]
    assert [word.word for word in response.results[1].alternatives[0].words] == ["it's", "here"]
    responses = list(stub.StreamingRecognize(iter([opening(recognition, interim_results=True), *audio(content)])))
    texts = [result.alternatives[0].transcript for response in responses for result in response.results]
    assert "go N." in texts[:-1]
    assert texts[-1] == " arrived"


def test_transcripts_that_explode_are_refused(stub: speech_pb2_grpc.SpeechStub) -> None:
    recognition = config(transcript_normalization=normalization(*[("a", "a " * 50, False)] * 100))
    code, details = refusal(lambda: whole(stub, pcm(speak("a")), recognition))
    assert code == INVALID
    assert "make a transcript of more than 10000 characters" in details


@pytest.mark.parametrize(("samples", "seconds"), [(16000, 1), (16001, 2), (48000, 3), (100, 1)])
def test_total_billed_time(stub: speech_pb2_grpc.SpeechStub, samples: int, seconds: int) -> None:
    assert whole(stub, bytes(2 * samples), config()).total_billed_time.ToTimedelta().total_seconds() == seconds


# --- channels ---


def two_channels() -> Samples:
    """(2, S): two utterances in each, of the second channel later."""
    first = np.concatenate([speak("left"), PAUSE, speak("one"), PAUSE])
    second = np.concatenate([np.zeros(RATE // 2, np.float32), speak("kept"), PAUSE, speak("two"), PAUSE])
    longest = max(len(first), len(second))
    return np.stack([np.pad(row, (0, longest - len(row))) for row in (first, second)])


def channels_of(pairs: Sequence[tuple[int, str]]) -> dict[int, str]:
    """The transcripts of each tag, joined as they came."""
    texts: dict[int, str] = {}
    for tag, transcript in pairs:
        texts[tag] = texts.get(tag, "") + transcript
    return texts


SEPARATE = {"audio_channel_count": 2, "enable_separate_recognition_per_channel": True}


def test_channels_are_recognised_separately(stub: speech_pb2_grpc.SpeechStub) -> None:
    content = pcm(two_channels().T)
    response = whole(stub, content, config(**SEPARATE))
    found = [(result.channel_tag, result.alternatives[0].transcript) for result in response.results]
    assert channels_of(found) == {1: "left one", 2: "kept two"}
    ends = [result.result_end_time.ToMilliseconds() for result in response.results]
    assert ends == sorted(ends)
    assert [tag for tag, _ in found] == [1, 2, 1, 2]
    responses = list(stub.StreamingRecognize(iter([opening(config(**SEPARATE)), *audio(content)]), timeout=120))
    streamed = [(result.channel_tag, result.alternatives[0].transcript) for r in responses for result in r.results]
    assert channels_of(streamed) == channels_of(found)


def test_one_channel_has_no_tag(stub: speech_pb2_grpc.SpeechStub) -> None:
    response = whole(stub, pcm(two_channels().T), config(audio_channel_count=2))
    assert [(result.channel_tag, result.alternatives[0].transcript) for result in response.results] == [
        (0, "left"),
        (0, " one"),
    ]


def test_single_utterances_of_channels(stub: speech_pb2_grpc.SpeechStub) -> None:
    """Each channel ends with its first utterance, the call with the last of them."""
    first = opening(config(**SEPARATE), single_utterance=True)
    responses = list(stub.StreamingRecognize(iter([first, *audio(pcm(two_channels().T))]), timeout=120))
    ends = [response for response in responses if response.speech_event_type == Response.END_OF_SINGLE_UTTERANCE]
    results = [(result.channel_tag, result.alternatives[0].transcript) for r in responses for result in r.results]
    assert len(ends) == 2
    assert sorted(results) == [(1, "left"), (2, "kept")]


# --- codecs ---


def written(samples: Samples, rate: int, container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples.T, rate, format=container, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("encoding", ["LINEAR16", "MULAW", "ALAW"])
def test_telephone(stub: speech_pb2_grpc.SpeechStub, encoding: str) -> None:
    subtype = {"LINEAR16": "PCM_16", "MULAW": "ULAW", "ALAW": "ALAW"}[encoding]
    content = written(speak("a bad cab", rate=8000), 8000, "RAW", subtype)
    recognition = config(encoding=encoding, sample_rate_hertz=8000)
    assert text(stub, content, recognition) == "a bad cab"
    assert beside_each_other(stub, recognition, content=content) == ["a bad cab"]


@pytest.mark.parametrize(
    ("encoding", "container", "codec"),
    [("OGG_OPUS", "ogg", "libopus"), ("WEBM_OPUS", "webm", "libopus"), ("MP3", "mp3", "libmp3lame")],
)
def test_codecs(stub: speech_pb2_grpc.SpeechStub, encoding: str, container: str, codec: str) -> None:
    content = encode(container, codec, speak("a bad cab", rate=48000)[None], 48000)
    for fields in ({"encoding": encoding}, {"encoding": 0}):
        recognition = config(**fields, sample_rate_hertz=0)
        assert text(stub, content, recognition) == "a bad cab"
        assert beside_each_other(stub, recognition, content=content) == ["a bad cab"]


def test_channels_of_opus(stub: speech_pb2_grpc.SpeechStub) -> None:
    stereo = np.stack([speak("bad", rate=48000), speak("cab", rate=48000)])
    content = encode("ogg", "libopus", stereo, 48000)
    response = whole(stub, content, config(encoding=Config.OGG_OPUS, sample_rate_hertz=48000, **SEPARATE))
    found = [(result.channel_tag, result.alternatives[0].transcript) for result in response.results]
    assert channels_of(found) == {1: "bad", 2: "cab"}
