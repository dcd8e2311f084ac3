"""Riva's contract over a real port: an answer for each message, what forces an utterance's end, and every mistake."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import grpc
import numpy as np
import pytest
import soundfile

from asr_server import riva_messages, session
from asr_server.audio import AudioFormat
from asr_server.messages import Call
from asr_server.options import Limits, ServerOptions
from asr_server.pcm import Samples
from asr_server.recognizer import Activity, ActivityKind, Alternative, Event, Result, StreamOptions
from asr_server.wire import riva_asr_pb2 as pb
from asr_server.wire import riva_asr_pb2_grpc
from tests.speech_fixtures import RATE, pcm, save_toy_bundle, serving, speak

Request = pb.StreamingRecognizeRequest
Response = pb.StreamingRecognizeResponse

LIMITS = Limits(content_bytes=1 << 20, unary_seconds=40, stream_seconds=60, idle_seconds=4.0)
PAUSE = np.zeros(round(1.5 * RATE), np.float32)
TWO = np.concatenate([speak("go north"), PAUSE, speak("it's here"), PAUSE])
BOTH = speak("a") * 0.5 + speak("b") * 0.5  # two pitches at once: the model cannot decide
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@dataclass(frozen=True)
class Served:
    """A running server with two toy bundles: klang (de-DE), which comes first, and tones (en-US)."""

    address: str
    stub: riva_asr_pb2_grpc.RivaSpeechRecognitionStub


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = tmp_path_factory.mktemp("models")
    save_toy_bundle(models, "tones")
    save_toy_bundle(models, "klang", language_code="de-DE")
    with serving(ServerOptions(port=0, models=(models,), limits=LIMITS, drain_seconds=0.5)) as server:
        with grpc.insecure_channel(server.address) as channel:
            yield Served(server.address, riva_asr_pb2_grpc.RivaSpeechRecognitionStub(channel))


def config(**fields: object) -> pb.RecognitionConfig:
    """LINEAR_PCM at 16 kHz in English, unless said otherwise."""
    usual = {"encoding": pb.LINEAR_PCM, "sample_rate_hertz": RATE, "language_code": "en-US"}
    return pb.RecognitionConfig(**{**usual, **fields})  # type: ignore[arg-type]


def opening(recognition: pb.RecognitionConfig | None = None, interim_results: bool = False) -> Request:
    streaming = pb.StreamingRecognitionConfig(config=recognition or config(), interim_results=interim_results)
    return Request(streaming_config=streaming)


def audio(data: bytes, size: int = 3200) -> list[Request]:
    return [Request(audio_content=data[i : i + size]) for i in range(0, len(data), size)]


def recognize(
    served: Served, content: bytes, recognition: pb.RecognitionConfig | None = None, **metadata: str
) -> pb.RecognizeResponse:
    request = pb.RecognizeRequest(config=recognition or config(), audio=content)
    sent = tuple((name.replace("_", "-", 1), value) for name, value in metadata.items())
    return served.stub.Recognize(request, metadata=sent, timeout=120)


def texts(response: pb.RecognizeResponse) -> list[str]:
    return [result.alternatives[0].transcript for result in response.results]


def stream(served: Served, requests: Iterable[Request]) -> list[Response]:
    return list(served.stub.StreamingRecognize(iter(requests), timeout=120))


def conversation(served: Served, requests: Sequence[Request]) -> list[Response]:
    """As a client that sends nothing more before its last message has been answered."""
    answered = threading.Semaphore(1)

    def waiting() -> Iterator[Request]:
        yield requests[0]
        for request in requests[1:]:
            assert answered.acquire(timeout=60)
            yield request

    responses = []
    for response in served.stub.StreamingRecognize(waiting(), timeout=120):
        responses.append(response)
        answered.release()
    return responses


def finals(responses: Iterable[Response]) -> list[str]:
    return [r.alternatives[0].transcript for response in responses for r in response.results if r.is_final]


def encoded(samples: Samples, container: str, subtype: str, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def refusal(attempt: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        attempt()
    return caught.value.code(), caught.value.details() or ""


# --- one response for each message ---


@pytest.mark.parametrize("size", [320, 3200, 5000, 50_000, 1 << 20])
def test_a_response_for_each_message(served: Served, size: int) -> None:
    requests = audio(pcm(TWO), size)
    responses = stream(served, [opening(interim_results=True), *requests])
    assert len(responses) in (len(requests), len(requests) + 1)
    assert finals(responses) == ["go north", " it's here"]


def test_each_response_is_that_of_its_message(served: Served) -> None:
    """Sent at once or one by one, each message is answered with the same."""
    requests = [opening(interim_results=True), *audio(pcm(TWO))]
    at_once = stream(served, requests)
    assert conversation(served, requests) == at_once
    heard = [bool(response.results) for response in at_once]
    assert not all(heard)
    first = at_once[heard.index(True)].results[0]
    assert first.alternatives[0].transcript == "g"
    # The message that completes a chunk and its right context is the one that is answered with it.
    assert heard.index(True) * 0.1 <= first.audio_processed + 0.2


def test_messages_without_audio_are_answered(served: Served) -> None:
    silent = [Request(audio_content=b"")] * 3
    assert len(conversation(served, [opening(), *silent, *audio(pcm(speak("go")), 1 << 20), *silent])) in (7, 8)


def test_finals_come_before_the_newest_interim() -> None:
    """One response for much audio: no interim result that is out of date."""

    def result(text: str, is_final: bool) -> Result:
        return Result((Alternative(text, 1.0, ()),), is_final, 0.0, 1.0)

    begin = Activity(ActivityKind.BEGIN, 0.0)
    old, newer, newest, other = (result(text, is_final=False) for text in "abcd")
    final = result("e", is_final=True)
    heard: list[tuple[int, Event]] = [(0, begin), (0, old), (1, other), (0, final), (0, newer), (0, newest)]
    assert riva_messages.news(heard) == [(0, final), (1, other), (0, newest)]
    assert riva_messages.news([(0, old), (0, final)]) == [(0, final)]


# --- the end of an utterance by force ---


@pytest.mark.parametrize("fields", [{}, {"audio_content": b""}, {"audio_content": bytes(320)}])
def test_force_eou(served: Served, fields: dict[str, bytes]) -> None:
    """The final result is in the response to the message that asks for it, without any pause in the audio."""
    spoken = audio(pcm(speak("go", pause=0.1)), 1 << 20)
    force = Request(runtime_config={"force_eou": "true"}, **fields)  # type: ignore[arg-type]
    requests = [opening(), *spoken, force, *spoken, force, *audio(bytes(3200))]
    responses = conversation(served, requests)
    assert [finals([response]) for response in responses[:5]] == [[], ["go"], [], [" go"], []]
    assert finals(responses[5:]) == []


def test_force_eou_without_anything_said(served: Served) -> None:
    force = Request(runtime_config={"force_eou": "TRUE"})
    refrain = Request(runtime_config={"force_eou": "false"})
    responses = conversation(served, [opening(), force, refrain, force, *audio(pcm(speak("go")))])
    assert finals(responses) == ["go"]
    assert not any(response.results for response in responses[:3])


@pytest.mark.parametrize(
    ("runtime", "text"),
    [
        ({"force_end": "true"}, "Invalid runtime_config: 'force_end' is not known. Select from {force_eou}."),
        ({"force_eou": "now"}, "Invalid runtime_config: force_eou is 'now'; it must be true or false."),
    ],
)
def test_wrong_runtime_config(served: Served, runtime: dict[str, str], text: str) -> None:
    assert refusal(lambda: stream(served, [opening(), Request(runtime_config=runtime)])) == (INVALID, text)


# --- audio ---


@pytest.mark.parametrize("size", [10, 777, 3200, 1 << 20])
def test_header_in_the_first_chunks(served: Served, size: int) -> None:
    """As Riva's file script streams: nothing is said about the audio, and the file comes with its header."""
    data = encoded(TWO[: 6 * RATE], "WAV", "PCM_16")
    unsaid = config(encoding=0, sample_rate_hertz=0)
    requests = audio(data, size)
    responses = stream(served, [opening(unsaid), *requests])
    assert len(responses) in (len(requests), len(requests) + 1)
    assert finals(responses) == texts(recognize(served, data, unsaid)) == ["go north", " it's here"]


@pytest.mark.parametrize(
    ("encoding", "container", "subtype", "rate"),
    [
        (pb.FLAC, "FLAC", "PCM_16", 16000),
        (pb.OGGOPUS, "OGG", "OPUS", 48000),
        (pb.ENCODING_UNSPECIFIED, "OGG", "OPUS", 48000),
        (pb.MULAW, "RAW", "ULAW", 8000),
        (pb.ALAW, "RAW", "ALAW", 8000),
    ],
)
def test_encodings(served: Served, encoding: int, container: str, subtype: str, rate: int) -> None:
    """Riva's number for Opus is Google's for AMR."""
    data = encoded(speak("a bad cab", rate=rate), container, subtype, rate)
    said = config(encoding=encoding, sample_rate_hertz=rate if container == "RAW" else 0)
    assert texts(recognize(served, data, said)) == ["a bad cab"]
    assert finals(stream(served, [opening(said), *audio(data, 999)])) == ["a bad cab"]


def test_channels(served: Served) -> None:
    stereo = pcm(np.stack([speak("left"), speak("kept")], axis=1))
    first = recognize(served, stereo, config(audio_channel_count=2))
    assert [(result.channel_tag, *texts(first)) for result in first.results] == [(1, "left")]
    each = config(audio_channel_count=2, enable_separate_recognition_per_channel=True)
    found = [(r.channel_tag, r.alternatives[0].transcript) for r in recognize(served, stereo, each).results]
    assert sorted(found) == [(1, "left"), (2, "kept")]
    requests = audio(stereo)
    responses = conversation(served, [opening(each, interim_results=True), *requests])
    assert len(responses) in (len(requests), len(requests) + 1)
    results = [result for response in responses for result in response.results]
    assert {r.channel_tag: r.alternatives[0].transcript for r in results if r.is_final} == {1: "left", 2: "kept"}
    assert {r.channel_tag for r in results if not r.is_final} == {1, 2}


def test_a_recording_of_many_utterances(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """More results than may wait for a reader: they are taken while the rest is fed."""
    monkeypatch.setattr(session, "_MAX_OUTBOX", 12)
    many = pcm(np.concatenate([speak("a", pause=0.5)] * 25))
    assert texts(recognize(served, many)) == ["a", *[" a"] * 24]
    (first, *rest) = stream(served, [opening(), Request(audio_content=many)])
    assert finals([first, *rest]) == ["a", *[" a"] * 24]


# --- what answers hold ---


def test_words_and_times(served: Served) -> None:
    """Milliseconds, and seconds of audio."""
    wanted = config(enable_word_time_offsets=True)
    first, second = recognize(served, pcm(TWO), wanted).results
    words = [*first.alternatives[0].words, *second.alternatives[0].words]
    assert [word.word for word in words] == ["go", "north", "it's", "here"]
    begin = 600 + 8 * 200 + 1500 + 300
    assert [word.start_time for word in words] == pytest.approx([300, 900, begin, begin + 1000], abs=30)
    assert all(0.9 < word.confidence <= 1 and word.end_time > word.start_time for word in words)
    assert {word.language_code for word in words} == {"en-US"} == {*first.alternatives[0].language_code}
    assert 0 < first.audio_processed < second.audio_processed <= len(TWO) / RATE + 0.01
    assert not recognize(served, pcm(TWO)).results[0].alternatives[0].words
    assert 0.9 < first.alternatives[0].confidence <= 1


def test_interims(served: Served) -> None:
    responses = stream(served, [opening(interim_results=True), *audio(pcm(TWO))])
    results = [result for response in responses for result in response.results]
    interims = [result for result in results if not result.is_final]
    assert interims[-1].alternatives[0].transcript == " it's here"
    assert all(0 < result.stability <= 1 and not result.alternatives[0].confidence for result in interims)
    assert all(not result.stability for result in results if result.is_final)
    assert [r.audio_processed for r in results] == sorted(r.audio_processed for r in results)
    assert not any(r for response in stream(served, [opening(), *audio(pcm(PAUSE))]) for r in response.results)


def test_alternatives(served: Served) -> None:
    (result,) = recognize(served, pcm(BOTH), config(max_alternatives=3)).results
    found = [alternative.transcript for alternative in result.alternatives]
    assert 1 < len(set(found)) == len(found) <= 3
    assert set("".join(found)) == {"a", "b"}
    assert len(recognize(served, pcm(BOTH)).results[0].alternatives) == 1


def test_request_id(served: Served) -> None:
    asked = pb.RequestId(value="mine")
    unary = served.stub.Recognize(pb.RecognizeRequest(config=config(), audio=bytes(3200), id=asked), timeout=60)
    assert unary.id == asked
    assert not recognize(served, bytes(3200)).HasField("id")
    first, other = opening(), Request(audio_content=bytes(3200), id=pb.RequestId(value="other"))
    first.id.CopyFrom(asked)
    responses = stream(served, [first, *audio(bytes(3200)), other])
    assert [response.id.value for response in responses[:2]] == ["mine", "other"]


# --- what requests ask for ---


def test_boosts(served: Served) -> None:
    """Empty contexts are sent by some clients always; and boosts are on a scale of up to 100."""
    for letter in ("a", "b"):
        for boost in (20, 100):
            contexts = [pb.SpeechContext(), pb.SpeechContext(phrases=[letter], boost=boost)]
            assert texts(recognize(served, pcm(BOTH), config(speech_contexts=contexts))) == [letter]
    empty = config(speech_contexts=[pb.SpeechContext()], max_alternatives=2)
    assert recognize(served, pcm(BOTH), empty) == recognize(served, pcm(BOTH), config(max_alternatives=2))


def test_endpointing(served: Served) -> None:
    """Two utterances with the usual pauses; one where only a longer pause ends them, whichever way that is said."""
    longer = pb.EndpointingConfig(stop_history=4000)
    whole = ["go northit's here"]
    assert texts(recognize(served, pcm(TWO), config(endpointing_config=longer))) == whole
    assert texts(recognize(served, pcm(TWO), config(custom_configuration={"stop_history": "4000"}))) == whole
    assert texts(recognize(served, pcm(TWO), earsight_stop_history="4000")) == whole
    shorter = config(endpointing_config=longer, custom_configuration={"stop_history": "300"})
    assert len(texts(recognize(served, pcm(TWO), shorter))) == 2
    none = config(endpointing_config=pb.EndpointingConfig(stop_threshold=0))
    code, text = refusal(lambda: recognize(served, pcm(TWO), none))
    assert code == INVALID
    assert text.startswith("Invalid settings: stop_threshold is 0")


def test_accepted_fields_change_nothing(served: Served) -> None:
    full = config(
        profanity_filter=True,
        enable_automatic_punctuation=True,
        verbatim_transcripts=True,
        diarization_config=pb.SpeakerDiarizationConfig(max_speaker_count=2),
        endpointing_config=pb.EndpointingConfig(),
    )
    assert recognize(served, pcm(speak("go")), full) == recognize(served, pcm(speak("go")))


@pytest.mark.parametrize(
    ("model", "language", "chosen"),
    [("", "", "de-DE"), ("", "en-US", "en-US"), ("", "en", "en-US"), ("tones", "", "en-US"), ("tones", "en", "en-US")],
)
def test_which_model(served: Served, model: str, language: str, chosen: str) -> None:
    """No language means the model's; no model the first one of the language."""
    (result,) = recognize(served, pcm(speak("go")), config(model=model, language_code=language)).results
    assert result.alternatives[0].language_code == [chosen]


def test_models(served: Served) -> None:
    ask = served.stub.GetRivaSpeechRecognitionConfig
    listed = ask(pb.RivaSpeechRecognitionConfigRequest()).model_config
    named = [(each.model_name, each.parameters["type"], each.parameters["language_code"]) for each in listed]
    assert named == [
        ("klang", "online", "de-DE"),
        ("klang", "offline", "de-DE"),
        ("tones", "online", "en-US"),
        ("tones", "offline", "en-US"),
    ]
    online, offline = ask(pb.RivaSpeechRecognitionConfigRequest(model_name="tones")).model_config
    assert dict(online.parameters) == {
        **dict(offline.parameters),
        "type": "online",
        "streaming": "True",
        "offline": "False",
    }
    expected = {
        "model_name": "tones",
        "sample_rate": "16000",
        "max_alternatives": "30",
        "language_model": "False",
        "start_history": "0",
        "start_threshold": "0.5",
        "stop_history": "800",
        "stop_threshold": "1",
    }
    assert expected.items() <= dict(online.parameters).items()
    assert "stop_history_eou" not in online.parameters  # off, unless a request sets it
    assert refusal(lambda: ask(pb.RivaSpeechRecognitionConfigRequest(model_name="jasper"))) == (
        INVALID,
        "Error: model 'jasper' is not known. Select one of {klang, tones}.",
    )


# --- mistakes ---


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"sample_rate_hertz": 0}, "bad sample rate hertz"),
        ({"encoding": 5}, "bad encoding. It is 5. Select one of {ENCODING_UNSPECIFIED, LINEAR_PCM, FLAC, MULAW, OGG"),
        ({"encoding": 0}, "bad encoding. It is unspecified"),
        ({"max_alternatives": 31}, "bad max_alternatives. It is 31; it must be between 0 and 30"),
        ({"audio_channel_count": 9}, "bad audio_channel_count. It is 9"),
        ({"custom_configuration": {"loudness": "3"}}, "Invalid settings: 'loudness' is not known. Select from {alpha,"),
        ({"diarization_config": pb.SpeakerDiarizationConfig(enable_speaker_diarization=True)}, "diarization_config"),
        ({"model": "jasper"}, "Lang: en-US, Type: {kind}. Model: jasper. Select one of {{klang, tones}}"),
        ({"model": "klang"}, "Error: Unavailable model requested. Lang: en-US, Type: {kind}. Model: klang"),
        ({"speech_contexts": [pb.SpeechContext(phrases=["4"])]}, "'4', which the model cannot write"),
    ],
)
def test_wrong_configs(served: Served, fields: dict[str, object], text: str) -> None:
    attempts = {
        "offline": lambda: recognize(served, bytes(3200), config(**fields)),
        "online": lambda: stream(served, [opening(config(**fields)), *audio(bytes(3200))]),
    }
    for kind, attempt in attempts.items():
        code, details = refusal(attempt)
        assert code == INVALID
        assert (text.format(kind=kind) if "{kind}" in text else text) in details


def test_unavailable_language(served: Served) -> None:
    """Word for word: Riva's own scripts are tested for it."""
    russian = config(language_code="ru-RU")
    text = "Error: Unavailable model requested. Lang: ru-RU, Type: {}"
    assert refusal(lambda: recognize(served, bytes(3200), russian)) == (INVALID, text.format("offline"))
    assert refusal(lambda: stream(served, [opening(russian)])) == (INVALID, text.format("online"))


@pytest.mark.parametrize(
    "requests",
    [
        audio(bytes(3200)),
        [],
        [Request(runtime_config={"force_eou": "true"})],
        [opening(), opening()],
        [opening(), *audio(bytes(3200)), opening()],
        [opening(), Request()],
    ],
    ids=["audio first", "nothing", "force first", "config twice", "config after audio", "empty message"],
)
def test_wrong_order(served: Served, requests: list[Request]) -> None:
    text = "Malordered Data Received. Send exactly one config, followed by audio data."
    assert refusal(lambda: stream(served, requests)) == (INVALID, text)


def test_no_audio_and_too_much(served: Served) -> None:
    empty = (INVALID, "The audio is empty: it holds no samples.")
    assert refusal(lambda: recognize(served, b"")) == empty
    assert refusal(lambda: stream(served, [opening()])) == empty
    code, text = refusal(lambda: recognize(served, bytes(LIMITS.content_bytes + 2)))
    assert (code, text.split(".")[0]) == (INVALID, "Request payload size exceeds the limit: 1048576 bytes")
    silence, flac = encoded(np.zeros(70 * RATE, np.float32), "FLAC", "PCM_16"), config(encoding=pb.FLAC)
    assert "more than 40 seconds" in refusal(lambda: recognize(served, silence, flac))[1]
    too_long = (grpc.StatusCode.OUT_OF_RANGE, "Exceeded maximum allowed stream duration of 60 seconds.")
    assert refusal(lambda: stream(served, [opening(flac), *audio(silence)])) == too_long


def test_headers_come_at_once_and_idleness_ends(served: Served) -> None:
    release = threading.Event()

    def requests() -> Iterator[Request]:
        yield opening()
        release.wait(60)

    call = served.stub.StreamingRecognize(requests(), timeout=60)
    call.initial_metadata()  # while the requests still stand still
    code, text = refusal(lambda: list(call))
    release.set()
    assert (code, text.startswith("Audio Timeout Error")) == (grpc.StatusCode.OUT_OF_RANGE, True)


# --- what an answer waits for ---


def test_an_answer_waits_for_what_is_on_its_way() -> None:
    """The step is over as soon as it is looked at; what it brought reaches the event loop a turn later."""
    result = Result((Alternative("a", 1.0, ()),), True, 0.0, 1.0)

    class Channel:
        busy, steps, waiting = False, 0, 0

        def put(self, samples: Samples) -> bool:
            self.steps += 1
            asyncio.get_running_loop().call_soon(
                self.receiver, SimpleNamespace(events=[result], done=False, error=None)
            )
            return True

        def open(self, engine: object, options: object, receiver: Callable[[object], None], is_bulk: bool) -> Channel:
            self.receiver = receiver
            return self

    call = SimpleNamespace(
        engine=SimpleNamespace(sample_rate=RATE),
        audio_format=AudioFormat("LINEAR16", RATE, 1),
        stream_options=StreamOptions(),
        separate_channels=False,
    )

    async def hear() -> list[session.Heard]:
        line = SimpleNamespace(scheduler=Channel())
        talk = session.Session(
            cast(session.Line, line), cast(Call, call), AssertionError, max_seconds=10.0, ahead_seconds=10.0
        )
        return await talk.hear(bytes(3200))

    assert asyncio.run(hear()) == [(0, result)]
