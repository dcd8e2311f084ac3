"""Protocol messages <-> what the recognizer speaks. No network in here.

Requests become frozen options, or a ValueError whose text is what the client gets to read with INVALID_ARGUMENT.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from google.protobuf.duration_pb2 import Duration

from asr_server import phrases
from asr_server.audio import AudioFormat
from asr_server.catalogue import Catalogue
from asr_server.endpoint import USUAL, EndpointOptions
from asr_server.language_model import LanguageModel
from asr_server.recognizer import Activity, ActivityKind, Alternative, Engine, Event, Result, StreamOptions
from asr_server.replacements import Replacement, checked, normalise
from asr_server.settings import read as read_settings
from asr_server.wire import speech_pb2 as pb

MAX_ALTERNATIVES = 30

MALORDERED = "Malordered Data Received. Send exactly one config, followed by audio data."
NO_AUDIO = "RecognitionAudio not set."
EMPTY_AUDIO = "The audio is empty: it holds no samples."

_EVENTS = {
    ActivityKind.BEGIN: pb.StreamingRecognizeResponse.SPEECH_ACTIVITY_BEGIN,
    ActivityKind.END: pb.StreamingRecognizeResponse.SPEECH_ACTIVITY_END,
    ActivityKind.TIMEOUT: pb.StreamingRecognizeResponse.SPEECH_ACTIVITY_TIMEOUT,
    ActivityKind.END_OF_SINGLE_UTTERANCE: pb.StreamingRecognizeResponse.END_OF_SINGLE_UTTERANCE,
}


@dataclass(frozen=True)
class Call:
    """What one RPC asked for."""

    engine: Engine
    audio_format: AudioFormat
    stream_options: StreamOptions
    word_times: bool = False
    word_confidence: bool = False
    separate_channels: bool = False
    replacements: tuple[Replacement, ...] = ()


def read_config(config: pb.RecognitionConfig, catalogue: Catalogue, settings: Mapping[str, str] | None = None) -> Call:
    """The request for one recording; `settings` are those of its metadata. Builds hot words, so it may take a while."""
    if not 0 <= config.max_alternatives <= MAX_ALTERNATIVES:
        raise ValueError(
            f"Invalid recognition 'config': bad max_alternatives. It is {config.max_alternatives}; "
            f"it must be between 0 and {MAX_ALTERNATIVES}."
        )
    if config.diarization_config.enable_speaker_diarization:
        raise ValueError("Invalid recognition 'config': diarization_config is not supported by any model.")
    engine = catalogue.choose(config.model, config.language_code)
    boosts = phrases.boosts(config.adaptation if config.HasField("adaptation") else None, config.speech_contexts)
    return Call(
        engine=engine,
        audio_format=AudioFormat(_encoding(config.encoding), config.sample_rate_hertz, config.audio_channel_count),
        stream_options=stream_options(
            engine, catalogue, {**config.settings, **(settings or {})}, boosts, config.max_alternatives
        ),
        word_times=config.enable_word_time_offsets,
        word_confidence=config.enable_word_confidence,
        separate_channels=config.enable_separate_recognition_per_channel,
        replacements=checked(
            Replacement(entry.search, entry.replace, entry.case_sensitive)
            for entry in config.transcript_normalization.entries
        ),
    )


def stream_options(
    engine: Engine,
    catalogue: Catalogue,
    settings: Mapping[str, str],
    boosts: Mapping[str, float],
    max_alternatives: int,
    endpoint: EndpointOptions = USUAL,
) -> StreamOptions:
    """How the streams of a call are decoded. ValueError where settings, phrases and model do not fit together."""
    chosen = read_settings(settings, engine.bundle.decoding, endpoint)
    own = chosen.language_model is None
    language_model = None if own else catalogue.language_model(chosen.language_model or "", engine)
    decoding = chosen.decoding
    if not own and not chosen.lexicon_is_chosen and not _has_words(language_model):
        decoding = replace(decoding, lexicon=False)  # it was tuned with the bundle's language model
    options = StreamOptions(
        max_alternatives=max_alternatives,
        endpoint=chosen.endpoint,
        decoding=decoding,
        language_model=language_model,
        bundled_language_model=own,
        hot_words=phrases.hot_words(boosts, engine.bundle.alphabet),
    )
    engine.stream(options)  # what does not fit shows here, not at the first audio
    return options


def _has_words(language_model: LanguageModel | None) -> bool:
    return language_model is not None and language_model.unit == "word" and language_model.lexicon is not None


def read_streaming_config(
    config: pb.StreamingRecognitionConfig, catalogue: Catalogue, settings: Mapping[str, str] | None = None
) -> Call:
    """The request for a stream."""
    call = read_config(config.config, catalogue, settings)
    activity, timeout = config.enable_voice_activity_events, config.voice_activity_timeout
    if config.HasField("voice_activity_timeout") and not activity:
        raise ValueError(
            "Invalid recognition 'config': voice_activity_timeout needs enable_voice_activity_events to be true."
        )
    options = replace(
        call.stream_options,
        interim_results=config.interim_results,
        single_utterance=config.single_utterance,
        activity_events=activity,
        speech_start_timeout=_seconds(timeout, "speech_start_timeout"),
        speech_end_timeout=_seconds(timeout, "speech_end_timeout"),
    )
    return replace(call, stream_options=options)


class Writer:
    """Answers of one call. The transcripts of a channel's results join to its whole text without a separator."""

    def __init__(self, call: Call, request_id: int) -> None:
        self._call = call
        self._request_id = request_id
        self._begun: set[int] = set()  # channels with a final result: a space comes before the next one

    def streaming_response(self, event: Event, channel: int = 0) -> pb.StreamingRecognizeResponse:
        if isinstance(event, Activity):
            return pb.StreamingRecognizeResponse(
                speech_event_type=_EVENTS[event.kind],
                speech_event_time=_duration(event.time),
                request_id=self._request_id,
            )
        result = pb.StreamingRecognitionResult(
            alternatives=self._alternatives(event, channel),
            is_final=event.is_final,
            stability=event.stability,
            result_end_time=_duration(event.end),
            channel_tag=self._tag(channel),
            language_code=self._call.engine.language_code,
        )
        if event.is_final:
            self._begun.add(channel)
        return pb.StreamingRecognizeResponse(results=[result], request_id=self._request_id)

    def response(self, results: Iterable[tuple[int, Result]], seconds: float) -> pb.RecognizeResponse:
        """Of the final results, each with its channel, of so many seconds of audio."""
        response = pb.RecognizeResponse(request_id=self._request_id, results=self.results(results))
        response.total_billed_time.FromSeconds(math.ceil(seconds))
        return response

    def results(self, results: Iterable[tuple[int, Result]]) -> list[pb.SpeechRecognitionResult]:
        """In the order in which they end."""
        written = []
        for channel, result in sorted(results, key=lambda pair: pair[1].end):
            written.append(
                pb.SpeechRecognitionResult(
                    alternatives=self._alternatives(result, channel),
                    channel_tag=self._tag(channel),
                    result_end_time=_duration(result.end),
                    language_code=self._call.engine.language_code,
                )
            )
            self._begun.add(channel)
        return written

    def _tag(self, channel: int) -> int:
        return channel + 1 if self._call.separate_channels else 0

    def _alternatives(self, result: Result, channel: int) -> list[pb.SpeechRecognitionAlternative]:
        separator = " " if channel in self._begun else ""
        first, *others = (self._alternative(each, result.is_final, separator) for each in result.alternatives)
        if result.is_final:  # the contract: only there
            first.confidence = result.alternatives[0].confidence
        return [first, *others]

    def _alternative(self, alternative: Alternative, is_final: bool, separator: str) -> pb.SpeechRecognitionAlternative:
        text = normalise(alternative.text, self._call.replacements)
        message = pb.SpeechRecognitionAlternative(transcript=separator + text)
        if is_final and (self._call.word_times or self._call.word_confidence):
            for word in alternative.words:
                info = message.words.add(word=word.text)
                if self._call.word_times:
                    info.start_time.CopyFrom(_duration(word.start))
                    info.end_time.CopyFrom(_duration(word.end))
                if self._call.word_confidence:
                    info.confidence = word.confidence
        return message


def _encoding(number: pb.RecognitionConfig.AudioEncoding.ValueType) -> str:
    """The encoding's name, "" where it is left to the header."""
    if number == pb.RecognitionConfig.ENCODING_UNSPECIFIED:
        return ""
    known = pb.RecognitionConfig.AudioEncoding.values()
    return pb.RecognitionConfig.AudioEncoding.Name(number) if number in known else f"number {number}"


def _seconds(timeout: pb.StreamingRecognitionConfig.VoiceActivityTimeout, field: str) -> float | None:
    if not timeout.HasField(field):  # type: ignore[arg-type]
        return None
    duration: Duration = getattr(timeout, field)
    seconds = duration.seconds + duration.nanos * 1e-9
    if seconds < 0:
        raise ValueError(f"Invalid recognition 'config': {field} is {seconds} seconds; it must not be negative.")
    return seconds


def _duration(seconds: float) -> Duration:
    """Rounded to milliseconds, which is finer than any model's frames."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return Duration(seconds=whole, nanos=milliseconds * 1_000_000)
