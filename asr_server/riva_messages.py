"""Riva's messages <-> what the recognizer speaks. No network in here.

The contract is Google's with other numbers here and there, so a request is rewritten as Google's and an answer is
rewritten from Google's: both contracts are read, refused and answered by the one code in messages.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from asr_server import messages, phrases, settings
from asr_server.catalogue import DEFAULT_NAMES, Catalogue
from asr_server.endpoint import USUAL
from asr_server.messages import Call
from asr_server.recognizer import Engine, Event, Result
from asr_server.wire import riva_asr_pb2 as pb
from asr_server.wire import speech_pb2 as google

ONLINE, OFFLINE = "online", "offline"  # what Riva calls the models of the streaming and of the unary method
FORCE_END = "force_eou"

_Encodings = google.RecognitionConfig
_ENCODINGS = {
    pb.ENCODING_UNSPECIFIED: _Encodings.ENCODING_UNSPECIFIED,
    pb.LINEAR_PCM: _Encodings.LINEAR16,
    pb.FLAC: _Encodings.FLAC,
    pb.MULAW: _Encodings.MULAW,
    pb.OGGOPUS: _Encodings.OGG_OPUS,
    pb.ALAW: _Encodings.ALAW,
}


def read_config(config: pb.RecognitionConfig, catalogue: Catalogue, settings: Mapping[str, str] | None = None) -> Call:
    """The request for one recording; `settings` are those of its metadata. ValueError for the client to read."""
    return messages.read_config(_as_google(config, catalogue, OFFLINE), catalogue, settings)


def read_streaming_config(
    config: pb.StreamingRecognitionConfig, catalogue: Catalogue, settings: Mapping[str, str] | None = None
) -> Call:
    """The request for a stream."""
    streaming = google.StreamingRecognitionConfig(
        config=_as_google(config.config, catalogue, ONLINE), interim_results=config.interim_results
    )
    return messages.read_streaming_config(streaming, catalogue, settings)


def forces_end(runtime: Mapping[str, str]) -> bool:
    """Whether a message of a stream ends the utterance."""
    if unknown := sorted(set(runtime) - {FORCE_END}):
        raise ValueError(f"Invalid runtime_config: {unknown[0]!r} is not known. Select from {{{FORCE_END}}}.")
    value = runtime.get(FORCE_END, "false")
    if value.lower() not in ("true", "false"):
        raise ValueError(f"Invalid runtime_config: {FORCE_END} is {value!r}; it must be true or false.")
    return value.lower() == "true"


def models(catalogue: Catalogue, name: str) -> pb.RivaSpeechRecognitionConfigResponse:
    """What there is under a name, or in all under an empty one."""
    engines = {engine.name: engine for engine in catalogue}
    if name and name not in engines:
        raise ValueError(f"Error: model '{name}' is not known. Select one of {{{', '.join(engines)}}}.")
    chosen = [engines[name]] if name else engines.values()
    configs = [
        pb.RivaSpeechRecognitionConfigResponse.Config(model_name=engine.name, parameters=_parameters(engine, kind))
        for engine in chosen
        for kind in (ONLINE, OFFLINE)
    ]
    return pb.RivaSpeechRecognitionConfigResponse(model_config=configs)


def news(heard: Iterable[tuple[int, Event]]) -> list[tuple[int, Result]]:
    """The results that are worth telling: the final ones, then the latest interim one of each channel."""
    finals, interims = [], dict[int, Result]()
    for channel, event in heard:
        if isinstance(event, Result):
            interims.pop(channel, None)
            if event.is_final:
                finals.append((channel, event))
            else:
                interims[channel] = event
    return [*finals, *interims.items()]


class Writer:
    """Answers of one call. The transcripts of a channel's results join to its whole text without a separator."""

    def __init__(self, call: Call) -> None:
        self._google = messages.Writer(call, 0)

    def response(self, finals: Iterable[tuple[int, Result]], request: pb.RecognizeRequest) -> pb.RecognizeResponse:
        """Of the final results, each with its channel."""
        results = [
            pb.SpeechRecognitionResult(
                alternatives=_alternatives(result.alternatives, result.language_code),
                channel_tag=max(result.channel_tag, 1),
                audio_processed=result.result_end_time.ToMilliseconds() / 1000,
            )
            for result in self._google.results(finals)
        ]
        return pb.RecognizeResponse(results=results, id=_id(request))

    def streaming_response(
        self, results: Iterable[tuple[int, Result]], request: pb.StreamingRecognizeRequest
    ) -> pb.StreamingRecognizeResponse:
        """Of what the request brought to light, each with its channel."""
        response = pb.StreamingRecognizeResponse(id=_id(request))
        for channel, heard in results:
            (result,) = self._google.streaming_response(heard, channel).results
            response.results.add(
                alternatives=_alternatives(result.alternatives, result.language_code),
                is_final=result.is_final,
                stability=result.stability,
                channel_tag=max(result.channel_tag, 1),
                audio_processed=result.result_end_time.ToMilliseconds() / 1000,
            )
        return response


def _as_google(config: pb.RecognitionConfig, catalogue: Catalogue, kind: str) -> google.RecognitionConfig:
    return google.RecognitionConfig(
        encoding=_encoding(config.encoding),
        sample_rate_hertz=config.sample_rate_hertz,
        language_code=_language(config, catalogue, kind),
        max_alternatives=config.max_alternatives,
        speech_contexts=_contexts(config.speech_contexts),
        audio_channel_count=config.audio_channel_count,
        enable_word_time_offsets=config.enable_word_time_offsets,
        enable_word_confidence=config.enable_word_time_offsets,
        enable_separate_recognition_per_channel=config.enable_separate_recognition_per_channel,
        model=config.model,
        diarization_config=google.SpeakerDiarizationConfig(
            enable_speaker_diarization=config.diarization_config.enable_speaker_diarization
        ),
        settings={**_pauses(config.endpointing_config), **config.custom_configuration},
    )


def _language(config: pb.RecognitionConfig, catalogue: Catalogue, kind: str) -> str:
    """The one asked for, or that of the model asked for. The error begins, and for a language is, as Riva's."""
    engines = {engine.name: engine for engine in catalogue}
    default = engines.get(config.model) or next(iter(engines.values()), None)
    language = config.language_code or (default.language_code if default else "")
    try:
        catalogue.choose(config.model, language)
    except ValueError:
        text = f"Error: Unavailable model requested. Lang: {language}, Type: {kind}"
        if config.model not in ("", *DEFAULT_NAMES):
            text += f". Model: {config.model}. Select one of {{{', '.join(engines)}}}, or leave it out for the default."
        raise ValueError(text) from None
    return language


def _encoding(number: pb.AudioEncoding.ValueType) -> google.RecognitionConfig.AudioEncoding.ValueType:
    if number not in _ENCODINGS:
        choices = ", ".join(map(pb.AudioEncoding.Name, _ENCODINGS))
        raise ValueError(f"Invalid recognition 'config': bad encoding. It is {number}. Select one of {{{choices}}}.")
    return _ENCODINGS[number]


def _contexts(contexts: Iterable[pb.SpeechContext]) -> Iterator[google.SpeechContext]:
    """Riva's users are told to boost by 20 to 100, on the scale of its decoder; ours ends at the lower of the two."""
    for context in contexts:
        yield google.SpeechContext(phrases=context.phrases, boost=min(context.boost, phrases.MAX_BOOST))


def _pauses(config: pb.EndpointingConfig) -> dict[str, str]:
    """Its fields are named as our settings are; those that were not set are left out."""
    return {field.name: f"{value:g}" for field, value in config.ListFields()}


def _alternatives(
    alternatives: Iterable[google.SpeechRecognitionAlternative], language: str
) -> Iterator[pb.SpeechRecognitionAlternative]:
    for each in alternatives:
        yield pb.SpeechRecognitionAlternative(
            transcript=each.transcript,
            confidence=each.confidence,
            words=(_word(word, language) for word in each.words),
            language_code=[language],
        )


def _word(word: google.WordInfo, language: str) -> pb.WordInfo:
    return pb.WordInfo(
        start_time=word.start_time.ToMilliseconds(),
        end_time=word.end_time.ToMilliseconds(),
        word=word.word,
        confidence=word.confidence,
        language_code=language,
    )


def _id(request: pb.RecognizeRequest | pb.StreamingRecognizeRequest) -> pb.RequestId | None:
    return request.id if request.HasField("id") else None


def _parameters(engine: Engine, kind: str) -> dict[str, str]:
    """What clients list models by, and what a request changes with `endpointing_config`."""
    pauses = {name: (getattr(USUAL, field), read) for name, (field, read) in settings.ENDPOINT.items()}
    return {
        "type": kind,
        "streaming": str(kind == ONLINE),
        "offline": str(kind == OFFLINE),
        "model_name": engine.name,
        "version": engine.bundle.version,
        "language_code": engine.language_code,
        "sample_rate": str(engine.sample_rate),
        "max_alternatives": str(messages.MAX_ALTERNATIVES),
        "language_model": str(engine.bundle.language_model is not None),
        **{
            name: f"{value if read is float else value * 1000:g}"
            for name, (value, read) in pauses.items()
            if value is not None
        },
    }
