"""Opus packets of a container -> samples at 48 kHz, without what only settles or pads the codec.

libopus is taken rather than FFmpeg's own decoder: it is the reference, and its samples come interleaved (PyAV 18.1
counts nine planes in a frame of eight planar channels, and reading the ninth ends the process).
"""

from __future__ import annotations

import numpy as np

from asr_server import opus_packet
from asr_server.ffmpeg import FrameDecoder
from asr_server.ogg import OggReader
from asr_server.opus_packet import OpusHead, OpusPacket
from asr_server.pcm import ChannelSamples, Header, join
from asr_server.webm import WebmReader


class OpusSource:
    """Samples of an Ogg or WebM stream. `header` is None until its OpusHead has been read."""

    def __init__(self, reader: OggReader | WebmReader) -> None:
        self.header: Header | None = None
        self._reader = reader
        self._decoder: FrameDecoder | None = None
        self._pre_skip = 0  # samples still to be dropped
        self._damaged = self._decoded = 0  # packets

    def feed(self, data: bytes) -> ChannelSamples:
        return join(self._read(item) for item in self._reader.feed(data))

    def flush(self) -> ChannelSamples:
        """A packet of which the end is missing is dropped, as half a sample is."""
        name = self._reader.container
        if self.header is None:
            raise ValueError(f"the {name} header is incomplete: the audio ended before Opus began")
        if self._damaged and not self._decoded:
            raise ValueError(f"damaged {name} data: none of {self._damaged} Opus packets could be decoded")
        return join([])

    def _read(self, item: OpusHead | OpusPacket) -> ChannelSamples:
        if isinstance(item, OpusHead):
            self._begin(item)
            return join([])
        samples = self._decode(item)[:, : item.keep]
        dropped = min(self._pre_skip, item.keep)
        self._pre_skip -= dropped
        return samples[:, dropped:]

    def _begin(self, head: OpusHead) -> None:
        header = Header(self._reader.container, self._reader.encoding, opus_packet.RATE, head.channels)
        if self.header is not None and self.header != header:
            raise ValueError(f"the Ogg stream goes on with {head.channels} channels after {self.header.channels}")
        self.header = header
        self._pre_skip = head.pre_skip
        # FFmpeg would drop the pre-skip as well, but not where it falls on a damaged packet.
        self._decoder = FrameDecoder("libopus", head.data[:10] + bytes(2) + head.data[12:])

    def _decode(self, packet: OpusPacket) -> ChannelSamples:
        """A damaged packet becomes silence of its length, so that the times after it stay right."""
        assert self._decoder is not None and self.header is not None
        samples = self._decoder.decode(packet.data) if packet.duration else None
        shape = (self.header.channels, packet.duration)
        if samples is None or samples.shape != shape:
            self._damaged += 1
            return np.zeros(shape, np.float32)
        self._decoded += 1
        return samples
