"""Transcripts as files: plain text, JSON, SubRip and WebVTT.

One caption is one utterance, split where it would be too long to read: at most two lines of 42 characters is the
common rule of subtitle style guides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

CAPTION_CHARACTERS = 84
_SHORTEST_CAPTION = 0.5  # seconds; players skip captions of no length


@dataclass(frozen=True)
class Word:
    """Times in seconds from the start of the audio."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Segment:
    """One utterance."""

    text: str
    start: float
    end: float
    confidence: float
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Transcript:
    """One recording or stream."""

    source: str
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments)


def to_text(transcript: Transcript) -> str:
    """One utterance a line."""
    return "".join(f"{segment.text}\n" for segment in transcript.segments)


def to_json(transcript: Transcript) -> str:
    return json.dumps({"text": transcript.text, **asdict(transcript)}, ensure_ascii=False, indent=2) + "\n"


def to_srt(transcript: Transcript) -> str:
    captions = enumerate(_captions(transcript.segments), start=1)
    return "\n".join(
        f"{number}\n{_clock(caption.start, ',')} --> {_clock(caption.end, ',')}\n{caption.text}\n"
        for number, caption in captions
    )


def to_vtt(transcript: Transcript) -> str:
    captions = (
        f"\n{_clock(caption.start, '.')} --> {_clock(caption.end, '.')}\n{caption.text}\n"
        for caption in _captions(transcript.segments)
    )
    return "WEBVTT\n" + "".join(captions)


FORMATS: dict[str, Callable[[Transcript], str]] = {"txt": to_text, "json": to_json, "srt": to_srt, "vtt": to_vtt}


def render(transcript: Transcript, name: str) -> str:
    """The transcript in the format of that name; ValueError when there is none."""
    if name not in FORMATS:
        raise ValueError(f"format {name!r} is not known. Select one of {{{', '.join(FORMATS)}}}")
    return FORMATS[name](transcript)


def _captions(segments: Iterable[Segment]) -> Iterator[Segment]:
    for segment in segments:
        if len(segment.text) <= CAPTION_CHARACTERS or not segment.words:
            yield _caption(segment.text, segment.start, segment.end)
        else:
            yield from map(_from_words, _split(segment.words))


def _split(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Rows of words that each fit into a caption."""
    row: list[Word] = []
    for word in words:
        if row and sum(len(known.text) + 1 for known in row) + len(word.text) > CAPTION_CHARACTERS:
            yield row
            row = []
        row.append(word)
    yield row


def _from_words(words: Sequence[Word]) -> Segment:
    return _caption(" ".join(word.text for word in words), words[0].start, words[-1].end)


def _caption(text: str, start: float, end: float) -> Segment:
    return Segment(text, start, max(end, start + _SHORTEST_CAPTION), 0.0, ())


def _clock(seconds: float, point: str) -> str:
    """00:00:00,000 or 00:00:00.000."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(whole, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}{point}{milliseconds:03}"
