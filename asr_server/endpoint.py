"""Where an utterance ends: a pause that both the acoustic model and the loudness call a pause.

CTC models say blank in pauses and also between and inside letters, so one blank frame means nothing and a long run
of them does. Loudness guards the run: a held vowel or a hesitation is blank and loud, and only a longer run closes
there. Where noise never lets a frame be quiet, that longer run is what closes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

_SILENCE = 1e-10  # power below which everything is digital silence


@dataclass(frozen=True)
class EndpointOptions:
    """Durations in seconds."""

    silence: float = 0.8  # quiet blank frames that end an utterance
    patience: float = 2.0  # blank frames that end it however loud they are
    leading_silence: float = 5.0  # before any speech: start afresh, so that waiting keeps no state
    longest: float = 60.0  # from here on the first blank frame ends it: memory of a beam must not grow for ever
    lead_in: float = 0.3  # silence handed to the next utterance, which begins as training recordings do
    blank: float = 0.8  # probability from which a frame counts as blank
    quiet: float = 15.0  # dB below the loudest frame of the utterance from which a frame counts as quiet

    def __post_init__(self) -> None:
        if not 0 <= self.lead_in < self.silence <= self.patience:
            raise ValueError(
                f"lead_in {self.lead_in}, silence {self.silence}, patience {self.patience}: "
                "they must not be negative and must grow in this order"
            )


_NEVER = 1e9
USUAL = EndpointOptions()
UNCUT = EndpointOptions(silence=_NEVER, patience=_NEVER, leading_silence=_NEVER, longest=_NEVER, lead_in=0.0)


@dataclass(frozen=True)
class Cut:
    """The utterance ends before frame `end`; the next one begins with frame `restart`, which lies in the pause."""

    end: int
    restart: int


class Endpointer:
    """Watches one utterance; a new one gets a new object. Frames count from the utterance's start."""

    def __init__(self, options: EndpointOptions, frame_seconds: float) -> None:
        self._options = options
        self._frame_seconds = frame_seconds
        self._frames = 0
        self._blanks = 0  # length of the current run of blank frames
        self._quiets = 0  # quiet frames in that run
        self._loudest = _SILENCE
        self.speech_start: int | None = None  # first frame that is not blank
        self.speech_end: int | None = None  # frame after the last one that is not blank

    def advance(self, blank: FloatArray, power: FloatArray) -> Cut | None:
        """Blank posteriors and mean squares of frames, (T,) each. Frames after a cut are not looked at."""
        for probability, loudness in zip(blank.tolist(), power.tolist(), strict=True):
            if (cut := self._next(probability, loudness)) is not None:
                return cut
        return None

    def _next(self, blank: float, power: float) -> Cut | None:
        self._frames += 1
        self._loudest = max(self._loudest, power)
        if blank < self._options.blank:
            self.speech_start = self._frames - 1 if self.speech_start is None else self.speech_start
            self.speech_end = self._frames
            self._blanks = self._quiets = 0
            return None
        self._blanks += 1
        self._quiets += power < self._loudest * 10 ** (-self._options.quiet / 10) or power <= _SILENCE
        if self._pause_is_over():
            return Cut(self._frames, self._frames - self._count(self._options.lead_in))
        if self._frames >= self._count(self._options.longest):
            return Cut(self._frames, self._frames)
        return None

    def _pause_is_over(self) -> bool:
        if self.speech_start is None:
            return self._blanks >= self._count(self._options.leading_silence)
        return self._quiets >= self._count(self._options.silence) or self._blanks >= self._count(self._options.patience)

    def _count(self, seconds: float) -> int:
        return max(1, round(seconds / self._frame_seconds))
