"""AMR and AMR-WB: a marker and frames of 20 ms whose first byte says how long they are (RFC 4867, section 5).

The codecs of mobile telephony. A frame without speech (comfort noise, nothing sent) becomes silence: FFmpeg's
decoders do not make the noise, and a recognizer does not miss it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asr_server.ffmpeg import FrameDecoder
from asr_server.pcm import ChannelSamples, Header, join


@dataclass(frozen=True)
class AmrCodec:
    encoding: str
    magic: bytes
    sample_rate: int  # Hz
    frames: tuple[int, ...]  # bytes of a frame by its type, its first byte included
    decoder: str  # FFmpeg's name

    @property
    def samples(self) -> int:
        """Of a frame."""
        return self.sample_rate // 50


AMR = AmrCodec("AMR", b"#!AMR\n", 8000, (13, 14, 16, 18, 20, 21, 27, 32, 6, *(1,) * 7), "amrnb")
AMR_WB = AmrCodec("AMR_WB", b"#!AMR-WB\n", 16000, (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, *(1,) * 6), "amrwb")


class AmrSource:
    """Samples of an AMR stream, the marker included."""

    def __init__(self, codec: AmrCodec) -> None:
        self.header = Header("AMR", codec.encoding, codec.sample_rate, 1)
        self._codec = codec
        self._decoder = FrameDecoder(codec.decoder)
        self._skip = len(codec.magic)
        self._tail = b""  # an incomplete frame

    def feed(self, data: bytes) -> ChannelSamples:
        passed = min(self._skip, len(data))
        self._skip -= passed
        data = self._tail + data[passed:]
        frames, start = [], 0
        while start < len(data) and (end := start + self._codec.frames[data[start] >> 3 & 15]) <= len(data):
            frames.append(data[start:end])
            start = end
        self._tail = data[start:]
        return join(self._decode(frame) for frame in frames)

    def flush(self) -> ChannelSamples:
        """Half a frame cannot be played; it is dropped."""
        return join([])

    def _decode(self, frame: bytes) -> ChannelSamples:
        if frame[0] & 0x83:  # these bits are always zero: the place is not a frame's
            raise ValueError(f"damaged AMR data: no frame begins with the byte {frame[0]:#04x}")
        samples = self._decoder.decode(frame) if len(frame) > 6 else None
        shape = (1, self._codec.samples)
        return samples if samples is not None and samples.shape == shape else np.zeros(shape, np.float32)
