"""FLAC read from a stream that may be cut at any byte.

A FLAC stream is "fLaC", metadata blocks of which the first (STREAMINFO) is all a decoder needs, and frames that
can be decoded on their own (RFC 9639). libFLAC, behind soundfile, wants a whole file; so this reader finds the
borders of frames, and as soon as some frames are complete it hands them to libFLAC as a small file of their own:
STREAMINFO and those frames. Memory is bounded by one frame, and no decoder state lives between two calls.

A frame's border is where the next frame's header stands: its sync code, its CRC-8 and a running number that must
be the one that follows. Chance does not imitate all three, and libFLAC checks each frame's CRC-16 afterwards.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import soundfile

from asr_server import pcm
from asr_server.pcm import NOTHING, ChannelSamples, Header

MAGIC = b"fLaC"

_STREAMINFO_SIZE = 34
_LONGEST_HEADER = 16  # bytes
_LONGEST_FRAME = 4 << 20  # bytes: 65535 samples of 8 channels of 32 bits take half of it


class _Frames(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is only read forwards: seeking would go by frame numbers, and a part does not begin at 0."""

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class _FrameHeader:
    number: int  # of the frame, or of its first sample where block sizes vary
    next_number: int
    samples: int


class FlacSource:
    """Samples of a FLAC stream. `header` is None until STREAMINFO has been read."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self._prefix = b""  # "fLaC" and STREAMINFO: what turns frames into a file
        self._buffer = bytearray()  # from the start of the current metadata block or frame
        self._skip = len(MAGIC)  # bytes to pass over: the marker, later metadata nobody needs
        self._last_block = False  # of the metadata
        self._in_frames = False
        self._frame: _FrameHeader | None = None  # the frame at the start of the buffer
        self._searched = 0  # no border lies before this position of the buffer

    def feed(self, data: bytes) -> ChannelSamples:
        self._buffer += data
        if not self._in_frames:
            self._read_metadata()
        end, samples = self._find_frames(_LONGEST_HEADER) if self._in_frames else (0, 0)
        return self._decode(end, samples)

    def flush(self) -> ChannelSamples:
        """The last frame has no successor; it ends with the stream."""
        if not self._in_frames:
            raise ValueError("the FLAC header is incomplete: the audio ended before the first frame")
        if not self._buffer:
            return NOTHING
        _, samples = self._find_frames(1)  # the last frames can be shorter than the longest header
        assert self._frame is not None
        return self._decode(len(self._buffer), samples + self._frame.samples)

    def _read_metadata(self) -> None:
        """Walk over the metadata blocks; keep STREAMINFO."""
        while True:
            passed = min(self._skip, len(self._buffer))
            del self._buffer[:passed]
            self._skip -= passed
            if self._skip:
                return
            if self._last_block:
                self._in_frames = True
                return
            if len(self._buffer) < 4:
                return
            kind = self._buffer[0] & 0x7F
            length = int.from_bytes(self._buffer[1:4], "big")
            if self.header is None:
                if kind != 0 or length != _STREAMINFO_SIZE:
                    raise ValueError("damaged FLAC header: STREAMINFO must come first")
                if len(self._buffer) < 4 + length:
                    return
                self._read_stream_info(bytes(self._buffer[4 : 4 + length]))
            self._last_block = self._buffer[0] >= 0x80
            self._skip = 4 + length

    def _read_stream_info(self, block: bytes) -> None:
        packed = int.from_bytes(block[10:18], "big")  # 20 bits rate, 3 channels - 1, 5 bits a sample - 1, 36 samples
        self.header = Header("FLAC", "FLAC", packed >> 44, ((packed >> 41) & 7) + 1)
        # The length and the checksum are those of the whole; a part must not be judged by them: 0 means unknown.
        unknown_length = (packed >> 36 << 36).to_bytes(8, "big")
        self._prefix = MAGIC + bytes([0x80, 0, 0, _STREAMINFO_SIZE]) + block[:10] + unknown_length + bytes(16)

    def _find_frames(self, lookahead: int) -> tuple[int, int]:
        """(Bytes, samples) of the complete frames at the start of the buffer.

        A header is looked at when `lookahead` bytes of it are there.
        """
        end, samples = 0, 0
        while True:
            if self._frame is None:
                if len(self._buffer) < lookahead:
                    return end, samples
                self._frame = _parse_header(self._buffer, 0)
                if self._frame is None:
                    raise ValueError("damaged FLAC data: no frame where one must begin")
                self._searched = 2
            border = self._find_border(end, self._frame, lookahead)
            if border is None:
                if len(self._buffer) - end > _LONGEST_FRAME:
                    raise ValueError(f"damaged FLAC data: no end of a frame within {_LONGEST_FRAME} bytes")
                return end, samples
            samples += self._frame.samples
            end = border
            self._frame = _parse_header(self._buffer, border)
            self._searched = border + 2

    def _find_border(self, start: int, frame: _FrameHeader, lookahead: int) -> int | None:
        """Where the header of the frame after `frame` begins, if it has arrived."""
        sync = bytes(self._buffer[start : start + 2])  # the same two bytes open every frame of a stream
        while (found := self._buffer.find(sync, self._searched)) >= 0:
            if len(self._buffer) - found < lookahead:
                self._searched = found
                return None
            header = _parse_header(self._buffer, found)
            if header is not None and header.number == frame.next_number:
                return found
            self._searched = found + 1
        self._searched = max(self._searched, len(self._buffer) - 1)
        return None

    def _decode(self, end: int, samples: int) -> ChannelSamples:
        """Decode and drop the first `end` bytes of the buffer, which hold `samples` samples of each channel."""
        if samples == 0:
            return NOTHING
        assert self.header is not None
        total, most = samples * self.header.channels, pcm.MAX_SAMPLES_PER_FEED
        if total > most:
            raise ValueError(f"{end} bytes of FLAC expand to {total} samples; at most {most} at once")
        part = io.BytesIO(self._prefix + bytes(self._buffer[:end]))
        del self._buffer[:end]
        self._searched = max(self._searched - end, 0)
        try:
            with _Frames(part) as file:
                decoded = file.read(samples, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise ValueError(f"damaged FLAC data: {error}") from None
        if len(decoded) != samples:
            raise ValueError(f"damaged FLAC data: {len(decoded)} of {samples} samples could be decoded")
        channels: ChannelSamples = decoded.T
        return channels


def _parse_header(data: bytearray, start: int) -> _FrameHeader | None:
    """The frame header at `start` (RFC 9639, section 9.1), or None where there is none."""
    raw = bytes(data[start : start + _LONGEST_HEADER])
    if len(raw) < 6 or raw[0] != 0xFF or raw[1] & 0xFE != 0xF8:
        return None
    size_code, rate_code = raw[2] >> 4, raw[2] & 15
    extra = 0 if raw[4] < 0x80 else 8 - (raw[4] ^ 0xFF).bit_length() - 1  # UTF-8 style: bytes after the first
    size_bytes = {6: 1, 7: 2}.get(size_code, 0)
    crc_at = 5 + extra + size_bytes + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if size_code == 0 or rate_code == 15 or extra > 6 or len(raw) <= crc_at or _crc8(raw[:crc_at]) != raw[crc_at]:
        return None
    number = raw[4] if extra == 0 else raw[4] & (0x3F >> extra)
    for byte in raw[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    samples = _block_size(size_code, raw[5 + extra : 5 + extra + size_bytes])
    varies = raw[1] & 1
    return _FrameHeader(number, number + (samples if varies else 1), samples)


def _block_size(code: int, explicit: bytes) -> int:
    """Samples of each channel in a frame."""
    if explicit:
        return int.from_bytes(explicit, "big") + 1
    if code == 1:
        return 192
    return 576 << (code - 2) if code <= 5 else 256 << (code - 8)


def _crc8(data: bytes) -> int:
    """CRC with polynomial x^8 + x^2 + x + 1, as frame headers carry it."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1) ^ (0x107 if crc & 0x80 else 0)
    return crc
