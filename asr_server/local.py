"""The client's way without a server: the same audio through an engine in this process, heard in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from asr_server import server
from asr_server.client import Heard, linear16, spanning
from asr_server.pcm import LINEAR16, Samples
from asr_server.recognizer import Alternative, Engine, Event, Result, StreamOptions
from asr_server.transcripts import Segment, Word


def load_engine(models: tuple[Path, ...], name: str, language_code: str) -> Engine:
    """The model that a server with these folders would choose; ValueError when there is none."""
    return server.load_catalogue(models or server.SHIPPED).choose(name, language_code)


def hear_locally(chunks: Iterable[Samples], engine: Engine, interim_results: bool = True) -> Iterator[Heard]:
    """What `client.hear_remotely` yields; samples are rounded as if they had gone over the wire."""
    stream = engine.stream(StreamOptions(interim_results=interim_results))
    for chunk in chunks:
        yield from _heard(stream.feed(LINEAR16.decode(linear16(chunk))))
    yield from _heard(stream.finish())


def _heard(events: Iterable[Event]) -> Iterator[Heard]:
    for event in events:
        if isinstance(event, Result):
            yield _segment(event.alternatives[0], event.end) if event.is_final else event.text


def _segment(best: Alternative, end: float) -> Segment:
    words = tuple(Word(w.text, round(w.start, 3), round(w.end, 3), w.confidence) for w in best.words)
    return spanning(best.text, words, best.confidence, end)
