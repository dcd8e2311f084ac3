"""Sums of recordings: stretches of any length, powers, and one sound under another at a signal-to-noise ratio.

Dimension letter: S samples. Stored recordings may be int16 (half the memory); what is used of them becomes float32.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Samples = NDArray[np.float32]  # (S,) in [-1, 1]
Recording = NDArray[np.float32] | NDArray[np.int16]  # (S,)


def power(samples: Samples) -> float:
    """Mean square; silence between the words counts, as it does in the SNR of published noisy sets. 0 of nothing."""
    return float(np.dot(samples, samples)) / max(1, len(samples))


def stretch(recording: Recording, size: int, random: Generator) -> Samples:
    """`size` samples of a recording, (size,): a random cut; one that is too short is looped from a random place."""
    spare = len(recording) - size
    if spare >= 0:
        start = int(random.integers(spare + 1))
        return to_float(recording[start : start + size])
    start = int(random.integers(len(recording)))
    looped: Samples = np.resize(np.roll(to_float(recording), -start), size)
    return looped


def at_snr(speech: Samples, noise: Samples, snr: float) -> Samples:
    """The noise at `snr` decibels under equally long speech, by their mean powers, (S,): ready to be added.

    The sum may leave [-1, 1]. Where one of the two is silent no ratio exists, and the noise comes back as silence.
    """
    spoken, background = power(speech), power(noise)
    if not spoken or not background:
        return np.zeros_like(speech)
    return noise * np.float32(np.sqrt(spoken / background) * 10 ** (-snr / 20))


def to_float(recording: Recording) -> Samples:
    """Samples in [-1, 1] as float32, (S,); a float32 recording is not copied."""
    if recording.dtype == np.int16:
        return recording.astype(np.float32) / np.float32(32768)
    return recording.astype(np.float32, copy=False)
