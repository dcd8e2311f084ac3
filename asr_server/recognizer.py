"""The straight line of one audio chunk: samples -> features -> acoustic model -> beam search -> results.

The engine is shared and immutable; everything that changes belongs to one `Stream`, and most of it to one utterance
of that stream. Two rules make a transcript depend on the audio alone, never on how it was cut into messages:

* samples are processed in blocks of `BLOCK_SECONDS`, whatever sizes they arrive in;
* where an utterance ends (endpoint.py) the next one begins from fresh state at a sample inside the pause. Samples of
  frames whose posteriors are still in the model's pipeline are kept for that, so no audio is lost, and nothing of
  one utterance can leak into the next.

Dimension letters: S samples, T frames, V symbols.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch

from asr_server import decoding
from asr_server.alphabet import BLANK
from asr_server.beam_search import BeamSearch, Hypothesis
from asr_server.bundle import SpeechBundle
from asr_server.endpoint import USUAL, Cut, Endpointer, EndpointOptions, FloatArray
from asr_server.pcm import Samples
from asr_server.transcripts import Word

BLOCK_SECONDS = 0.1

LogProbs = npt.NDArray[np.float32]  # (T, V)


@dataclass(frozen=True)
class Alternative:
    text: str
    confidence: float
    words: tuple[Word, ...]  # in seconds of stream time


@dataclass(frozen=True)
class Result:
    """A transcript of the utterance being spoken; the final one closes the utterance."""

    alternatives: tuple[Alternative, ...]  # best first, at least one
    is_final: bool
    stability: float  # interim: the share of the search's probability whose text begins with this one
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


class Engine:
    """A loaded bundle, ready to recognise any number of streams at once."""

    def __init__(self, bundle: SpeechBundle) -> None:
        self.bundle = bundle
        self.name = bundle.name
        self.language_code = bundle.language_code
        self.sample_rate = bundle.features.config.sample_rate
        self.frame_seconds = bundle.model.frame_seconds(bundle.features.config)
        self.frame_samples = bundle.features.config.hop * bundle.model.config.stride

    def stream(self, options: StreamOptions | None = None) -> Stream:
        return Stream(self, options or StreamOptions())

    def transcribe(self, samples: Samples, options: StreamOptions | None = None) -> list[Result]:
        """(S,) -> the final result of every utterance."""
        stream = self.stream(options)
        events = [*stream.feed(samples), *stream.finish()]
        return [event for event in events if isinstance(event, Result) and event.is_final]


class _Utterance:
    """All state that ends with an utterance."""

    def __init__(self, engine: Engine, start: int, options: StreamOptions) -> None:
        bundle = engine.bundle
        search_options = replace(bundle.decoding, n_best=max(options.max_alternatives, 1))
        self.start = start  # place in the stream, in samples
        self.features = bundle.features.initial_state()
        self.model = bundle.model.initial_state()
        self.search = BeamSearch(search_options, bundle.alphabet, bundle.language_model)
        self.committed: list[decoding.Word] = []  # words that cannot change any more and have left the search
        self.endpointer = Endpointer(options.endpoint, engine.frame_seconds)
        self.frames = 0  # how many have been searched
        # Samples from the frame `kept_from` on: those whose frames are still in the pipeline, from which the next
        # utterance may have to start, and as much before them as it may want as lead-in.
        self.kept = np.zeros(0, np.float32)
        self.kept_from = 0

    def search_on(self, log_probs: LogProbs) -> None:
        """The next frames (T, V)."""
        self.search.advance(log_probs)
        self.committed += self.search.take_committed()
        self.frames += len(log_probs)

    def best(self) -> Hypothesis:
        return self._whole(self.search.best())

    def finish(self) -> list[Hypothesis]:
        return list(map(self._whole, self.search.finish()))

    def _whole(self, hypothesis: Hypothesis) -> Hypothesis:
        return replace(hypothesis, words=(*self.committed, *hypothesis.words))


class Stream:
    """One caller's audio: feed it, then finish it. Once `done` is true further audio has no effect."""

    def __init__(self, engine: Engine, options: StreamOptions) -> None:
        self._engine = engine
        self._options = options
        self._block = round(BLOCK_SECONDS * engine.sample_rate)
        self._lead_in = round(options.endpoint.lead_in / engine.frame_seconds)
        self._waiting = np.zeros(0, np.float32)  # samples that have not entered the line
        self._utterance = _Utterance(engine, 0, options)
        self._interim = ""  # the text last sent as interim
        self._speaking = False
        self._speech_end: float | None = None  # when speech last ended; None before it first has
        self.done = False

    def feed(self, samples: Samples) -> list[Event]:
        """(S,) in [-1, 1] -> what they brought to light."""
        events: list[Event] = []
        if not self.done:
            self._waiting = np.concatenate([self._waiting, samples])
        while len(self._waiting) >= self._block and not self.done:
            events += self._advance(self._take_block(), last=False)
        return events if self.done else [*events, *self._interim_results()]

    def finish(self) -> list[Event]:
        """The audio has ended -> the rest."""
        events: list[Event] = []
        while not self.done:
            utterance, block = self._utterance, self._take_block()
            last = not len(self._waiting)
            events += self._advance(block, last)
            if last and utterance is self._utterance:  # else a pause was found in the tail: go on behind it
                events += self._close()
                self.done = True
        return events

    def _take_block(self) -> Samples:
        block, self._waiting = self._waiting[: self._block], self._waiting[self._block :]
        return block

    @torch.inference_mode()
    def _advance(self, block: Samples, last: bool) -> list[Event]:
        """One block down the line."""
        utterance, bundle = self._utterance, self._engine.bundle
        utterance.kept = np.concatenate([utterance.kept, block])
        features, utterance.features = bundle.features.step(torch.from_numpy(block), utterance.features)
        log_probs, utterance.model = bundle.model.step(features, utterance.model)
        if last:
            log_probs = torch.cat([log_probs, bundle.model.finish(utterance.model)])
        return self._listen(log_probs.numpy())

    def _listen(self, log_probs: LogProbs) -> list[Event]:
        """Search the frames (T, V), and close the utterance if a pause among them ends it."""
        utterance = self._utterance
        cut = utterance.endpointer.advance(np.exp(log_probs[:, BLANK]), self._power(len(log_probs)))
        count = len(log_probs) if cut is None else cut.end - utterance.frames
        utterance.search_on(log_probs[:count])
        events = self._speech_begins()
        if cut is None:
            self._forget()
        else:
            final = self._close()
            self.done = self._options.single_utterance and any(isinstance(event, Result) for event in final)
            if self.done:
                events.append(Activity(ActivityKind.END_OF_SINGLE_UTTERANCE, self._time(cut.end)))
            events += final
            self._restart(cut)
        return events + self._timeout()

    def _power(self, frames: int) -> FloatArray:
        """Mean squares (T,) of the samples that the next frames stand for."""
        size = self._engine.frame_samples
        start = (self._utterance.frames - self._utterance.kept_from) * size
        samples = self._utterance.kept[start : start + frames * size]
        padded = np.pad(samples, (0, frames * size - len(samples)))
        power: FloatArray = np.square(padded.reshape(frames, size)).mean(axis=1)
        return power

    def _forget(self) -> None:
        """Drop kept samples that no restart can reach any more."""
        utterance = self._utterance
        first = max(utterance.frames - self._lead_in, 0)
        utterance.kept = utterance.kept[(first - utterance.kept_from) * self._engine.frame_samples :]
        utterance.kept_from = first

    def _restart(self, cut: Cut) -> None:
        """Begin the next utterance inside the pause; the samples after that point enter the line again."""
        ended, size = self._utterance, self._engine.frame_samples
        self._waiting = np.concatenate([ended.kept[(cut.restart - ended.kept_from) * size :], self._waiting])
        self._utterance = _Utterance(self._engine, ended.start + cut.restart * size, self._options)

    def _close(self) -> list[Event]:
        """The end of speech and the final result of the utterance, if there was any speech in it."""
        events: list[Event] = []
        end = self._utterance.endpointer.speech_end
        if self._speaking and end is not None:
            self._speaking, self._speech_end = False, self._time(end)
            events += self._activity(ActivityKind.END, self._speech_end)
        best, *others = self._utterance.finish()
        if best.text:  # where silence is likeliest, a runner-up with text is no result
            found = [best, *(hypothesis for hypothesis in others if hypothesis.text)]
            events.append(self._result(found, is_final=True))
        self._interim = ""
        return events

    def _speech_begins(self) -> list[Event]:
        start = self._utterance.endpointer.speech_start
        if self._speaking or start is None:
            return []
        self._speaking = True
        return self._activity(ActivityKind.BEGIN, self._time(start))

    def _timeout(self) -> list[Event]:
        """Nobody has begun to speak, or spoken again, for as long as the caller allows."""
        now = self._time(self._utterance.frames)
        limit = self._options.speech_start_timeout if self._speech_end is None else self._options.speech_end_timeout
        if self._speaking or self.done or limit is None or now - (self._speech_end or 0.0) < limit:
            return []
        self.done = True
        return self._activity(ActivityKind.TIMEOUT, now)

    def _activity(self, kind: ActivityKind, time: float) -> list[Event]:
        return [Activity(kind, time)] if self._options.activity_events else []

    def _interim_results(self) -> list[Event]:
        if not self._options.interim_results:
            return []
        best = self._utterance.best()
        if best.text in ("", self._interim):
            return []
        self._interim = best.text
        return [self._result([best], is_final=False)]

    def _result(self, hypotheses: list[Hypothesis], is_final: bool) -> Result:
        alternatives = tuple(map(self._alternative, hypotheses))
        stability = 0.0 if is_final else hypotheses[0].stability
        return Result(alternatives, is_final, stability, self._time(self._utterance.frames))

    def _alternative(self, hypothesis: Hypothesis) -> Alternative:
        words = (
            Word(word.text, self._time(word.start), self._time(word.end), word.confidence) for word in hypothesis.words
        )
        return Alternative(hypothesis.text, hypothesis.confidence, tuple(words))

    def _time(self, frame: int) -> float:
        """Seconds of stream time at which a frame of the utterance begins."""
        start: float = self._utterance.start / self._engine.sample_rate
        return start + frame * self._engine.frame_seconds
