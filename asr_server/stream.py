"""One caller's audio on its way through the line: everything that changes while a stream is spoken.

Most of it belongs to one utterance. Where an utterance ends (endpoint.py) the next one begins from fresh state at a
sample inside the pause. Samples of frames whose posteriors are still in the model's pipeline are kept for that, so no
audio is lost, and nothing of one utterance can leak into the next.

Dimension letters: S samples, T frames, V symbols.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from asr_server import decoding
from asr_server.alphabet import BLANK
from asr_server.beam_search import BeamSearch, Hypothesis
from asr_server.endpoint import Cut, Endpointer, FloatArray
from asr_server.features import FeatureState
from asr_server.model import ModelState
from asr_server.pcm import Samples
from asr_server.results import Activity, ActivityKind, Alternative, Event, Result, StreamOptions
from asr_server.transcripts import Word

if TYPE_CHECKING:
    from asr_server.recognizer import Engine

LogProbs = npt.NDArray[np.float32]  # (T, V)

_NONE: Samples = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Block:
    """What a stream brings into a step: samples (S,), and whether its utterance ends with them."""

    samples: Samples
    last: bool


class _Waiting:
    """Samples that have not entered the line, in the pieces in which they came."""

    def __init__(self) -> None:
        self._pieces: deque[Samples] = deque()
        self.size = 0

    def put(self, samples: Samples, first: bool = False) -> None:
        if len(samples):
            (self._pieces.appendleft if first else self._pieces.append)(samples)
            self.size += len(samples)

    def take(self, count: int) -> Samples:
        """At most `count` of them."""
        taken, left = [], count
        while left > 0 and self._pieces:
            piece = self._pieces.popleft()
            taken.append(piece[:left])
            if len(piece) > left:
                self._pieces.appendleft(piece[left:])
            left -= len(taken[-1])
        self.size -= count - left
        return taken[0] if len(taken) == 1 else np.concatenate(taken) if taken else _NONE


class _Utterance:
    """All state that ends with an utterance."""

    def __init__(self, engine: Engine, start: int, options: StreamOptions) -> None:
        bundle = engine.bundle
        search_options = replace(options.decoding or bundle.decoding, n_best=max(options.max_alternatives, 1))
        bundled = bundle.language_model if options.bundled_language_model else None
        language_model = options.language_model or bundled
        self.start = start  # place in the stream, in samples
        self.features: FeatureState = bundle.features.initial_state()
        self.model: ModelState = engine.model.initial_state()
        self.search = BeamSearch(search_options, bundle.alphabet, language_model, options.hot_words)
        self.committed: list[decoding.Word] = []  # words that cannot change any more and have left the search
        self.endpointer = Endpointer(options.endpoint, engine.frame_seconds)
        self.entered = 0  # samples in the line
        self.frames = 0  # how many have been searched
        self.announced = False  # that it is probably over
        # Samples from the frame `kept_from` on: those whose frames are still in the pipeline, from which the next
        # utterance may have to start, and as much before them as it may want as lead-in.
        self.kept = _NONE
        self.kept_from = 0

    def best(self) -> Hypothesis:
        return self._whole(self.search.best())

    def finish(self) -> list[Hypothesis]:
        return list(map(self._whole, self.search.finish()))

    def _whole(self, hypothesis: Hypothesis) -> Hypothesis:
        return replace(hypothesis, words=(*self.committed, *hypothesis.words))


class Stream:
    """One caller's audio: `feed` it, then `finish` it; once `done` is true further audio has no effect.

    Those two work alone. Streams that share steps `put` and `end` instead, and are taken along by `Engine.advance`
    whenever they are `ready`.
    """

    def __init__(self, engine: Engine, options: StreamOptions) -> None:
        self._engine = engine
        self._options = options
        self._lead_in = round(options.endpoint.lead_in / engine.frame_seconds)
        self._waiting = _Waiting()
        self._borders: deque[int] = deque()  # samples of the stream at which an utterance must end
        self._ended = False
        self._received = 0  # samples put in
        self._interim = ""  # the text last sent as interim
        self._speaking = False
        self._speech_end: float | None = None  # when speech last ended; None before it first has
        self._cut: Cut | None = None  # found in the frames of this step
        self._last = False  # this step ends the utterance
        self.utterance = _Utterance(engine, 0, options)
        self.done = False

    def feed(self, samples: Samples) -> list[Event]:
        """(S,) in [-1, 1] -> what they brought to light."""
        self.put(samples)
        return self._run()

    def finish(self) -> list[Event]:
        """The audio has ended -> the rest."""
        self.end()
        return self._run()

    def _run(self) -> list[Event]:
        events: list[Event] = []
        while self.ready:
            (outcome,) = self._engine.advance([self]).outcomes
            if isinstance(outcome, Exception):
                raise outcome
            events += outcome
        return events

    def put(self, samples: Samples) -> None:
        """(S,) in [-1, 1] to wait for the next steps."""
        if not self.done:
            self._waiting.put(samples)
            self._received += len(samples)

    def end(self) -> None:
        """No more audio will come."""
        self._ended = True

    def end_utterance(self) -> None:
        """The utterance being spoken ends with the audio put in so far (Riva's force_eou); the next one begins."""
        self._borders.append(self._received)

    @property
    def missing(self) -> int:
        """Samples that have to come before the next step; 0 when the stream is `ready`."""
        if self.done:
            return 1
        return 0 if self._border() is not None else max(self._needed() - self._waiting.size, 0)

    @property
    def ready(self) -> bool:
        return self.missing == 0

    @property
    def waiting(self) -> int:
        """Samples that have not entered the line."""
        return self._waiting.size

    @property
    def ending(self) -> bool:
        """A result is due: the caller has said that an utterance or the audio is over."""
        return self._border() is not None

    def take(self) -> Block:
        """The samples that complete the model's next chunk, or the utterance's rest where it is known to end."""
        utterance, border, needed = self.utterance, self._border(), self._needed()
        place = utterance.start + utterance.entered
        samples = self._waiting.take(needed if border is None else min(needed, border - place))
        return Block(samples, last=border is not None and len(samples) < needed)

    def commit(self, block: Block, features: FeatureState, model: ModelState) -> None:
        """A block has passed the network."""
        utterance = self.utterance
        utterance.features, utterance.model = features, model
        utterance.entered += len(block.samples)
        utterance.kept = np.concatenate([utterance.kept, block.samples])
        self._last = block.last

    def hear(self, log_probs: LogProbs) -> int:
        """How many of the next frames (T, V) belong to the utterance."""
        utterance = self.utterance
        self._cut = utterance.endpointer.advance(np.exp(log_probs[:, BLANK]), self._power(len(log_probs)))
        count = len(log_probs) if self._cut is None else self._cut.end - utterance.frames
        utterance.frames += count
        return count

    def conclude(self) -> list[Event]:
        """The frames have been searched: results, and where the utterance ends the beginning of the next one."""
        utterance, cut = self.utterance, self._cut
        utterance.committed += utterance.search.take_committed()
        events = self._speech_begins()
        if cut is None and not self._last:
            self._forget()
            events += self._interim_results()
            return events + self._timeout()
        final = self._close()
        self.done = self._options.single_utterance and any(isinstance(event, Result) for event in final)
        if self.done:
            events.append(Activity(ActivityKind.END_OF_SINGLE_UTTERANCE, self._time(utterance.frames)))
        events += final
        if cut is not None:
            self._restart(cut)
        elif self._borders:  # the caller asked for this end
            self._begin(self._borders.popleft())
        else:
            self.done = True
        return events + self._timeout()

    def _needed(self) -> int:
        """Samples that complete the next chunk."""
        utterance, engine = self.utterance, self._engine
        return engine.samples_before(utterance.frames + engine.chunking.frames) - utterance.entered

    def _border(self) -> int | None:
        """The sample at which the utterance must end, where the caller has said so."""
        if self._borders:
            return self._borders[0]
        return self._received if self._ended else None

    def _power(self, frames: int) -> FloatArray:
        """Mean squares (T,) of the samples that the next frames stand for."""
        size = self._engine.frame_samples
        start = (self.utterance.frames - self.utterance.kept_from) * size
        samples = self.utterance.kept[start : start + frames * size]
        if len(samples) < frames * size:  # at the end of the audio
            samples = np.concatenate([samples, np.zeros(frames * size - len(samples), np.float32)])
        rows = samples.reshape(frames, size)
        power: FloatArray = np.einsum("ij,ij->i", rows, rows) / size
        return power

    def _forget(self) -> None:
        """Drop kept samples that no restart can reach any more."""
        utterance = self.utterance
        first = max(utterance.frames - self._lead_in, 0)
        utterance.kept = utterance.kept[(first - utterance.kept_from) * self._engine.frame_samples :]
        utterance.kept_from = first

    def _restart(self, cut: Cut) -> None:
        """Begin the next utterance inside the pause; the samples after that point enter the line again."""
        ended, size = self.utterance, self._engine.frame_samples
        self._waiting.put(ended.kept[(cut.restart - ended.kept_from) * size :], first=True)
        self._begin(ended.start + cut.restart * size)

    def _begin(self, start: int) -> None:
        self.utterance = _Utterance(self._engine, start, self._options)

    def _close(self) -> list[Event]:
        """The end of speech and the final result of the utterance, if there was any speech in it."""
        events: list[Event] = []
        end = self.utterance.endpointer.speech_end
        if self._speaking and end is not None:
            self._speaking, self._speech_end = False, self._time(end)
            events += self._activity(ActivityKind.END, self._speech_end)
        best, *others = self.utterance.finish()
        if best.text:  # where silence is likeliest, a runner-up with text is no result
            found = [best, *(hypothesis for hypothesis in others if hypothesis.text)]
            events.append(self._result(found, is_final=True))
        self._interim = ""
        return events

    def _speech_begins(self) -> list[Event]:
        start = self.utterance.endpointer.speech_start
        if self._speaking or start is None:
            return []
        self._speaking = True
        return self._activity(ActivityKind.BEGIN, self._time(start))

    def _timeout(self) -> list[Event]:
        """Nobody has begun to speak, or spoken again, for as long as the caller allows."""
        now = self._time(self.utterance.frames)
        limit = self._options.speech_start_timeout if self._speech_end is None else self._options.speech_end_timeout
        if self._speaking or self.done or limit is None or now - (self._speech_end or 0.0) < limit:
            return []
        self.done = True
        return self._activity(ActivityKind.TIMEOUT, now)

    def _activity(self, kind: ActivityKind, time: float) -> list[Event]:
        return [Activity(kind, time)] if self._options.activity_events else []

    def _interim_results(self) -> list[Event]:
        """The text so far, where it has changed, or where the first pass has just found it to be whole."""
        if not self._options.interim_results:
            return []
        utterance, best = self.utterance, self.utterance.best()
        whole = utterance.endpointer.probably_over
        if not best.text or (best.text == self._interim and (utterance.announced or not whole)):
            utterance.announced = utterance.announced and whole
            return []
        self._interim, utterance.announced = best.text, whole
        stability = 1.0 if whole else best.stability
        return [replace(self._result([best], is_final=False), stability=stability)]

    def _result(self, hypotheses: list[Hypothesis], is_final: bool) -> Result:
        alternatives = tuple(map(self._alternative, hypotheses))
        stability = 0.0 if is_final else hypotheses[0].stability
        return Result(alternatives, is_final, stability, self._time(self.utterance.frames))

    def _alternative(self, hypothesis: Hypothesis) -> Alternative:
        calibration = self._engine.bundle.calibration
        confidence = calibration.utterance(hypothesis.confidence)
        return Alternative(hypothesis.text, confidence, tuple(self._words(hypothesis.words)))

    def _words(self, words: Iterable[decoding.Word]) -> Iterable[Word]:
        calibrated = self._engine.bundle.calibration.word
        for word in words:
            yield Word(word.text, self._time(word.start), self._time(word.end), calibrated(word.confidence))

    def _time(self, frame: int) -> float:
        """Seconds of stream time at which a frame of the utterance begins."""
        start: float = self.utterance.start / self._engine.sample_rate
        return start + frame * self._engine.frame_seconds
