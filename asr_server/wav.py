"""RIFF/WAVE read from a stream that may be cut at any byte.

The file is a row of chunks: an id, a length, that many bytes and a padding byte where the length is odd. `fmt `
says how samples are written and `data` holds them. Writers that could not seek back leave the length of `data` at
0 or 0xFFFFFFFF; then everything up to the end is audio.
"""

from __future__ import annotations

import struct

from asr_server import pcm
from asr_server.pcm import ChannelSamples, Codec, Header, PcmSource

MAGICS = (b"RIFF", b"RF64")  # RF64 is the variant for files over 4 GiB

_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_CODECS: dict[tuple[int, int], Codec] = {
    (_PCM, 8): pcm.LINEAR8,
    (_PCM, 16): pcm.LINEAR16,
    (_PCM, 24): pcm.LINEAR24,
    (_PCM, 32): pcm.LINEAR32,
    (_FLOAT, 32): pcm.FLOAT32,
    (_FLOAT, 64): pcm.FLOAT64,
    (_ALAW, 8): pcm.ALAW,
    (_MULAW, 8): pcm.MULAW,
}
_MAX_FMT = 4096  # bytes; the longest `fmt ` chunk in use has 40
_UNKNOWN_LENGTHS = (0, 0xFFFFFFFF)


class WavSource:
    """Samples of a WAV file. `header` is None until the `data` chunk has begun."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self._samples: PcmSource | None = None
        self._buffer = b""  # header bytes not yet understood; at most one `fmt ` chunk
        self._skip = 12  # bytes to pass over: "RIFF", length, "WAVE", later chunks nobody needs
        self._left: int | None = None  # bytes of the data chunk still to come; None: up to the end

    def feed(self, data: bytes) -> ChannelSamples:
        if self.header is None:
            data = self._read_header(self._buffer + data)
        if self._samples is None:
            return pcm.NOTHING
        if self._left is not None:  # what follows the data chunk is not audio
            data = data[: self._left]
            self._left -= len(data)
        return self._samples.feed(data)

    def flush(self) -> ChannelSamples:
        if self._samples is None:
            raise ValueError("the WAV header is incomplete: the audio ended before a 'data' chunk")
        return self._samples.flush()

    def _read_header(self, data: bytes) -> bytes:
        """Walk over the chunks up to `data`; returns what lies inside it."""
        while True:
            passed = min(self._skip, len(data))
            data, self._skip = data[passed:], self._skip - passed
            if self._skip or len(data) < 8:
                self._buffer = data
                return b""
            name, length = struct.unpack_from("<4sI", data)
            if name == b"data":
                return self._begin_data(length, data[8:])
            if name == b"fmt ":
                if length > _MAX_FMT:
                    raise ValueError(f"the WAV header's 'fmt ' chunk has {length} bytes; at most {_MAX_FMT} make sense")
                if len(data) < 8 + length:
                    self._buffer = data
                    return b""
                self._samples = _read_format(data[8 : 8 + length])
            self._skip = 8 + length + length % 2

    def _begin_data(self, length: int, data: bytes) -> bytes:
        if self._samples is None:
            raise ValueError("the WAV header has no 'fmt ' chunk before its 'data' chunk")
        self._left = None if length in _UNKNOWN_LENGTHS else length
        self.header = self._samples.header
        self._buffer = b""
        return data


def _read_format(chunk: bytes) -> PcmSource:
    if len(chunk) < 16:
        raise ValueError(f"the WAV header's 'fmt ' chunk has {len(chunk)} bytes; at least 16 are needed")
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and len(chunk) >= 26:  # the real tag opens the GUID of the sub-format
        (tag,) = struct.unpack_from("<H", chunk, 24)
    codec = _CODECS.get((tag, bits))
    if codec is None:
        choices = ", ".join(sorted(codec.name for codec in _CODECS.values()))
        raise ValueError(f"WAV format tag {tag} with {bits} bits is not supported. Select one of {{{choices}}}")
    if not 1 <= channels <= 8:
        raise ValueError(f"the WAV header says {channels} channels; it must be between 1 and 8")
    source = PcmSource(codec, rate, channels)
    source.header = Header("WAV", codec.name, rate, channels)
    return source
