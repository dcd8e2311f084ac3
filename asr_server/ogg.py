"""Ogg read from a stream that may be cut at any byte, as a row of Opus packets (RFC 3533, RFC 7845).

A page is a header, a table of segment lengths and the segments. The table says where packets end, so a packet is
handed on as soon as its last byte is there; a page of a file can hold a second of audio, and whoever reads whole
pages (FFmpeg's demuxer does) is that late. The page's checksum is computed along the way and checked at its end.

    buffer: an incomplete page header (at most 282 bytes) or one incomplete part of a packet (at most 65025)
    partial: the start of a packet that began on an earlier page (at most LONGEST_PACKET)

Other logical streams of a multiplex are passed over; a stream that begins after the end of ours continues it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from asr_server import opus_packet
from asr_server.opus_packet import HEAD_MAGIC, LONGEST_PACKET, OpusHead, OpusPacket

MAGIC = b"OggS"

_PAGE = struct.Struct("<4sBBqIIIB")  # magic, version, flags, granule, serial, sequence, checksum, segments
_CONTINUED, _FIRST, _LAST = 1, 2, 4  # flags
_OTHER_CODECS = {
    b"\x01vorbis": "Vorbis",
    b"Speex   ": "Speex",
    b"\x7fFLAC": "FLAC",
    b"\x80theora": "Theora",
    b"fishead\0": "Skeleton",
}
# Ogg's CRC-32 has the polynomial of zlib's, but takes the bits of a byte in the other order.
_MIRROR = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass
class _Page:
    parts: list[int]  # lengths of the pieces of packets on it, the last one first
    open_end: bool  # the last piece goes on on the next page
    checksum: int
    computed: int
    granule: int  # sample position at its end; -1 where no packet ends
    ours: bool


class OggReader:
    """Opus packets of an Ogg stream."""

    container = "Ogg"
    encoding = "OGG_OPUS"

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._page: _Page | None = None
        self._partial = bytearray()
        self._serial: int | None = None  # of the logical stream that is read
        self._ended = False  # its last page has begun
        self._headers = 2  # packets of it that still have to come before audio
        self._broken = False  # the packet under way lacks its start
        self._granule = 0  # at the end of the last page
        self._left: int | None = None  # samples up to the end of the stream, on its last page

    def feed(self, data: bytes) -> Iterator[OpusHead | OpusPacket]:
        """The heads and packets that are complete with `data`, in order. Has to be exhausted before the next call."""
        self._buffer += data
        position = 0
        try:
            while (found := self._read(position)) is not None:
                position, packet = found
                if packet is not None:
                    yield from self._interpret(packet)
        finally:
            del self._buffer[:position]

    def _read(self, position: int) -> tuple[int, bytes | None] | None:
        """One page header or one part of a packet: (where it ends, a packet that is complete with it)."""
        if self._page is None:
            end = self._read_page_header(position)
            return None if end is None else (end, None)
        page = self._page
        if not page.parts:
            self._end_page(page)
            return position, None
        end = position + page.parts[-1]
        if end > len(self._buffer):
            return None
        page.parts.pop()
        part = bytes(self._buffer[position:end])
        page.computed = _crc(part, page.computed)
        complete = bool(page.parts) or not page.open_end
        return end, self._join(part, complete) if page.ours else None

    def _read_page_header(self, start: int) -> int | None:
        """Take in the header at `start` of the buffer; returns where it ends, None while it is incomplete."""
        found = bytes(self._buffer[start : start + 5])
        if found != (MAGIC + b"\0")[: len(found)]:
            raise ValueError(f"damaged Ogg data: no page where one must begin, but {found!r}")
        if len(self._buffer) < start + _PAGE.size:
            return None
        _, _, flags, granule, serial, _, checksum, segments = _PAGE.unpack_from(self._buffer, start)
        end: int = start + _PAGE.size + segments
        if len(self._buffer) < end:
            return None
        header = bytes(self._buffer[start:end])
        lengths = header[_PAGE.size :]
        computed = _crc(header[:22] + bytes(4) + header[26:], 0)
        self._page = _Page(_parts(lengths), lengths[-1:] == b"\xff", checksum, computed, granule, False)
        self._begin_page(self._page, flags, serial)
        return end

    def _begin_page(self, page: _Page, flags: int, serial: int) -> None:
        if flags & _FIRST and (self._serial is None or self._ended):
            self._serial, self._ended, self._headers, self._granule = serial, False, 2, 0
            self._partial.clear()
        if self._serial is None:
            raise ValueError("damaged Ogg header: the first page does not begin a stream")
        page.ours = serial == self._serial
        if not page.ours:
            return
        self._ended = self._ended or bool(flags & _LAST)
        if not flags & _CONTINUED:
            self._partial.clear()  # its end was lost with a page
        self._broken = bool(flags & _CONTINUED) and not self._partial and self._headers == 0
        trimmed = flags & _LAST and page.granule >= 0
        self._left = max(page.granule - self._granule, 0) if trimmed else None

    def _end_page(self, page: _Page) -> None:
        if page.computed != page.checksum:
            raise ValueError("damaged Ogg data: a page does not agree with its checksum")
        if page.ours and page.granule >= 0:
            self._granule = page.granule
        self._page = None

    def _join(self, part: bytes, complete: bool) -> bytes | None:
        """The packet that `part` completes. Comments (the second header) may be a book: nothing of them is kept."""
        if self._headers == 1:
            self._headers -= complete
            return None
        if self._broken:
            self._broken = not complete
            return None
        if len(self._partial) + len(part) > LONGEST_PACKET:
            raise ValueError(f"damaged Ogg data: a packet has more than {LONGEST_PACKET} bytes")
        self._partial += part
        if not complete:
            return None
        packet = bytes(self._partial)
        self._partial.clear()
        return packet

    def _interpret(self, packet: bytes) -> Iterator[OpusHead | OpusPacket]:
        if self._headers == 2:
            self._headers = 1
            yield _read_head(packet)
        elif packet:
            duration = opus_packet.duration(packet)
            keep = duration if self._left is None else min(duration, self._left)
            if self._left is not None:
                self._left -= keep
            yield OpusPacket(packet, duration, keep)


def _read_head(packet: bytes) -> OpusHead:
    for magic, name in _OTHER_CODECS.items():
        if packet.startswith(magic):
            raise ValueError(f"the Ogg stream holds {name}, which is not supported; it must hold Opus")
    if not packet.startswith(HEAD_MAGIC):
        raise ValueError(f"the Ogg stream holds an unknown codec ({packet[:8]!r}); it must hold Opus")
    return opus_packet.parse_head(packet, "Ogg")


def _parts(lengths: bytes) -> list[int]:
    """Segments of 255 bytes go on in the next one."""
    parts, length = [], 0
    for segment in lengths:
        length += segment
        if segment < 255:
            parts.append(length)
            length = 0
    if lengths[-1:] == b"\xff":
        parts.append(length)
    return parts[::-1]


def _crc(data: bytes, before: int) -> int:
    """The checksum of RFC 3533, section 6, continued over `data`."""
    mirrored = zlib.crc32(data.translate(_MIRROR), _mirror32(before) ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return _mirror32(mirrored)


def _mirror32(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "big").translate(_MIRROR), "little")
