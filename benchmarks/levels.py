"""What a number of streams did to a server, whether that is good enough, and how many streams are."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from benchmarks.calls import OK, Call, failures, percentile, percentiles
from benchmarks.machine import Usage
from benchmarks.recordings import Recording
from benchmarks.schedule import Pace
from training.error_rate import Edits, word_edits

LATE = 0.05  # seconds: a generator later than this at p99 has not made the load it says


@dataclass(frozen=True)
class Level:
    """One number of streams, measured. Latencies in ms, memory in MiB, error rates in per cent."""

    streams: int
    interim_p50: float
    interim_p95: float
    interim_p99: float
    final_p50: float
    final_p95: float
    final_p99: float
    chunks: int  # answered ones, behind the interim latencies
    finals: int  # calls behind the final latencies
    calls: int
    failed: dict[str, int]  # by status
    late_p99: float  # ms that chunks went out after their time
    late_max: float
    transcripts_equal: float  # share of the calls whose text is that of the recording alone
    wer: float | None = None  # None: the network's weights are random
    wer_alone: float | None = None
    server_cores: float = 0.0
    generator_cores: float = 0.0
    other_cores: float = 0.0  # that something else took: a level is worth little where this is much
    real_time_factor: float = 0.0  # processor seconds of the server for a second of audio
    server_rss_mb: float = 0.0
    server_peak_mb: float = 0.0
    mb_per_stream: float | None = None  # what each stream beyond the first level's added
    counters: dict[str, float] = field(default_factory=dict)  # the server's own, over the window

    @property
    def valid(self) -> bool:
        return self.late_p99 <= 1000 * LATE

    def verdict(self, limit: float) -> str:
        """ "" where the level holds with final latencies under `limit` ms, else the reasons."""
        reasons = [listed(self.failed)] if self.failed else []
        if not self.final_p95 < limit:
            reasons.append(f"p95 final is not under {limit:g} ms")
        if not self.valid:
            reasons.append(f"invalid: the generator was late by {self.late_p99:.0f} ms at p99")
        return ", ".join(reasons)


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def of_calls(
    calls: Sequence[Call], pace: Pace, recordings: Sequence[Recording], alone: Sequence[str], meaningful: bool = True
) -> Level:
    """The caller's side of a level. `alone`: each recording's text without other streams."""
    ended = [call for call in calls if pace.measured(call.end_of_audio)]
    finals = [1000 * call.final_latency for call in ended if call.code == OK]
    interims = [1000 * each for call in calls for each in call.interim_latencies(pace)]
    late = [1000 * each for each in chain.from_iterable(call.late for call in calls)]
    heard = [call for call in calls if call.code == OK]
    interim, final = percentiles(interims), percentiles(finals)
    said = [recordings[call.recording].text for call in heard]
    return Level(
        streams=pace.streams,
        interim_p50=interim.p50,
        interim_p95=interim.p95,
        interim_p99=interim.p99,
        final_p50=final.p50,
        final_p95=final.p95,
        final_p99=final.p99,
        chunks=len(interims),
        finals=len(finals),
        calls=len(calls),
        failed=failures(calls),
        late_p99=percentile(late, 0.99),
        late_max=max(late, default=math.inf),
        transcripts_equal=sum(call.text == alone[call.recording] for call in heard) / max(1, len(heard)),
        wer=error_rate(said, [call.text for call in heard]) if meaningful else None,
        wer_alone=error_rate(said, [alone[call.recording] for call in heard]) if meaningful else None,
    )


def error_rate(said: Iterable[str], heard: Iterable[str]) -> float:
    return sum((word_edits(*pair) for pair in zip(said, heard, strict=True)), Edits()).rate


@dataclass(frozen=True)
class Moment:
    """The machine at one end of a window. Processor seconds since it or the process began."""

    server: Usage
    generator: float
    busy: float  # of the whole machine


def of_machine(start: Moment, end: Moment, pace: Pace, first: Level | None) -> dict[str, object]:
    """The machine's side: fields of Level."""
    before, after, generator = start.server, end.server, end.generator - start.generator
    busy = after.cpu_seconds - before.cpu_seconds
    growth = None
    if first and pace.streams > first.streams:
        growth = (after.resident - first.server_rss_mb) / (pace.streams - first.streams)
    return {
        "server_cores": busy / pace.seconds,
        "generator_cores": generator / pace.seconds,
        "other_cores": max(0.0, end.busy - start.busy - busy - generator) / pace.seconds,
        "real_time_factor": busy / pace.seconds / pace.streams,
        "server_rss_mb": after.resident,
        "server_peak_mb": after.peak,
        "mb_per_stream": growth,
    }


def search(
    numbers: Sequence[int], measure: Callable[[int], bool], refine: bool = False, precision: float = 0.05
) -> int:
    """The most streams that hold, up to the first number that does not; 0 where none does.

    Refined, the gap between the two is halved until it is within `precision` of the capacity.
    """
    holds, fails = 0, None
    for number in sorted(set(numbers)):
        if not measure(number):
            fails = number
            break
        holds = number
    while refine and fails is not None and fails - holds > max(1, precision * holds):
        middle = (holds + fails) // 2
        if measure(middle):
            holds = middle
        else:
            fails = middle
    return holds


HEADER = (
    "streams   interim p50   p95   p99   final p50   p95   p99"
    "   server  gen. other   RSS  late p99    WER  alone  equal"
)


def row(level: Level, limit: float) -> str:
    """A line under HEADER: latencies and lateness in ms, processors in cores, memory in MiB."""
    rates = "".join("      -" if rate is None else f"{rate:7.2f}" for rate in (level.wer, level.wer_alone))
    verdict = level.verdict(limit)
    return (
        f"{level.streams:7}{level.interim_p50:14.0f}{level.interim_p95:6.0f}{level.interim_p99:6.0f}"
        f"{level.final_p50:12.0f}{level.final_p95:6.0f}{level.final_p99:6.0f}"
        f"{level.server_cores:9.2f}{level.generator_cores:6.2f}{level.other_cores:6.2f}{level.server_rss_mb:6.0f}{level.late_p99:10.1f}"
        f"{rates}{100 * level.transcripts_equal:6.1f}%{'  ' if verdict else ''}{verdict}"
    )


def bound(level: Level, cores: int) -> list[str]:
    """What a level leaves of the machine, and where the server's time went, for a reader."""
    left = cores - level.server_cores - level.generator_cores - level.other_cores
    lines = [
        f"at {level.streams} streams the server used {level.server_cores:.2f} and the generator "
        f"{level.generator_cores:.2f} of {cores} cores; others took {level.other_cores:.2f}, {left:.2f} were left"
    ]
    if level.server_cores > 0:
        most = level.streams * (cores - level.generator_cores) / level.server_cores
        lines.append(f"with every core busy at the same cost a stream it would carry {most:.0f}")
    return lines + stages(level.counters, level.streams)


def stages(counters: Mapping[str, float], streams: int) -> list[str]:
    """The server's own clock, by stage, for a second of audio; nothing where it keeps none."""
    name = "earsight_stage_duration_seconds_sum "
    spent = {key.removeprefix(name): value for key, value in counters.items() if key.startswith(name)}
    processed = sum(
        value for key, value in counters.items() if key.startswith("earsight_processed_audio_seconds_total")
    )
    lines = []
    if spent and processed:
        costs = ", ".join(f"{stage} {1000 * value / processed:.2f}" for stage, value in spent.items())
        lines.append(f"ms of each stage for a second of audio: {costs}")
    if mean := average(counters, "earsight_batch_streams"):
        lines.append(f"streams in a step, on average: {mean:.1f} of {streams}")
    if mean := average(counters, "earsight_queue_wait_seconds"):
        lines.append(f"audio waited for its step, on average: {1000 * mean:.1f} ms")
    return lines


def average(counters: Mapping[str, float], name: str) -> float | None:
    """Of a histogram over all its labels."""
    sums, counts = (
        sum(value for key, value in counters.items() if key.split(" ")[0] == f"{name}_{part}")
        for part in ("sum", "count")
    )
    return sums / counts if counts else None
