"""Plain samples: interleaved little-endian numbers of one of a few codecs, cut anywhere.

Every source of samples (this one, wav.py, flac.py, opus.py, mp3.py, amr.py) has the same two verbs: `feed(data)`
returns the samples that are complete so far and `flush()` the rest, both as float32 of shape (C, S) in [-1, 1], for C
channels of S samples each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]  # (S,), mono, in [-1, 1]
ChannelSamples = npt.NDArray[np.float32]  # (C, S), in [-1, 1]

NOTHING: ChannelSamples = np.zeros((1, 0), dtype=np.float32)

# A few bytes can stand for minutes of silence, so what one call may yield is bounded, not only what it eats.
MAX_SAMPLES_PER_FEED = 1 << 23  # of all channels together


def join(parts: Iterable[ChannelSamples]) -> ChannelSamples:
    """One array of the parts, which are not asked for when those before them were too many."""
    kept, count = [], 0
    for part in parts:
        count += part.size
        if count > MAX_SAMPLES_PER_FEED:
            raise ValueError(f"the audio expands to more than {MAX_SAMPLES_PER_FEED} samples at once")
        if part.size:
            kept.append(part)
    if len(kept) > 1:
        return np.concatenate(kept, axis=1)
    return kept[0] if kept else NOTHING


def _mulaw_table() -> Samples:
    """The 256 values of ITU-T G.711 mu-law, scaled from 16 bits."""
    code = ~np.arange(256) & 0xFF
    exponent, mantissa = (code >> 4) & 7, code & 15
    magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84
    return (np.where(code & 0x80, -magnitude, magnitude) / 32768).astype(np.float32)


def _alaw_table() -> Samples:
    """The 256 values of ITU-T G.711 A-law, scaled from 16 bits."""
    code = np.arange(256) ^ 0x55
    exponent, mantissa = (code >> 4) & 7, code & 15
    linear = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0))
    return (np.where(code & 0x80, linear, -linear) / 32768).astype(np.float32)


_MULAW, _ALAW = _mulaw_table(), _alaw_table()


def _integer(dtype: str, bits: int) -> Callable[[bytes], Samples]:
    return lambda data: np.frombuffer(data, dtype).astype(np.float32) * np.float32(2.0 ** (1 - bits))


def _unsigned8(data: bytes) -> Samples:
    return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / np.float32(128)


def _linear24(data: bytes) -> Samples:
    """Three bytes become the upper three of four, which keeps the sign without a branch."""
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    return wide.view("<i4")[:, 0].astype(np.float32) * np.float32(2.0**-31)


def _floating(dtype: str) -> Callable[[bytes], Samples]:
    # A NaN would poison every feature after it, so it becomes silence.
    return lambda data: np.nan_to_num(np.clip(np.frombuffer(data, dtype).astype(np.float32), -1, 1), nan=0.0)


@dataclass(frozen=True)
class Codec:
    """How one sample is written."""

    name: str
    width: int  # bytes
    decode: Callable[[bytes], Samples]


LINEAR8 = Codec("8-bit PCM", 1, _unsigned8)
LINEAR16 = Codec("LINEAR16", 2, _integer("<i2", 16))
LINEAR24 = Codec("24-bit PCM", 3, _linear24)
LINEAR32 = Codec("32-bit PCM", 4, _integer("<i4", 32))
FLOAT32 = Codec("32-bit float PCM", 4, _floating("<f4"))
FLOAT64 = Codec("64-bit float PCM", 8, _floating("<f8"))
MULAW = Codec("MULAW", 1, lambda data: _MULAW[np.frombuffer(data, np.uint8)])
ALAW = Codec("ALAW", 1, lambda data: _ALAW[np.frombuffer(data, np.uint8)])


@dataclass(frozen=True)
class Header:
    """What a source says about its own samples."""

    container: str  # as a name for readers, such as "WAV"; "" where there is none
    encoding: str
    sample_rate: int  # Hz
    channels: int


class PcmSource:
    """Samples without a header: the caller says what they are."""

    def __init__(self, codec: Codec, sample_rate: int, channels: int) -> None:
        self.header = Header("", codec.name, sample_rate, channels)
        self._codec = codec
        self._frame = codec.width * channels  # bytes of one sample of every channel
        self._tail = b""  # an incomplete frame

    def feed(self, data: bytes) -> ChannelSamples:
        data = self._tail + data
        whole = len(data) - len(data) % self._frame
        self._tail = data[whole:]
        return self._codec.decode(data[:whole]).reshape(-1, self.header.channels).T

    def flush(self) -> ChannelSamples:
        """Half a sample cannot be played; it is dropped."""
        self._tail = b""
        return NOTHING
