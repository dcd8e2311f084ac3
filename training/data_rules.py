"""Rules about one line of a manifest and its recording, each alone."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from asr_server.alphabet import Alphabet
from training.data_entries import ERROR, WARNING, Entry, Finding
from training.recording_facts import RecordingFacts


@dataclass(frozen=True)
class Limits:
    """What is odd. The defaults fit read English: the fastest of LibriSpeech's clean parts is near 25 characters/s."""

    rate: int = 16000  # Hz
    shortest: float = 0.2  # seconds
    longest: float = 36.0  # seconds; LibriSpeech ends at 35
    slowest: float = 3.0  # characters per second
    fastest: float = 28.0
    tolerance: float = 0.1  # seconds that a manifest may round by
    frames_per_second: float = 50.0  # of the network's output: a CTC path needs a frame for each symbol
    quietest: float = 0.003  # peak
    clipped: float = 0.001  # share of the samples
    silence: float = 2.0  # seconds of exact zeros in speech

    def __post_init__(self) -> None:
        for low, high in (("shortest", "longest"), ("slowest", "fastest")):
            if not 0 <= getattr(self, low) < getattr(self, high):
                raise ValueError(
                    f"{low} {getattr(self, low)} and {high} {getattr(self, high)}: the first is the smaller one"
                )
        if self.rate < 1 or self.frames_per_second <= 0:
            raise ValueError(f"rate {self.rate} and frames per second {self.frames_per_second}: both are positive")


def of_entry(entry: Entry, facts: RecordingFacts, limits: Limits, alphabet: Alphabet) -> list[Finding]:
    """Everything that is wrong with one line, its recording and its text."""
    findings = [entry.finding(*found) for found in _of_recording(entry, facts, limits)]
    if not entry.noise:
        findings += [entry.finding(*found) for found in _of_text(entry, alphabet)]
        if not facts.trouble:
            findings += [entry.finding(*found) for found in _of_speech(entry, facts, limits)]
    return findings


Found = tuple[str, str, str]  # severity, rule, text


def _of_recording(entry: Entry, facts: RecordingFacts, limits: Limits) -> Iterator[Found]:
    if facts.trouble:
        missing = not entry.audio.exists()
        yield (
            ERROR,
            "missing" if missing else "unreadable",
            f"{entry.audio} " + ("does not exist" if missing else facts.trouble),
        )
        return
    if facts.rate != limits.rate:
        yield ERROR, "rate", f"{facts.rate} Hz, the features need {limits.rate} Hz"
    if facts.channels > 1:
        yield WARNING, "channels", f"{facts.channels} channels, of which the first is taken"
    if abs(facts.seconds - entry.duration) > limits.tolerance:
        yield ERROR, "duration", f"the manifest says {entry.duration:g} s, the file has {facts.seconds:.3f} s"
    if facts.peak < limits.quietest:
        yield ERROR, "silent", f"the loudest sample is {facts.peak:.5f} of full scale, at least {limits.quietest}"
    if facts.clipped > limits.clipped:
        yield (
            WARNING,
            "clipping",
            f"{facts.clipped:.2%} of the samples are cut at full scale, at most {limits.clipped:.2%}",
        )


def _of_text(entry: Entry, alphabet: Alphabet) -> Iterator[Found]:
    if not entry.text:
        yield ERROR, "empty", "the text is empty"
    strange = sorted(set(entry.text) - set(alphabet.labels))
    if strange:
        yield ERROR, "alphabet", f"{' '.join(map(repr, strange))} in {entry.text!r} cannot be written with the alphabet"


def _of_speech(entry: Entry, facts: RecordingFacts, limits: Limits) -> Iterator[Found]:
    seconds = facts.seconds
    if not limits.shortest <= seconds <= limits.longest:
        yield WARNING, "length", f"{seconds:.2f} s, outside {limits.shortest:g} to {limits.longest:g} s"
    speed = len(entry.text) / seconds
    if entry.text and not limits.slowest <= speed <= limits.fastest:
        yield WARNING, "speed", f"{speed:.1f} characters/s, outside {limits.slowest:g} to {limits.fastest:g}"
    needed = len(entry.text) + sum(a == b for a, b in itertools.pairwise(entry.text))  # a blank between equal ones
    frames = int(seconds * limits.frames_per_second)
    if needed > frames:
        yield (
            ERROR,
            "ctc",
            f"{needed} frames are needed for {entry.text!r}, the network has {frames} in {seconds:.2f} s",
        )
    if facts.silence > limits.silence:
        yield WARNING, "zeros", f"{facts.silence:.2f} s of digital silence, at most {limits.silence:g} s"
