"""The figures of a manifest: error rates with their 95 % intervals, speed, and rows by what utterances share."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training import bootstrap
from training.bootstrap import Interval
from training.error_rate import Edits
from training.heard import Heard

LENGTHS = (2.0, 5.0, 10.0, 15.0, 20.0)  # seconds between the rows
FINE, COARSE = 1, 5  # decibels of a row: a narrow range of signal-to-noise ratios is cut finer
NARROW = 10  # decibels

HEADING = (
    f"{'':22}{'WER %':>7}{'95 %':>17}{'sub':>6}{'del':>6}{'ins':>6}{'words':>7}{'CER %':>7}{'95 %':>17}"
    f"{'RTF':>8}{'median':>8}"
)


@dataclass(frozen=True)
class Figures:
    """The sums of a manifest. seconds: spent on recognition, summed; None where the network's outputs were kept."""

    words: Edits
    characters: Edits
    utterances: int
    audio_seconds: float
    wer: Interval
    cer: Interval
    drawn: str  # what the bootstrap draws
    seconds: float | None = None
    rtf_median: float | None = None
    different: tuple[str, ...] | None = None  # audio files whose stream and offline texts differ

    @property
    def rtf(self) -> float | None:
        """Seconds per second of audio, of all of it."""
        return None if self.seconds is None else self.seconds / max(self.audio_seconds, 1e-9)

    def as_json(self) -> dict[str, object]:
        figures: dict[str, object] = {
            "wer": round(self.words.rate, 4),
            "wer_interval": self.wer.as_json(),
            "cer": round(self.characters.rate, 4),
            "cer_interval": self.cer.as_json(),
            "drawn": self.drawn,
            "utterances": self.utterances,
            "audio_seconds": round(self.audio_seconds, 3),
            "seconds": _rounded(self.seconds, 3),
            "rtf": _rounded(self.rtf, 5),
            "rtf_median": _rounded(self.rtf_median, 5),
            "words": self.words.reference,
            "substitutions": self.words.substitutions,
            "deletions": self.words.deletions,
            "insertions": self.words.insertions,
        }
        if self.different is not None:
            figures |= {"streaming_equal": self.utterances - len(self.different), "different": list(self.different)}
        return figures

    def row(self, name: str) -> str:
        """A line below HEADING."""
        words, speeds = self.words, (self.rtf, self.rtf_median)
        kinds = f"{words.substitutions:6}{words.deletions:6}{words.insertions:6}{words.reference:7}"
        shown = "".join(f"{'-' if each is None else f'{each:.4f}':>8}" for each in speeds)
        return f"{name:22}{words.rate:7.2f}{self.wer!s:>17}{kinds}{self.characters.rate:7.2f}{self.cer!s:>17}{shown}"

    def remarks(self) -> list[str]:
        lines = [f"{self.utterances} utterances, {self.audio_seconds / 60:.1f} min of audio; drawn by {self.drawn}"]
        if self.different is not None:
            equal = self.utterances - len(self.different)
            lines.append(f"streaming equals offline in the same chunking: {equal} of {self.utterances}")
            lines += [f"  differs: {name}" for name in self.different]
        return lines


def summarise(heard: Sequence[Heard], seed: int = 0) -> Figures:
    names, drawn = _clusters(heard), bootstrap.drawn_by([each.utterance for each in heard])
    words, characters = [each.words for each in heard], [each.characters for each in heard]
    seconds = [each.seconds for each in heard if each.seconds is not None]
    factors = [each.real_time_factor for each in heard if each.real_time_factor is not None]
    timed = len(seconds) == len(heard)
    return Figures(
        sum(words, Edits()),
        sum(characters, Edits()),
        len(heard),
        sum(each.audio_seconds for each in heard),
        bootstrap.interval(words, names, seed),
        bootstrap.interval(characters, names, seed),
        drawn,
        sum(seconds) if timed else None,
        statistics.median(factors) if timed else None,
        tuple(str(each.utterance.audio) for each in heard if each.offline not in (None, each.text))
        if any(each.offline is not None for each in heard)
        else None,
    )


def change(first: Sequence[Heard], second: Sequence[Heard], seed: int = 0) -> tuple[float, Interval]:
    """The second word error rate less the first, in points, and its interval; equal speakers are drawn together."""
    before, after = ([each.words for each in heard] for heard in (first, second))
    names, others = _clusters(first), _clusters(second)
    points = sum(after, Edits()).rate - sum(before, Edits()).rate
    return points, bootstrap.difference(before, after, names, others, seed)


def _clusters(heard: Sequence[Heard]) -> list[str]:
    return bootstrap.clusters([each.utterance for each in heard])


@dataclass(frozen=True)
class Row:
    """Utterances that share something, and their figures."""

    name: str
    figures: Figures


@dataclass(frozen=True)
class Breakdown:
    """The same utterances in rows by one property, such as the speaker."""

    by: str
    rows: tuple[Row, ...]


def breakdowns(heard: Sequence[Heard], seed: int = 0) -> tuple[Breakdown, ...]:
    """By everything that is known of all of them and differs between some; by length always."""
    ratios = [each.utterance.snr for each in heard if each.utterance.snr is not None]
    width = FINE if ratios and max(ratios) - min(ratios) <= NARROW else COARSE
    properties: tuple[tuple[str, Callable[[Heard], tuple[float, str]]], ...] = (
        ("speaker", lambda each: (0, each.utterance.speaker)),
        ("source", lambda each: (0, each.utterance.source)),
        ("kind", lambda each: (0, each.utterance.kind)),
        ("snr", lambda each: _snr(each, width)),
        ("length", _length),
    )
    found = (_broken(by, heard, key, seed) for by, key in properties)
    return tuple(each for each in found if each.by == "length" or len(each.rows) > 1)


def _broken(by: str, heard: Sequence[Heard], key: Callable[[Heard], tuple[float, str]], seed: int) -> Breakdown:
    groups: dict[tuple[float, str], list[Heard]] = {}
    for each in heard:
        groups.setdefault(key(each), []).append(each)
    known = sorted((place, group) for place, group in groups.items() if place[1])
    return Breakdown(by, tuple(Row(name, summarise(group, seed)) for (_, name), group in known))


def _snr(heard: Heard, width: int) -> tuple[float, str]:
    if heard.utterance.snr is None:
        return 0, ""
    low = width * math.floor(heard.utterance.snr / width)
    return low, f"{low} to {low + width} dB"


def _length(heard: Heard) -> tuple[float, str]:
    edges = (0.0, *LENGTHS, math.inf)
    for low, high in itertools.pairwise(edges):
        if heard.audio_seconds < high:
            return low, f"{low:g} to {high:g} s" if high < math.inf else f"{low:g} s and more"
    raise AssertionError("no recording is infinite")


def worst(heard: Sequence[Heard], count: int) -> list[Heard]:
    """Those with most word errors; of equal ones first those with fewer words."""
    wrong = [each for each in heard if each.words.errors]
    return sorted(wrong, key=lambda each: (-each.words.errors, each.words.reference))[:count]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
