"""Wire bytes -> float32 mono at the model's rate, piece by piece.

    bytes -> [sniff a header] -> PcmSource | WavSource | FlacSource -> first channel -> resampler -> samples

Each stage has two verbs, feed and flush, and carries what a cut left over: header bytes, half a sample, part of a
FLAC frame, the resampler's filter memory. However a recording is cut into pieces, the joined samples are bit-equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

from asr_server import flac, pcm, wav
from asr_server.flac import FlacSource
from asr_server.pcm import Header, PcmSource, Samples
from asr_server.wav import WavSource

MIN_RATE, MAX_RATE = 8000, 48000  # Hz
MAX_CHANNELS = 8

_RAW = {"LINEAR16": pcm.LINEAR16, "MULAW": pcm.MULAW}
ENCODINGS = (*_RAW, "FLAC")

Source = PcmSource | WavSource | FlacSource


@dataclass(frozen=True)
class AudioFormat:
    """What the sender says about the audio; an empty field leaves it to the header."""

    encoding: str = ""  # one of ENCODINGS
    sample_rate: int = 0  # Hz
    channels: int = 0

    def __post_init__(self) -> None:
        if self.encoding and self.encoding not in ENCODINGS:
            raise ValueError(
                f"Invalid recognition 'config': bad encoding. {self.encoding} is not supported. "
                f"Select one of {{{', '.join(ENCODINGS)}}}, or leave it out for audio with a WAV or FLAC header."
            )
        if self.sample_rate:
            _check_rate(self.sample_rate)
        if not 0 <= self.channels <= MAX_CHANNELS:
            raise ValueError(
                f"Invalid recognition 'config': bad audio_channel_count. It is {self.channels}; "
                f"it must be between 1 and {MAX_CHANNELS}, or 0 for one."
            )
        if self.encoding == "MULAW" and self.channels > 1:
            raise ValueError(f"Invalid recognition 'config': MULAW audio has one channel, not {self.channels}.")


class AudioDecoder:
    """One recording or stream. Errors are ValueErrors that name the field, the value and the rule."""

    def __init__(self, audio_format: AudioFormat, rate: int) -> None:
        self._format = audio_format
        self._rate = rate
        self._opening = b""  # the first bytes, while they could still become a header
        self._source: Source | None = None
        self._resampler: soxr.ResampleStream | None = None
        self._header: Header | None = None

    @property
    def header(self) -> Header | None:
        """What the audio turned out to be; None until that is known."""
        return self._header

    def feed(self, data: bytes) -> Samples:
        """Any number of bytes -> the samples (S,) that are complete with them."""
        if self._source is None:
            data = self._opening + data
            self._source = self._open(data)
            self._opening = b"" if self._source else data
        if self._source is None:
            return pcm.NOTHING
        return self._resample(self._source.feed(data), last=False)

    def flush(self) -> Samples:
        """The samples still inside the stages. Nothing may be fed afterwards."""
        if self._source is None:
            if not self._opening:
                return pcm.NOTHING
            self._source = self._open_raw()  # too short to hold a header
        rest = self._source.feed(self._opening)
        return self._resample(np.concatenate([rest, self._source.flush()]), last=True)

    def _open(self, data: bytes) -> Source | None:
        """Choose the source by the first bytes; None while more of them are needed."""
        if any(magic.startswith(data[:4]) for magic in (*wav.MAGICS, flac.MAGIC)) and len(data) < 12:
            return None
        if data[:4] in wav.MAGICS and data[8:12] == b"WAVE":
            return WavSource()
        if data[:4] == flac.MAGIC:
            return FlacSource()
        return self._open_raw()

    def _open_raw(self) -> Source:
        if self._format.encoding == "FLAC":
            raise ValueError("FLAC audio must begin with its header: the bytes 'fLaC' are missing.")
        if not self._format.encoding:
            raise ValueError(
                "Invalid recognition 'config': bad encoding. It is unspecified and the audio has no WAV or FLAC "
                f"header. Select one of {{{', '.join(ENCODINGS)}}}."
            )
        _check_rate(self._format.sample_rate)
        return PcmSource(_RAW[self._format.encoding], self._format.sample_rate, max(self._format.channels, 1))

    def _resample(self, samples: Samples, last: bool) -> Samples:
        assert self._source is not None
        if self._header is None:
            if self._source.header is None:
                return pcm.NOTHING
            self._header = self._source.header
            self._check(self._header)
            if self._header.sample_rate != self._rate:
                self._resampler = soxr.ResampleStream(self._header.sample_rate, self._rate, 1, dtype="float32")
        if self._resampler is None:
            return np.ascontiguousarray(samples)
        # Filters overshoot at full scale; the models saw [-1, 1].
        resampled: Samples = self._resampler.resample_chunk(np.ascontiguousarray(samples), last=last)
        return np.clip(resampled, -1, 1)

    def _check(self, header: Header) -> None:
        """Hold a WAV or FLAC header against what the sender said."""
        _check_rate(header.sample_rate)
        said = (
            ("encoding", self._format.encoding, header.encoding),
            ("sample_rate_hertz", self._format.sample_rate, header.sample_rate),
            ("audio_channel_count", self._format.channels, header.channels),
        )
        for field, value, found in said:
            if value and value != found:
                raise ValueError(
                    f"{field} ({value}) in RecognitionConfig must either be omitted or match the value in the "
                    f"{header.container} header ({found})."
                )


def _check_rate(rate: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(
            f"Invalid recognition 'config': bad sample rate hertz. It is {rate}; "
            f"it must be between {MIN_RATE} and {MAX_RATE}."
        )
