"""When a load's streams speak: a timetable that is known before it begins, so that nothing late can thin it out.

A stream says one recording after the other, back to back on a grid of chunks, whatever the server does meanwhile: N
streams are N seconds of audio a second. A load that waits for each answer before it goes on would ease off exactly
where a server gets slow. All times are seconds since the level began. Plain Python: the processes that keep time
import nothing else.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

CHUNK_SECONDS = 0.1
RATE = 16000  # Hz, LINEAR16, mono
SAMPLE_BYTES = 2
COOL_DOWN = 1.0  # seconds of full load after the measured window, in which the last answers of the window come


class Turn(NamedTuple):
    """One recording, spoken by one stream from `start` on."""

    recording: int
    start: float


@dataclass(frozen=True)
class Pace:
    """A level: so many streams, and the window in which they are measured."""

    streams: int
    warm_up: float = 5.0
    seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.streams < 1 or self.warm_up < 0 or self.seconds <= 0:
            raise ValueError(
                f"{self.streams} streams for {self.seconds} s after {self.warm_up} s: at least 1, above 0, at least 0"
            )

    @property
    def window(self) -> tuple[float, float]:
        return self.warm_up, self.warm_up + self.seconds

    def measured(self, time: float) -> bool:
        start, end = self.window
        return start <= time < end

    def first(self, stream: int) -> float:
        """When a stream begins: within the warm-up, and inside a chunk's tenth of a second evenly beside the others."""
        slots = max(1, round(self.warm_up / CHUNK_SECONDS))
        return CHUNK_SECONDS * (stream * slots // self.streams + stream / self.streams)

    def turns(self, stream: int, durations: Sequence[float]) -> Iterator[Turn]:
        """What a stream says. The streams begin at places spread over the recordings."""
        recording, start = stream * len(durations) // self.streams % len(durations), self.first(stream)
        while start < self.window[1] + COOL_DOWN:
            yield Turn(recording, start)
            start += CHUNK_SECONDS * chunk_count(durations[recording])
            recording = (recording + 1) % len(durations)


def chunk_count(duration: float) -> int:
    return math.ceil(duration / CHUNK_SECONDS - 1e-9)


def chunk_ends(duration: float) -> list[float]:
    """Seconds from a recording's start at which each chunk is complete and goes out; the last may be shorter."""
    return [min((index + 1) * CHUNK_SECONDS, duration) for index in range(chunk_count(duration))]


def cut(audio: bytes) -> list[bytes]:
    """LINEAR16 in chunks."""
    size = round(CHUNK_SECONDS * RATE) * SAMPLE_BYTES
    return [audio[start : start + size] for start in range(0, len(audio), size)]


def seconds_of(audio: bytes) -> float:
    return len(audio) / (RATE * SAMPLE_BYTES)
