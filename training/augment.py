"""Changes of training spectra: tempo and pitch each on its own, and masked stretches.

All act on log spectra before normalisation, (T, F) with the energy last. The filters are spaced linearly, so stretching
their axis scales frequency. What can be done to a waveform is in waveform.py.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Spectrum = NDArray[np.float32]


@dataclass(frozen=True)
class AugmentOptions:
    """How far each change may go; `0` switches one off."""

    tempo: float = 0.0  # factors within 1 -+ tempo at the same pitch
    pitch: float = 0.05  # frequency factors within 1 -+ pitch, as with vocal tracts of other lengths
    time_masks: float = 1.0  # masks per second of audio
    time_mask_frames: int = 12
    frequency_masks: int = 2
    frequency_mask_filters: int = 12


def augment(spectrum: Spectrum, options: AugmentOptions, random: Generator) -> Spectrum:
    """One version of an utterance; masks are written as NaN, which the caller makes the mean."""
    tempo = 1 + options.tempo * random.uniform(-1, 1)
    pitch = 1 + options.pitch * random.uniform(-1, 1)
    return mask(warp(spectrum, tempo, pitch), options, random)


def warp(spectrum: Spectrum, tempo: float, pitch: float) -> Spectrum:
    """Faster by `tempo` and higher by `pitch`: linear interpolation along time and along the filters."""
    frames, size = spectrum.shape
    if tempo != 1:
        spectrum = _interpolate(spectrum, np.arange(max(1, round(frames / tempo))) * np.float32(tempo))
    if pitch == 1:
        return spectrum
    filters = _interpolate(spectrum[:, :-1].T, np.arange(size - 1) / np.float32(pitch)).T
    return np.concatenate([filters, spectrum[:, -1:]], axis=1)


def mask(spectrum: Spectrum, options: AugmentOptions, random: Generator) -> Spectrum:
    """SpecAugment (Park et al. 2019): stretches of frames and of filters are lost, here as NaN."""
    frames, size = spectrum.shape
    masked = spectrum.copy()
    for _ in range(random.poisson(options.time_masks * frames / 100)):
        width = random.integers(options.time_mask_frames + 1)
        start = random.integers(frames)
        masked[start : start + width] = np.nan
    for _ in range(options.frequency_masks):
        width = random.integers(options.frequency_mask_filters + 1)
        start = random.integers(size - 1)
        masked[:, start : min(start + width, size - 1)] = np.nan
    return masked


def _interpolate(rows: Spectrum, positions: NDArray[np.floating]) -> Spectrum:
    """Rows at fractional positions; beyond the ends the last row holds."""
    low = np.clip(positions.astype(np.int64), 0, len(rows) - 1)
    high = np.minimum(low + 1, len(rows) - 1)
    share = np.clip(positions - low, 0, 1).astype(np.float32)[:, None]
    between: Spectrum = rows[low] * (1 - share) + rows[high] * share
    return between
