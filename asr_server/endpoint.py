"""Where an utterance begins and ends: pauses that both the acoustic model and the loudness call pauses.

CTC models say blank in pauses and also between and inside letters, so one blank frame means nothing and a long run
of them does. Loudness guards the run: a held vowel or a hesitation is blank and loud, and only a longer run closes
there. Where noise never lets a frame be quiet, that longer run is what closes.

The controls with a history and a threshold are Riva's (`EndpointingConfig`): a window of that length, of whose frames
that share must be speech (start) or pause (stop). The first pass (`stop_history_eou`) only says that the text so far
is probably whole; the utterance goes on until `silence` is reached.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

_SILENCE = 1e-10  # power below which everything is digital silence
_LONGEST_HISTORY = 60.0


@dataclass(frozen=True)
class EndpointOptions:
    """Durations in seconds."""

    silence: float = 0.8  # quiet blank frames that end an utterance (Riva's stop_history)
    patience: float = 2.0  # blank frames that end it however loud they are
    leading_silence: float = 5.0  # before any speech: start afresh, so that waiting keeps no state
    longest: float = 60.0  # from here on the first blank frame ends it: memory of a beam must not grow for ever
    lead_in: float = 0.3  # silence handed to the next utterance, which begins as training recordings do
    blank: float = 0.8  # probability from which a frame counts as blank
    quiet: float = 15.0  # dB below the loudest frame of the utterance from which a frame counts as quiet
    start_history: float = 0.0  # window in which speech is looked for; 0: the first frame that is not blank
    start_threshold: float = 0.5  # share of its frames that must not be blank
    stop_threshold: float = 1.0  # below 1 also a window of `silence` ends it, of which this share is quiet and blank
    first_pass: float | None = None  # a shorter window that announces the end (Riva's stop_history_eou)
    first_pass_threshold: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.lead_in < self.silence <= self.patience:
            raise ValueError(
                f"lead_in {self.lead_in}, silence {self.silence}, patience {self.patience}: "
                "they must not be negative and must grow in this order"
            )
        for name in ("start_threshold", "stop_threshold", "first_pass_threshold"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and at most 1")
        if not 0 <= self.start_history <= _LONGEST_HISTORY:
            raise ValueError(f"start_history is {self.start_history}; it must be 0 to {_LONGEST_HISTORY:g} seconds")
        if self.first_pass is not None and not 0 < self.first_pass <= self.silence:
            raise ValueError(f"first_pass is {self.first_pass}; it must be above 0 and at most silence {self.silence}")


_NEVER = 1e9
USUAL = EndpointOptions()
UNCUT = EndpointOptions(silence=_NEVER, patience=_NEVER, leading_silence=_NEVER, longest=_NEVER, lead_in=0.0)


@dataclass(frozen=True)
class Cut:
    """The utterance ends before frame `end`; the next one begins with frame `restart`, which lies in the pause."""

    end: int
    restart: int


class _Window:
    """How many of the last `size` frames were set; full when that is the share asked for."""

    def __init__(self, size: int, share: float) -> None:
        self._size = size
        self._share = share
        self._last: list[bool] = []  # a ring, as long as it has ever been filled
        self._place = 0
        self._count = 0

    def add(self, is_set: bool) -> bool:
        """Whether the window is full with this frame."""
        if len(self._last) < self._size:
            self._last.append(is_set)
        else:
            self._count -= self._last[self._place]
            self._last[self._place] = is_set
            self._place = (self._place + 1) % self._size
        self._count += is_set
        return len(self._last) == self._size and self._count >= self._share * self._size - 1e-9

    def clear(self) -> None:
        self._last.clear()
        self._place = self._count = 0


class Endpointer:
    """Watches one utterance; a new one gets a new object. Frames count from the utterance's start."""

    def __init__(self, options: EndpointOptions, frame_seconds: float) -> None:
        self._options = options
        self._frame_seconds = frame_seconds
        self._frames = 0
        self._blanks = 0  # length of the current run of blank frames
        self._quiets = 0  # quiet frames in that run
        self._loudest = _SILENCE
        self._started = self._window(options.start_history, options.start_threshold)
        self._stopped = self._window(options.silence, options.stop_threshold) if options.stop_threshold < 1 else None
        self._first_pass = self._window(options.first_pass or 0.0, options.first_pass_threshold)
        self.speech_start: int | None = None  # first frame of the window in which there was speech
        self.speech_end: int | None = None  # frame after the last one that is not blank
        self.probably_over = False  # the first pass has found a pause after the speech

    def advance(self, blank: FloatArray, power: FloatArray) -> Cut | None:
        """Blank posteriors and mean squares of frames, (T,) each. Frames after a cut are not looked at."""
        for probability, loudness in zip(blank.tolist(), power.tolist(), strict=True):
            if (cut := self._next(probability, loudness)) is not None:
                return cut
        return None

    def _next(self, blank: float, power: float) -> Cut | None:
        options = self._options
        self._frames += 1
        self._loudest = max(self._loudest, power)
        is_blank = blank >= options.blank
        if is_blank:
            is_quiet = power < self._loudest * 10 ** (-options.quiet / 10) or power <= _SILENCE
            self._blanks += 1
            self._quiets += is_quiet
        else:
            is_quiet = False
            self._blanks = self._quiets = 0
        if self.speech_start is None and self._started.add(not is_blank):
            self.speech_start = self._frames - self._count(options.start_history)
        if self.speech_start is not None:
            self.speech_end = self._frames - self._blanks
        if self._pause_is_over(is_quiet):
            return Cut(self._frames, self._frames - min(self._count(options.lead_in), self._blanks))
        if is_blank and self._frames >= self._count(options.longest):
            return Cut(self._frames, self._frames)
        return None

    def _pause_is_over(self, is_quiet: bool) -> bool:
        options = self._options
        if self.speech_start is None:
            return self._blanks >= self._count(options.leading_silence)
        if options.first_pass is not None:
            self.probably_over = self._first_pass.add(is_quiet)
        is_over = self._quiets >= self._count(options.silence)
        if self._stopped is not None:  # beside the rule above, so that a lower share never waits longer
            is_over |= self._stopped.add(is_quiet) and self._blanks > 0
        return is_over or self._blanks >= self._count(options.patience)

    def _window(self, seconds: float, share: float) -> _Window:
        return _Window(self._count(seconds), share)

    def _count(self, seconds: float) -> int:
        return max(1, round(seconds / self._frame_seconds))
