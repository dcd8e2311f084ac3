"""One of FFmpeg's decoders, fed packet by packet.

FFmpeg is loaded when the first compressed stream arrives: a server of plain samples starts faster and stays smaller.
Its demuxers are not used. Measured on files that arrive in real time, the Ogg one answers 0.97 s late (it waits for
the end of a page), the MP3 one 0.32 s; each stream would need a thread that blocks in a read; and what they keep
(attachments, tags, an index) grows with the stream. Here nothing waits, and what is kept is one decoder's state.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from asr_server.pcm import ChannelSamples

if TYPE_CHECKING:
    import av


_PADDING = 64  # bytes; AV_INPUT_BUFFER_PADDING_SIZE


@cache
def _library() -> ModuleType:
    import av
    import av.logging

    av.logging.set_level(None)  # what is wrong with a stream is its sender's to read, not the operator's
    return av


class FrameDecoder:
    """Packets of one codec -> float32 samples."""

    def __init__(self, codec: str, extradata: bytes = b"") -> None:
        self._av = _library()
        context: av.AudioCodecContext = self._av.CodecContext.create(codec, "r")
        context.thread_count = 1
        context.options = {"request_sample_fmt": "flt"}
        if extradata:
            context.extradata = extradata
        self._context = context

    @property
    def sample_rate(self) -> int:
        """Hz, of what was decoded last."""
        return self._context.sample_rate

    def split(self, data: bytes) -> list[bytes]:
        """The packets that are complete with `data`, of a codec that needs no container; b"" ends the stream."""
        return [bytes(packet) for packet in self._context.parse(_padded(data))]

    def decode(self, packet: bytes) -> ChannelSamples | None:
        """The samples (C, S) of one packet in [-1, 1]; None where it is damaged."""
        assert packet  # FFmpeg takes an empty packet for the end of the stream
        try:
            frames = self._context.decode(self._av.Packet(_padded(packet)))
        except self._av.FFmpegError:
            return None
        if not frames:
            return None
        decoded = [_samples(frame) for frame in frames]
        if len({part.shape[0] for part in decoded}) != 1:
            return None
        return np.concatenate(decoded, axis=1)


def _padded(data: bytes) -> memoryview:
    """FFmpeg reads a little further than it is told to, and PyAV hands it the memory of `data` itself.

    Without zeros there, a damaged MP3 frame would be decoded together with whatever lies behind it.
    """
    return memoryview(data + bytes(_PADDING))[: len(data)]


def _samples(frame: av.AudioFrame) -> ChannelSamples:
    """(C, S), whether the channels lie one after the other or sample by sample."""
    channels = frame.layout.nb_channels
    array = frame.to_ndarray()
    assert array.dtype == np.float32, frame.format.name
    values: ChannelSamples = array.astype(np.float32, copy=False)
    values = values.reshape(channels, -1) if frame.format.is_planar else values.reshape(-1, channels).T
    # Codecs overshoot at full scale, and a damaged packet can hold anything; a NaN would poison all that follows.
    return np.nan_to_num(np.clip(values, -1, 1), nan=0.0)
