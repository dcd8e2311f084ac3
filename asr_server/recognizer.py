"""The straight line of one audio chunk: samples -> features -> acoustic model -> beam search -> results.

The engine is shared and immutable; everything that changes belongs to one `Stream` (stream.py). `Engine.advance` takes
many streams one step down the line at once: the network sees one batch, the searches run in native threads. A
transcript depends on the audio alone, never on how it was cut into messages or on who else is served, because a step
takes exactly the samples that complete the next chunk of the model, and streams of one step share matrix products and
nothing else.

Dimension letters: S samples, T frames, V symbols.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from asr_server.beam_search import advance_all
from asr_server.bundle import SpeechBundle
from asr_server.features import FeatureState
from asr_server.log_probs import checked
from asr_server.model import ModelState
from asr_server.pcm import Samples
from asr_server.precision import for_streaming
from asr_server.results import Activity, ActivityKind, Alternative, Event, Result, StreamOptions
from asr_server.stream import Block, LogProbs, Stream

__all__ = ["Activity", "ActivityKind", "Alternative", "Engine", "Event", "Result", "Step", "Stream", "StreamOptions"]

_SHARE = 8  # streams of a worker: fewer would read the weights for too little work
_FRAMES_PER_THREAD = 2000  # of the search, at least: a thread takes as long to start as some hundreds of frames

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class Step:
    """What one step brought: for each stream its events, or the error that ends this stream and no other."""

    outcomes: list[list[Event] | Exception]
    audio: float = 0.0  # seconds of audio that entered the line
    seconds: dict[str, float] = field(default_factory=dict)  # by stage

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin


@dataclass(frozen=True)
class Heard:
    """What a block became, and the states after it."""

    features: FeatureState
    model: ModelState
    log_probs: torch.Tensor  # (T, V)


class Engine:
    """A loaded bundle, ready to recognise any number of streams at once.

    precision: of the network's products, as in precision.py; threads: of network and searches, None: one a core.

    A batch is cut into a part for each thread, and each part goes through the network alone. Several threads in one
    product would meet after every frame of the recurrence, and where cores are shared with others, the one that is
    held up holds up all.
    """

    def __init__(self, bundle: SpeechBundle, precision: str = "fp32", threads: int | None = None) -> None:
        self.bundle = bundle
        self.name = bundle.name
        self.language_code = bundle.language_code
        self.precision = precision
        self.sample_rate = bundle.features.config.sample_rate
        self.frame_seconds = bundle.model.frame_seconds(bundle.features.config)
        self.frame_samples = bundle.features.config.hop * bundle.model.config.stride
        self.model = for_streaming(bundle.model, precision)
        assert self.model.config.chunking
        self.chunking = self.model.config.chunking
        self._threads = threads or os.cpu_count() or 1
        self._workers = ThreadPoolExecutor(self._threads, f"network {self.name}", torch.set_num_threads, (1,))

    def stream(self, options: StreamOptions | None = None) -> Stream:
        """ValueError where the options do not fit the bundle, as a lexicon without a word list."""
        return Stream(self, options or StreamOptions())

    def transcribe(self, samples: Samples, options: StreamOptions | None = None) -> list[Result]:
        """(S,) -> the final result of every utterance."""
        stream = self.stream(options)
        events = [*stream.feed(samples), *stream.finish()]
        return [event for event in events if isinstance(event, Result) and event.is_final]

    def samples_before(self, frames: int) -> int:
        """Samples of an utterance that must have been heard before its first `frames` frames can be given out."""
        model, features = self.model.config, self.bundle.features.config
        inputs = model.stride * (frames + self.chunking.right - 1) + model.context + 1
        return (inputs - 1) * features.hop + features.window

    def advance(self, streams: Sequence[Stream]) -> Step:
        """One step of streams that are `ready`."""
        step = Step([[] for _ in streams])
        blocks = [stream.take() for stream in streams]
        step.audio = sum(len(block.samples) for block in blocks) / self.sample_rate
        log_probs = self._listen(streams, blocks, step)
        with step.timed("endpoint"):
            parts = [self._belonging(i, stream, log_probs[i], step) for i, stream in enumerate(streams)]
        with step.timed("decoder"):
            self._search(streams, parts, step)
        with step.timed("endpoint"):
            for i, stream in enumerate(streams):
                if isinstance(step.outcomes[i], list):
                    step.outcomes[i] = _guarded(stream.conclude)
        return step

    def _belonging(self, i: int, stream: Stream, log_probs: LogProbs, step: Step) -> LogProbs:
        """Those of the frames that the stream's utterance takes."""
        count = 0 if isinstance(step.outcomes[i], Exception) else _guarded(partial(stream.hear, log_probs))
        if isinstance(count, Exception):
            step.outcomes[i] = count
            return log_probs[:0]
        return log_probs[:count]

    def _listen(self, streams: Sequence[Stream], blocks: Sequence[Block], step: Step) -> list[LogProbs]:
        """Features and network: (T, V) of each stream. Where a batch fails its streams are tried one by one."""
        try:
            found = self._in_parts(streams, blocks, step)
            for stream, block, heard in zip(streams, blocks, found, strict=True):
                stream.commit(block, heard.features, heard.model)
            return [heard.log_probs.numpy() for heard in found]
        except Exception as error:
            if len(streams) == 1:
                logger.exception("a stream's step failed")
                step.outcomes[0] = error
                return [np.zeros((0, self.model.config.symbols), np.float32)]
        alone_found: list[LogProbs] = []
        for i, (stream, block) in enumerate(zip(streams, blocks, strict=True)):
            alone = Step([[]])
            alone_found += self._listen([stream], [block], alone)
            step.outcomes[i] = alone.outcomes[0]
        return alone_found

    def _in_parts(self, streams: Sequence[Stream], blocks: Sequence[Block], step: Step) -> list[Heard]:
        parts = max(1, min(self._threads, len(streams) // _SHARE))
        pieces = [slice(len(streams) * i // parts, len(streams) * (i + 1) // parts) for i in range(parts)]
        work = [self._workers.submit(self._network, streams[piece], blocks[piece]) for piece in pieces]
        heard: list[Heard] = []
        for done in work:
            part, seconds = done.result()
            heard += part
            for stage, value in seconds.items():  # of threads side by side: their mean is what the step took
                step.seconds[stage] = step.seconds.get(stage, 0.0) + value / parts
        return heard

    @torch.inference_mode()
    def _network(self, streams: Sequence[Stream], blocks: Sequence[Block]) -> tuple[list[Heard], dict[str, float]]:
        """Runs in a worker; changes no stream."""
        clock = Step([])
        with clock.timed("features"):
            samples = [torch.from_numpy(block.samples) for block in blocks]
            features, heard = self.bundle.features.step_all(samples, [stream.utterance.features for stream in streams])
        with clock.timed("acoustic_model"):
            before = [stream.utterance.model for stream in streams]
            log_probs, after = self.model.step_all(features, before, [block.last for block in blocks])
        return list(map(Heard, heard, after, log_probs)), clock.seconds

    def _search(self, streams: Sequence[Stream], parts: Sequence[LogProbs], step: Step) -> None:
        busy = [i for i, part in enumerate(parts) if len(part)]
        threads = min(self._threads, 1 + sum(map(len, parts)) // _FRAMES_PER_THREAD)
        try:
            advance_all([streams[i].utterance.search for i in busy], [parts[i] for i in busy], threads)
        except Exception as error:  # of one search; the others have advanced
            for i in busy:
                wrong = _guarded(partial(checked, parts[i], self.model.config.symbols))
                if isinstance(wrong, Exception) or len(busy) == 1:
                    step.outcomes[i] = wrong if isinstance(wrong, Exception) else error


def _guarded(work: Callable[[], T]) -> T | Exception:
    try:
        return work()
    except Exception as error:
        logger.exception("a stream's step failed")
        return error
