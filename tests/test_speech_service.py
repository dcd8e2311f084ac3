"""The speech service over a real port: what clients send, what they get, and the status of every mistake."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import soundfile
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from asr_server import bundle
from asr_server.options import Limits, ServerOptions
from asr_server.pcm import LINEAR16, Samples
from asr_server.recognizer import Engine
from asr_server.wire import speech_pb2 as pb
from asr_server.wire import speech_pb2_grpc
from tests.speech_fixtures import RATE, pcm, save_toy_bundle, serving, speak

Config = pb.RecognitionConfig
Response = pb.StreamingRecognizeResponse

LIMITS = Limits(content_bytes=1 << 20, unary_seconds=20, stream_seconds=60, idle_seconds=4.0, calls=3)
PAUSE = np.zeros(round(1.5 * RATE), np.float32)
TWO = np.concatenate([speak("go north"), PAUSE, speak("it's here"), PAUSE])


@dataclass(frozen=True)
class Served:
    """A running server with two toy bundles: tones (en-US) and klang (de-DE)."""

    address: str
    channel: grpc.Channel
    stub: speech_pb2_grpc.SpeechStub
    models: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = tmp_path_factory.mktemp("models")
    save_toy_bundle(models, "tones")
    save_toy_bundle(models, "klang", language_code="de-DE")
    with serving(ServerOptions(port=0, models=(models,), limits=LIMITS, drain_seconds=0.5)) as server:
        with grpc.insecure_channel(server.address) as channel:
            yield Served(server.address, channel, speech_pb2_grpc.SpeechStub(channel), models)


def config(**fields: object) -> Config:
    """LINEAR16 at 16 kHz in English, unless said otherwise."""
    usual = {"encoding": Config.LINEAR16, "sample_rate_hertz": RATE, "language_code": "en-US"}
    return Config(**{**usual, **fields})  # type: ignore[arg-type]


def opening(recognition: Config | None = None, **fields: object) -> pb.StreamingRecognizeRequest:
    streaming = pb.StreamingRecognitionConfig(config=recognition or config(), **fields)  # type: ignore[arg-type]
    return pb.StreamingRecognizeRequest(streaming_config=streaming)


def audio(data: bytes, size: int = 3200) -> list[pb.StreamingRecognizeRequest]:
    return [pb.StreamingRecognizeRequest(audio_content=data[i : i + size]) for i in range(0, len(data), size)]


def recognize(served: Served, content: bytes, recognition: Config | None = None) -> pb.RecognizeResponse:
    request = pb.RecognizeRequest(config=recognition or config(), audio=pb.RecognitionAudio(content=content))
    return served.stub.Recognize(request, timeout=120)


def stream(served: Served, requests: Iterable[pb.StreamingRecognizeRequest]) -> list[Response]:
    return list(served.stub.StreamingRecognize(iter(requests), timeout=120))


@contextmanager
def held_open() -> Iterator[Iterator[pb.StreamingRecognizeRequest]]:
    """Requests of a caller who says what is wanted and then nothing, until the context ends."""
    release = threading.Event()

    def requests() -> Iterator[pb.StreamingRecognizeRequest]:
        yield opening()
        release.wait(60)

    try:
        yield requests()
    finally:
        release.set()


def finals(responses: Iterable[Response]) -> list[str]:
    return [r.alternatives[0].transcript for response in responses for r in response.results if r.is_final]


def encoded(samples: Samples, rate: int, container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def refusal(attempt: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """The status that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        attempt()
    return caught.value.code(), caught.value.details() or ""


# --- Recognize ---


def test_recognize(served: Served) -> None:
    response = recognize(served, pcm(TWO))
    assert [result.alternatives[0].transcript for result in response.results] == ["go north", " it's here"]
    assert "".join(result.alternatives[0].transcript for result in response.results) == "go north it's here"
    assert [result.language_code for result in response.results] == ["en-US", "en-US"]
    assert response.request_id > 0
    assert not response.results[0].alternatives[0].words
    assert 0.9 < response.results[0].alternatives[0].confidence <= 1


def test_word_times_and_confidence(served: Served) -> None:
    response = recognize(served, pcm(TWO), config(enable_word_time_offsets=True, enable_word_confidence=True))
    words = [word for result in response.results for word in result.alternatives[0].words]
    assert [word.word for word in words] == ["go", "north", "it's", "here"]
    starts = [word.start_time.ToMilliseconds() / 1000 for word in words]
    second = 0.6 + 8 * 0.2 + 1.5 + 0.3
    assert starts == pytest.approx([0.3, 0.9, second, second + 1.0], abs=0.03)
    assert all(0.9 < word.confidence <= 1 for word in words)
    only_times = recognize(served, pcm(TWO), config(enable_word_time_offsets=True))
    assert only_times.results[0].alternatives[0].words[0].confidence == 0


def test_alternatives(served: Served) -> None:
    """Two pitches at once: the model cannot decide, and says so."""
    both = speak("a") * 0.5 + speak("b") * 0.5
    (result,) = recognize(served, pcm(both), config(max_alternatives=5)).results
    texts = [alternative.transcript for alternative in result.alternatives]
    assert 1 < len(set(texts)) == len(texts) <= 5
    assert set("".join(texts)) == {"a", "b"}
    assert result.alternatives[0].confidence > 0
    assert all(alternative.confidence == 0 for alternative in result.alternatives[1:])
    assert len(recognize(served, pcm(both), config(max_alternatives=0)).results[0].alternatives) == 1


@pytest.mark.parametrize(
    ("container", "subtype", "fields"),
    [
        ("WAV", "PCM_16", {"encoding": 0, "sample_rate_hertz": 0}),
        ("WAV", "PCM_16", {}),
        ("WAV", "PCM_24", {"encoding": 0}),
        ("FLAC", "PCM_16", {"encoding": Config.FLAC, "sample_rate_hertz": 0}),
        ("FLAC", "PCM_16", {"encoding": 0, "sample_rate_hertz": 0}),
    ],
)
def test_containers(served: Served, container: str, subtype: str, fields: dict[str, object]) -> None:
    data = encoded(speak("hello you"), RATE, container, subtype)
    assert recognize(served, data, config(**fields)).results[0].alternatives[0].transcript == "hello you"
    in_stream = stream(served, [opening(config(**fields)), *audio(data, 777)])
    assert finals(in_stream) == ["hello you"]


def test_telephone(served: Served) -> None:
    samples = speak("a bad cab", rate=8000)
    data = encoded(samples, 8000, "RAW", "ULAW")
    fields = {"encoding": Config.MULAW, "sample_rate_hertz": 8000}
    assert recognize(served, data, config(**fields)).results[0].alternatives[0].transcript == "a bad cab"


def test_channels(served: Served) -> None:
    stereo = np.stack([speak("left"), speak("kept")], axis=1)
    response = recognize(served, pcm(stereo), config(audio_channel_count=2))
    assert response.results[0].alternatives[0].transcript == "left"


def test_silence_gets_no_results(served: Served) -> None:
    assert not recognize(served, pcm(PAUSE)).results
    assert stream(served, [opening(), *audio(pcm(PAUSE))]) == []


# --- StreamingRecognize ---


def test_stream_equals_recognize(served: Served) -> None:
    whole = [result.alternatives[0].transcript for result in recognize(served, pcm(TWO)).results]
    for size in (320, 3200, 50_000):
        assert finals(stream(served, [opening(), *audio(pcm(TWO), size)])) == whole


def test_stream_equals_offline(served: Served) -> None:
    engine = Engine(bundle.load(served.models / "tones"))
    noisy = np.clip(TWO + 0.02 * np.random.default_rng(0).standard_normal(len(TWO)), -1, 1).astype(np.float32)
    offline = engine.transcribe(LINEAR16.decode(pcm(noisy)))
    response = finals(stream(served, [opening(), *audio(pcm(noisy), 1000)]))
    assert [text.strip() for text in response] == [result.text for result in offline]


def test_interim_results(served: Served) -> None:
    responses = stream(served, [opening(interim_results=True), *audio(pcm(TWO))])
    results = [result for response in responses for result in response.results]
    interims = [result for result in results if not result.is_final]
    assert interims[0].alternatives[0].transcript == "g"
    assert interims[-1].alternatives[0].transcript == " it's here"
    assert all(0 < result.stability <= 1 and not result.alternatives[0].confidence for result in interims)
    assert all(result.stability == 0 for result in results if result.is_final)
    assert finals(responses) == ["go north", " it's here"]


def test_interims_come_while_audio_still_flows(served: Served) -> None:
    """The second half of the audio is only sent once an interim has arrived."""
    pieces = audio(pcm(TWO))
    seen: list[Response] = []

    def requests() -> Iterator[pb.StreamingRecognizeRequest]:
        yield opening(interim_results=True)
        yield from pieces[:15]
        deadline = time.monotonic() + 60
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen
        yield from pieces[15:]

    for response in served.stub.StreamingRecognize(requests(), timeout=120):
        seen += [response]
    assert finals(seen) == ["go north", " it's here"]


def test_headers_come_before_any_audio(served: Served) -> None:
    """A client that sends no audio before it has seen the headers is not left waiting."""
    with held_open() as requests:
        call = served.stub.StreamingRecognize(requests, timeout=60)
        call.initial_metadata()  # while the requests still stand still
        call.cancel()


def test_single_utterance(served: Served) -> None:
    responses = stream(served, [opening(single_utterance=True), *audio(pcm(TWO))])
    assert responses[0].speech_event_type == Response.END_OF_SINGLE_UTTERANCE
    assert not responses[0].results
    assert finals(responses) == ["go north"]


def test_voice_activity(served: Served) -> None:
    responses = stream(served, [opening(enable_voice_activity_events=True), *audio(pcm(TWO))])
    order = [response.speech_event_type or finals([response])[0] for response in responses]
    begin, end = Response.SPEECH_ACTIVITY_BEGIN, Response.SPEECH_ACTIVITY_END
    assert order == [begin, end, "go north", begin, end, " it's here"]
    assert responses[0].speech_event_time.ToMilliseconds() == pytest.approx(300, abs=30)


def test_voice_activity_timeout(served: Served) -> None:
    first = opening(enable_voice_activity_events=True)
    first.streaming_config.voice_activity_timeout.speech_start_timeout.FromMilliseconds(500)
    (response,) = stream(served, [first, *audio(pcm(PAUSE))])
    assert response.speech_event_type == Response.SPEECH_ACTIVITY_TIMEOUT


def test_accepted_fields_change_nothing(served: Served) -> None:
    full = config(
        profanity_filter=True,
        speech_contexts=[pb.SpeechContext()],
        enable_automatic_punctuation=True,
        use_enhanced=True,
        metadata=pb.RecognitionMetadata(interaction_type=3),
        alternative_language_codes=["de-DE"],
        adaptation=pb.SpeechAdaptation(phrase_sets=[pb.PhraseSet(name="x", boost=2)]),
        diarization_config=pb.SpeakerDiarizationConfig(),
    )
    assert recognize(served, pcm(speak("go")), full).results[0].alternatives[0].transcript == "go"


# --- which model ---


@pytest.mark.parametrize("name", ["", "default", "latest_long", "tones"])
def test_model_names(served: Served, name: str) -> None:
    assert recognize(served, pcm(speak("go")), config(model=name)).results[0].language_code == "en-US"


@pytest.mark.parametrize(("model", "language"), [("klang", "de-DE"), ("", "de-DE"), ("", "de"), ("", "DE-de")])
def test_language_chooses_a_model(served: Served, model: str, language: str) -> None:
    response = recognize(served, pcm(speak("go")), config(model=model, language_code=language))
    assert response.results[0].language_code == "de-DE"


# --- mistakes ---

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"sample_rate_hertz": 0}, "bad sample rate hertz"),
        ({"sample_rate_hertz": 7999}, "bad sample rate hertz. It is 7999; it must be between 8000 and 48000"),
        ({"sample_rate_hertz": 96000}, "bad sample rate hertz"),
        (
            {"encoding": Config.SPEEX_WITH_HEADER_BYTE},
            "bad encoding. SPEEX_WITH_HEADER_BYTE is not supported. Select one of {LINEAR16, MULAW, ALAW, FLAC, OGG_O",
        ),
        ({"encoding": 77}, "bad encoding. number 77"),
        ({"encoding": 0}, "bad encoding. It is unspecified"),
        ({"model": "jasper"}, "model 'jasper' is not known. Select one of {klang, tones}"),
        ({"language_code": ""}, "language_code is empty. Select one of {de-DE, en-US}"),
        ({"language_code": "fr-FR"}, "language_code 'fr-FR' is not supported by any model"),
        ({"language_code": "de-DE", "model": "tones"}, "not supported by model 'tones'"),
        ({"max_alternatives": 31}, "bad max_alternatives. It is 31; it must be between 0 and 30"),
        ({"max_alternatives": -1}, "bad max_alternatives"),
        ({"audio_channel_count": 9}, "bad audio_channel_count. It is 9"),
        ({"diarization_config": pb.SpeakerDiarizationConfig(enable_speaker_diarization=True)}, "diarization_config"),
    ],
)
def test_wrong_configs(served: Served, fields: dict[str, object], text: str) -> None:
    unary = refusal(lambda: recognize(served, bytes(3200), config(**fields)))
    streaming = refusal(lambda: stream(served, [opening(config(**fields)), *audio(bytes(3200))]))
    for code, details in (unary, streaming):
        assert code == INVALID
        assert text in details


@pytest.mark.parametrize(
    "requests",
    [
        audio(bytes(3200)),
        [],
        [pb.StreamingRecognizeRequest()],
        [opening(), opening()],
        [opening(), *audio(bytes(3200)), opening()],
        [opening(), pb.StreamingRecognizeRequest()],
    ],
    ids=["audio first", "nothing", "empty message", "config twice", "config after audio", "empty second message"],
)
def test_wrong_order(served: Served, requests: list[pb.StreamingRecognizeRequest]) -> None:
    text = "Malordered Data Received. Send exactly one config, followed by audio data."
    assert refusal(lambda: stream(served, requests)) == (INVALID, text)


def test_empty_audio(served: Served) -> None:
    header = encoded(np.zeros(0, np.float32), RATE, "WAV", "PCM_16")
    empty = (INVALID, "The audio is empty: it holds no samples.")
    assert refusal(lambda: recognize(served, b"")) == (INVALID, "RecognitionAudio not set.")
    assert refusal(lambda: recognize(served, header)) == empty
    assert refusal(lambda: stream(served, [opening()])) == empty
    assert refusal(lambda: stream(served, [opening(), *audio(header)])) == empty


def test_header_mismatch(served: Served) -> None:
    data = encoded(speak("go"), 22050, "WAV", "PCM_16")
    text = (
        "sample_rate_hertz (16000) in RecognitionConfig must either be omitted or match the value in the "
        "WAV header (22050)."
    )
    assert refusal(lambda: recognize(served, data)) == (INVALID, text)
    assert refusal(lambda: stream(served, [opening(), *audio(data, 10)])) == (INVALID, text)


def test_uri_is_refused(served: Served) -> None:
    request = pb.RecognizeRequest(config=config(), audio=pb.RecognitionAudio(uri="gs://bucket/talk.wav"))
    code, details = refusal(lambda: served.stub.Recognize(request))
    assert code == INVALID
    assert "'gs://bucket/talk.wav' is not supported" in details


def test_timeout_needs_activity_events(served: Served) -> None:
    first = opening()
    first.streaming_config.voice_activity_timeout.speech_end_timeout.FromSeconds(1)
    code, details = refusal(lambda: stream(served, [first, *audio(bytes(3200))]))
    assert code == INVALID
    assert "enable_voice_activity_events" in details


# --- limits ---


def test_too_many_bytes(served: Served) -> None:
    code, details = refusal(lambda: recognize(served, bytes(LIMITS.content_bytes + 2)))
    assert code == INVALID
    assert "Request payload size exceeds the limit: 1048576 bytes." in details


def test_too_long_audio(served: Served) -> None:
    silence = encoded(np.zeros(70 * RATE, np.float32), RATE, "FLAC", "PCM_16")
    flac = config(encoding=Config.FLAC)
    code, details = refusal(lambda: recognize(served, silence, flac))
    assert code == INVALID
    assert "more than 20 seconds" in details
    too_long = (grpc.StatusCode.OUT_OF_RANGE, "Exceeded maximum allowed stream duration of 60 seconds.")
    assert refusal(lambda: stream(served, [opening(flac), *audio(silence)])) == too_long


def test_no_audio_for_long(served: Served) -> None:
    with held_open() as requests:
        code, details = refusal(lambda: stream(served, requests))
    assert code == grpc.StatusCode.OUT_OF_RANGE
    assert details.startswith("Audio Timeout Error: Long duration elapsed without audio.")


def test_too_many_calls_and_cancellation(served: Served) -> None:
    """Calls beyond the limit are refused; cancelled calls make room."""
    with ExitStack() as stack:
        waiting = [stack.enter_context(held_open()) for _ in range(LIMITS.calls)]
        calls = [served.stub.StreamingRecognize(requests, timeout=60) for requests in waiting]
        for call in calls:
            call.initial_metadata()
        code, _ = refusal(lambda: recognize(served, pcm(speak("go"))))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()
    deadline = time.monotonic() + 60
    while refused(served) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not refused(served)


def refused(served: Served) -> bool:
    try:
        recognize(served, pcm(speak("go")))
    except grpc.RpcError as error:
        return error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    return False


def test_streams_beside_each_other(served: Served) -> None:
    texts = ["north", "south", "west"]
    calls = [served.stub.StreamingRecognize(iter([opening(), *audio(pcm(speak(t)))]), timeout=120) for t in texts]
    assert [finals(call) for call in calls] == [[text] for text in texts]


# --- the other names and services ---


def test_googles_name(served: Served) -> None:
    call = served.channel.unary_unary(
        "/google.cloud.speech.v1.Speech/Recognize",
        request_serializer=pb.RecognizeRequest.SerializeToString,
        response_deserializer=pb.RecognizeResponse.FromString,
    )
    request = pb.RecognizeRequest(config=config(), audio=pb.RecognitionAudio(content=pcm(speak("go"))))
    assert call(request).results[0].alternatives[0].transcript == "go"


@pytest.mark.parametrize("name", ["", "earsight.speech.v1.Speech", "google.cloud.speech.v1.Speech"])
def test_health(served: Served, name: str) -> None:
    answer = health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection(served: Served) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="earsight.speech.v1.Speech"),
    ]
    listed, file = stub.ServerReflectionInfo(iter(requests))
    assert "earsight.speech.v1.Speech" in {service.name for service in listed.list_services_response.service}
    assert file.file_descriptor_response.file_descriptor_proto
