"""Wire bytes -> float32 at the model's rate, piece by piece. C channels, S samples of each.

    bytes -> [sniff a header] -> PcmSource | WavSource | FlacSource | OpusSource | Mp3Source | AmrSource
          -> one channel or all -> resampler -> samples (C, S)

Each stage has two verbs, feed and flush, and carries what a cut left over: header bytes, half a sample, part of a
packet, the resampler's filter memory. However a recording is cut into pieces, the joined samples are bit-equal.
No stage holds a thread or a descriptor, so a decoder may also just be dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

from asr_server import pcm
from asr_server.pcm import ChannelSamples, Header, PcmSource
from asr_server.sniffing import OPENINGS, Source, sniff, undecided

MIN_RATE, MAX_RATE = 8000, 48000  # Hz
MAX_CHANNELS = 8
# Tags and pictures are passed over, not kept; but a stream that is nothing else would never be told to end.
MAX_BYTES_WITHOUT_AUDIO = 16 << 20

_RAW = {"LINEAR16": pcm.LINEAR16, "MULAW": pcm.MULAW, "ALAW": pcm.ALAW}
ENCODINGS = (*_RAW, *OPENINGS)

_OPUS = ("OGG_OPUS", "WEBM_OPUS")
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)  # Hz; what Opus can have been made from


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
                f"Select one of {{{', '.join(ENCODINGS)}}}, or leave it out for audio with a header of its own."
            )
        if self.sample_rate:
            _check_rate(self.sample_rate)
        if self.encoding in _OPUS and self.sample_rate not in (0, *_OPUS_RATES):
            raise ValueError(
                f"Invalid recognition 'config': bad sample rate hertz. It is {self.sample_rate}; "
                f"for {self.encoding}, select one of {{{', '.join(map(str, _OPUS_RATES))}}} or leave it out."
            )
        if not 0 <= self.channels <= MAX_CHANNELS:
            raise ValueError(
                f"Invalid recognition 'config': bad audio_channel_count. It is {self.channels}; "
                f"it must be between 1 and {MAX_CHANNELS}, or 0 for one."
            )
        if self.encoding in ("MULAW", "ALAW") and self.channels > 1:
            raise ValueError(
                f"Invalid recognition 'config': {self.encoding} audio has one channel, not {self.channels}."
            )


class AudioDecoder:
    """One recording or stream. Errors are ValueErrors that name the field, the value and the rule.

    Samples are of shape (C, S), float32 in rows without gaps: the first channel, or with `separate_channels` all of
    them. Until the header is known C is 1 and S is 0.
    """

    def __init__(self, audio_format: AudioFormat, rate: int, separate_channels: bool = False) -> None:
        self._format = audio_format
        self._rate = rate
        self._separate = separate_channels
        self._opening = b""  # the first bytes, while they could still become a header
        self._source: Source | None = None
        self._resampler: soxr.ResampleStream | None = None
        self._header: Header | None = None
        self._without_audio = 0  # bytes since the last sample

    @property
    def header(self) -> Header | None:
        """What the audio turned out to be; None until that is known."""
        return self._header

    def feed(self, data: bytes) -> ChannelSamples:
        """Any number of bytes -> the samples (C, S) that are complete with them."""
        size = len(data)
        if self._source is None:
            data = self._opening + data
            if undecided(data, self._format.encoding):
                self._opening = data
                return pcm.NOTHING
            self._source = self._open(data)
            self._opening = b""
        source = self._source  # `close` may come from another thread meanwhile
        samples = source.feed(data)
        self._without_audio = 0 if samples.size else self._without_audio + size
        if self._without_audio > MAX_BYTES_WITHOUT_AUDIO:
            raise ValueError(f"no audio within {MAX_BYTES_WITHOUT_AUDIO} bytes of the stream")
        return self._resample(source, samples, last=False)

    def flush(self) -> ChannelSamples:
        """The samples still inside the stages. Nothing may be fed afterwards."""
        if self._source is None:
            if not self._opening:
                return pcm.NOTHING
            self._source = self._open(self._opening)  # too short to become what it could have been
        source = self._source
        rest = source.feed(self._opening)
        return self._resample(source, pcm.join([rest, source.flush()]), last=True)

    def close(self) -> None:
        """Let go of codec and filter memory now rather than with the last reference. Nothing may be fed afterwards."""
        self._source = self._resampler = None
        self._opening = b""

    def _open(self, data: bytes) -> Source:
        """Choose the source by the first bytes."""
        encoding = self._format.encoding
        opening = sniff(data, encoding)
        if opening:
            found = next((name for name, each in OPENINGS.items() if each is opening), encoding)
            if encoding in _RAW and found != encoding:  # before anything is decoded, which may take long
                raise ValueError(
                    f"encoding ({encoding}) in RecognitionConfig must either be omitted or match the value in the "
                    f"{opening.container} header ({found})."
                )
            return opening.source()
        if not encoding:
            raise ValueError(
                "Invalid recognition 'config': bad encoding. It is unspecified and the audio has no WAV, FLAC, Ogg, "
                f"WebM, MP3 or AMR header. Select one of {{{', '.join(ENCODINGS)}}}."
            )
        if encoding in OPENINGS:
            (magic,) = OPENINGS[encoding].magics
            raise ValueError(f"{encoding} audio must begin with its header: the bytes {repr(magic)[1:]} are missing.")
        _check_rate(self._format.sample_rate)
        return PcmSource(_RAW[encoding], self._format.sample_rate, max(self._format.channels, 1))

    def _resample(self, source: Source, samples: ChannelSamples, last: bool) -> ChannelSamples:
        if self._header is None and source.header is not None:
            self._begin(source.header)
        if self._header is None:
            return pcm.NOTHING
        channels = self._header.channels if self._separate else 1
        if not samples.size:
            samples = np.zeros((channels, 0), np.float32)
        samples = samples[:channels]
        resampler = self._resampler
        if resampler is None:
            return np.ascontiguousarray(samples)
        resampled: ChannelSamples = resampler.resample_chunk(np.ascontiguousarray(samples.T), last=last)
        # Filters overshoot at full scale; the models saw [-1, 1].
        return np.clip(np.ascontiguousarray(resampled.T), -1, 1)

    def _begin(self, header: Header) -> None:
        """Once the source knows its header, choose what has to follow it."""
        self._check(header)
        self._header = header
        if header.sample_rate != self._rate:
            channels = header.channels if self._separate else 1
            self._resampler = soxr.ResampleStream(header.sample_rate, self._rate, channels, dtype="float32")

    def _check(self, header: Header) -> None:
        """Hold a container's header against what the sender said."""
        _check_rate(header.sample_rate)
        # Opus decodes at 48 kHz, whatever rate it was made from.
        rate = 0 if header.encoding in _OPUS else self._format.sample_rate
        said = (
            ("encoding", self._format.encoding, header.encoding),
            ("sample_rate_hertz", rate, header.sample_rate),
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
