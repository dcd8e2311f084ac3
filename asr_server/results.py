"""What a call may ask of the recognizer, and what the recognizer answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from asr_server.decoding import DecodingOptions
from asr_server.endpoint import USUAL, EndpointOptions
from asr_server.hot_words import HotWords
from asr_server.language_model import LanguageModel
from asr_server.transcripts import Word


@dataclass(frozen=True)
class StreamOptions:
    """What one call asks for. Durations in seconds of stream time; None means no limit."""

    interim_results: bool = False
    single_utterance: bool = False
    max_alternatives: int = 1
    activity_events: bool = False
    speech_start_timeout: float | None = None
    speech_end_timeout: float | None = None
    endpoint: EndpointOptions = USUAL  # UNCUT: one utterance, whatever the pauses
    decoding: DecodingOptions | None = None  # None: the bundle's
    language_model: LanguageModel | None = None  # in place of the bundle's
    bundled_language_model: bool = True  # False, and none above: acoustic scores alone
    hot_words: HotWords | None = None


@dataclass(frozen=True)
class Alternative:
    """Confidences are calibrated: of those near 0.8, 80 % are right on held-out speakers (calibration.py)."""

    text: str
    confidence: float
    words: tuple[Word, ...]  # in seconds of stream time


@dataclass(frozen=True)
class Result:
    """A transcript of the utterance being spoken; the final one closes the utterance."""

    alternatives: tuple[Alternative, ...]  # best first, at least one
    is_final: bool
    stability: float  # interim: the share of the search's probability whose text begins with this one; final: 0
    end: float  # seconds of stream time up to which audio was heard

    @property
    def text(self) -> str:
        return self.alternatives[0].text


class ActivityKind(Enum):
    BEGIN = "speech begins"
    END = "speech has ended"
    TIMEOUT = "nobody spoke for too long"
    END_OF_SINGLE_UTTERANCE = "the only utterance asked for has ended"


@dataclass(frozen=True)
class Activity:
    """Something that happened in the stream, other than text."""

    kind: ActivityKind
    time: float  # seconds of stream time


Event = Result | Activity
