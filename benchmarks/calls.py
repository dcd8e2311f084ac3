"""What a caller saw of its calls, and the latencies in it.

Interim latency: from the moment a chunk's last sample is spoken, which is when the chunk is due, to the first response
whose result_end_time reaches the chunk's end. The model's look-ahead and the length of its steps are in it. A server
answers where the text changes, so a chunk of silence is answered with the next word: such waiting is in it too, at one
stream as at many. Chunks that no response ever reaches (silence at the end) do not count.

Final latency: from the end of audio to the last final result, or to the end of the call where no final came after the
audio's end: only then does a caller know that there is nothing more.

Both begin at the timetable's time and not when the generator got round to sending, so a generator that is late can only
make a server look worse.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.schedule import Pace, chunk_ends

OK = "OK"
ROUNDING = 1e-6  # seconds; result_end_time comes in nanoseconds


@dataclass(frozen=True)
class Response:
    """A response with results; times are seconds since the level began, `end` is its result_end_time."""

    time: float
    end: float
    is_final: bool
    text: str


@dataclass(frozen=True)
class Call:
    """One recording that was streamed."""

    recording: int
    start: float  # when its first sample was due to be spoken
    duration: float
    ended: float  # when the status came
    code: str = OK
    details: str = ""  # what the server said to the code
    late: tuple[float, ...] = ()  # seconds by which each chunk went out after its time
    responses: tuple[Response, ...] = ()

    @property
    def end_of_audio(self) -> float:
        return self.start + self.duration

    @property
    def text(self) -> str:
        return " ".join(" ".join(each.text for each in self.responses if each.is_final).split())

    @property
    def final_latency(self) -> float:
        finals = [each.time for each in self.responses if each.is_final and each.time >= self.end_of_audio]
        return (finals[-1] if finals else self.ended) - self.end_of_audio

    def interim_latencies(self, pace: Pace) -> list[float]:
        """Of the chunks that were due inside the window and were answered."""
        found, ends = [], [end for end in chunk_ends(self.duration) if pace.measured(self.start + end)]
        responses = iter(self.responses)
        response = next(responses, None)
        for end in ends:
            # A later chunk's first response is never before an earlier one's: one walk over both.
            while response is not None and response.end < end - ROUNDING:
                response = next(responses, None)
            if response is None:
                break
            found.append(response.time - (self.start + end))
        return found


@dataclass(frozen=True)
class Percentiles:
    """Of latencies in seconds; infinite where there are none."""

    p50: float
    p95: float
    p99: float


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest of the values that at least this share of them does not exceed."""
    if not values:
        return math.inf
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def percentiles(values: Sequence[float]) -> Percentiles:
    return Percentiles(*(percentile(values, share) for share in (0.5, 0.95, 0.99)))


def failures(calls: Iterable[Call]) -> dict[str, int]:
    """How many calls ended with which status, other than OK; with what the server said to the first of each."""
    failed = [call for call in calls if call.code != OK]
    said = {call.code: f"{call.code}: {call.details}" for call in reversed(failed)}
    return dict(Counter(said[call.code] for call in failed))
