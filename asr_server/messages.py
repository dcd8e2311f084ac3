"""Protocol messages <-> what the recognizer speaks. No network in here.

Requests become frozen options, or a ValueError whose text is what the client gets to read with INVALID_ARGUMENT.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from asr_server.audio import AudioFormat
from asr_server.catalogue import Catalogue
from asr_server.recognizer import Activity, ActivityKind, Alternative, Engine, Event, Result, StreamOptions
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
    word_times: bool
    word_confidence: bool


def read_config(config: pb.RecognitionConfig, catalogue: Catalogue) -> Call:
    """The request for one recording."""
    if not 0 <= config.max_alternatives <= MAX_ALTERNATIVES:
        raise ValueError(
            f"Invalid recognition 'config': bad max_alternatives. It is {config.max_alternatives}; "
            f"it must be between 0 and {MAX_ALTERNATIVES}."
        )
    if config.diarization_config.enable_speaker_diarization:
        raise ValueError("Invalid recognition 'config': diarization_config is not supported by any model.")
    if config.enable_separate_recognition_per_channel and config.audio_channel_count > 1:
        raise ValueError(
            "Invalid recognition 'config': enable_separate_recognition_per_channel is not supported. "
            "Without it the first channel is transcribed; send each channel in a call of its own."
        )
    return Call(
        engine=catalogue.choose(config.model, config.language_code),
        audio_format=AudioFormat(_encoding(config.encoding), config.sample_rate_hertz, config.audio_channel_count),
        stream_options=StreamOptions(max_alternatives=config.max_alternatives),
        word_times=config.enable_word_time_offsets,
        word_confidence=config.enable_word_confidence,
    )


def read_streaming_config(config: pb.StreamingRecognitionConfig, catalogue: Catalogue) -> Call:
    """The request for a stream."""
    call = read_config(config.config, catalogue)
    activity, timeout = config.enable_voice_activity_events, config.voice_activity_timeout
    if config.HasField("voice_activity_timeout") and not activity:
        raise ValueError(
            "Invalid recognition 'config': voice_activity_timeout needs enable_voice_activity_events to be true."
        )
    options = StreamOptions(
        interim_results=config.interim_results,
        single_utterance=config.single_utterance,
        max_alternatives=call.stream_options.max_alternatives,
        activity_events=activity,
        speech_start_timeout=_seconds(timeout, "speech_start_timeout"),
        speech_end_timeout=_seconds(timeout, "speech_end_timeout"),
    )
    return Call(call.engine, call.audio_format, options, call.word_times, call.word_confidence)


class Writer:
    """Answers of one call. The transcripts of its results join to the whole text without a separator."""

    def __init__(self, call: Call, request_id: int) -> None:
        self._call = call
        self._request_id = request_id
        self._separator = ""  # a space from the second utterance on

    def streaming_response(self, event: Event) -> pb.StreamingRecognizeResponse:
        if isinstance(event, Activity):
            return pb.StreamingRecognizeResponse(
                speech_event_type=_EVENTS[event.kind],
                speech_event_time=_duration(event.time),
                request_id=self._request_id,
            )
        result = pb.StreamingRecognitionResult(
            alternatives=self._alternatives(event),
            is_final=event.is_final,
            stability=event.stability,
            result_end_time=_duration(event.end),
            language_code=self._call.engine.language_code,
        )
        self._separator = " " if event.is_final else self._separator
        return pb.StreamingRecognizeResponse(results=[result], request_id=self._request_id)

    def response(self, results: Iterable[Result]) -> pb.RecognizeResponse:
        response = pb.RecognizeResponse(request_id=self._request_id)
        for result in results:
            response.results.add(
                alternatives=self._alternatives(result),
                result_end_time=_duration(result.end),
                language_code=self._call.engine.language_code,
            )
            self._separator = " "
        return response

    def _alternatives(self, result: Result) -> list[pb.SpeechRecognitionAlternative]:
        first, *others = (self._alternative(alternative, result.is_final) for alternative in result.alternatives)
        if result.is_final:  # the contract: only there
            first.confidence = result.alternatives[0].confidence
        return [first, *others]

    def _alternative(self, alternative: Alternative, is_final: bool) -> pb.SpeechRecognitionAlternative:
        message = pb.SpeechRecognitionAlternative(transcript=self._separator + alternative.text)
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
