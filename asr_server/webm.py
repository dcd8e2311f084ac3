"""WebM read from a stream that may be cut at any byte, as a row of Opus packets (RFC 8794, RFC 9559).

A file is a tree of elements: an id, a length, contents. Only few of them matter here, and each means the same
wherever it stands, so the tree is read as a row: the large masters (Segment, Cluster, Tracks) are stepped into,
whatever length they claim, since a recorder does not know it yet; a track's description and blocks of audio are
waited for; everything else (seek tables, tags, cover art) is passed over without being kept.

    buffer: at most one element that is waited for, LONGEST_PACKET and a few bytes
"""

from __future__ import annotations

from collections.abc import Iterator

from asr_server import opus_packet
from asr_server.opus_packet import LONGEST_PACKET, OpusHead, OpusPacket

MAGIC = b"\x1a\x45\xdf\xa3"

_SEGMENT, _CLUSTER, _TRACKS, _TRACK_ENTRY = 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE
_SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK, _DISCARD_PADDING = 0xA3, 0xA0, 0xA1, 0x75A2
_TRACK_NUMBER, _TRACK_TYPE, _CODEC_ID, _CODEC_PRIVATE, _ENCODINGS = 0xD7, 0x83, 0x86, 0x63A2, 0x6D80
_STEPPED_INTO = (_SEGMENT, _CLUSTER, _TRACKS)
_WAITED_FOR = (_TRACK_ENTRY, _SIMPLE_BLOCK, _BLOCK_GROUP)
_AUDIO = 2  # a TrackType
_LONGEST_ELEMENT = LONGEST_PACKET + 1024
_LONGEST_NUMBER = 8  # bytes
_PASSED_OVER = 0  # no element's id
_NO_LACING, _XIPH_LACING, _FIXED_LACING = 0, 1, 2


class WebmReader:
    """Opus packets of the first Opus track of a WebM (or Matroska) stream."""

    container = "WebM"
    encoding = "WEBM_OPUS"

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0  # bytes to pass over
        self._track: int | None = None
        self._other_codec = ""  # of an audio track that is not Opus

    def feed(self, data: bytes) -> Iterator[OpusHead | OpusPacket]:
        """The head and the packets that are complete with `data`, in order. Has to be exhausted."""
        passed = min(self._skip, len(data))
        self._skip -= passed
        self._buffer += data[passed:]
        position = 0
        try:
            while (element := self._read(position)) is not None:
                identifier, contents, position = element
                yield from self._interpret(identifier, contents)
        finally:
            self._skip += max(position - len(self._buffer), 0)
            del self._buffer[:position]

    def _read(self, start: int) -> tuple[int, bytes, int] | None:
        """(Id, contents where they are wanted, where the next element begins); None while more bytes are needed."""
        header = _element_header(bytes(self._buffer[start : start + 12]))
        if header is None:
            return None
        identifier, size, length = header
        begin = start + length
        if identifier in _STEPPED_INTO:
            return identifier, b"", begin
        if size is None:
            raise ValueError(f"damaged WebM data: element {identifier:X} has no length")
        if identifier not in _WAITED_FOR:
            return identifier, b"", begin + size
        if identifier == _SIMPLE_BLOCK:  # of a picture it may be longer than anything that is waited for
            if len(self._buffer) < begin + min(size, _LONGEST_NUMBER):
                return None
            if _number(bytes(self._buffer[begin : begin + _LONGEST_NUMBER]), 0)[0] != self._track:
                return _PASSED_OVER, b"", begin + size
        if size > _LONGEST_ELEMENT and identifier == _BLOCK_GROUP:  # a picture's: no packet is so long
            return _PASSED_OVER, b"", begin + size
        if size > _LONGEST_ELEMENT:
            raise ValueError(f"damaged WebM data: element {identifier:X} has {size} bytes; at most {_LONGEST_ELEMENT}")
        if len(self._buffer) < begin + size:
            return None
        return identifier, bytes(self._buffer[begin : begin + size]), begin + size

    def _interpret(self, identifier: int, contents: bytes) -> Iterator[OpusHead | OpusPacket]:
        if identifier == _TRACK_ENTRY:
            yield from self._read_track(dict(_children(contents)))
        elif identifier == _CLUSTER and self._track is None:
            other = f", only {self._other_codec}" if self._other_codec else ""
            raise ValueError(f"the WebM stream describes no Opus track{other}; it must hold Opus")
        elif identifier == _SIMPLE_BLOCK:
            yield from self._read_block(contents, 0)
        elif identifier == _BLOCK_GROUP:
            children = dict(_children(contents))
            padding = int.from_bytes(children.get(_DISCARD_PADDING, b""), "big", signed=True)  # nanoseconds
            yield from self._read_block(children.get(_BLOCK, b""), padding)

    def _read_track(self, fields: dict[int, bytes]) -> Iterator[OpusHead]:
        codec = fields.get(_CODEC_ID, b"").rstrip(b"\0").decode("ascii", "replace")
        if self._track is not None or int.from_bytes(fields.get(_TRACK_TYPE, b""), "big") != _AUDIO:
            return
        if codec != "A_OPUS":
            self._other_codec = codec[:40]
            return
        if _ENCODINGS in fields:
            raise ValueError("the WebM track is compressed or encrypted, which is not supported")
        self._track = int.from_bytes(fields.get(_TRACK_NUMBER, b""), "big")
        yield opus_packet.parse_head(fields.get(_CODEC_PRIVATE, b""), "WebM")

    def _read_block(self, block: bytes, padding: int) -> Iterator[OpusPacket]:
        """A block: track, time (2 bytes), flags, packets (RFC 9559, section 10)."""
        track, start = _number(block, 0)
        if track != self._track:
            return
        if len(block) < start + 3:
            raise ValueError("damaged WebM data: a block ends before its audio")
        packets = [packet for packet in _unlace(block[start + 2] >> 1 & 3, block[start + 3 :]) if packet]
        for place, packet in enumerate(packets):
            duration = opus_packet.duration(packet)
            trimmed = padding * opus_packet.RATE // 10**9 if place == len(packets) - 1 else 0
            yield OpusPacket(packet, duration, min(max(duration - trimmed, 0), duration))


def _element_header(data: bytes) -> tuple[int, int | None, int] | None:
    """(Id, length or None where it is unknown, bytes of the header); None while it is incomplete."""
    if not data:
        return None
    id_bytes = 9 - data[0].bit_length()
    if id_bytes > 4:
        raise ValueError("damaged WebM data: no element where one must begin")
    if len(data) <= id_bytes:
        return None
    if not data[id_bytes]:
        raise ValueError("damaged WebM data: an element's length has more than 8 bytes")
    end = id_bytes + 9 - data[id_bytes].bit_length()
    if len(data) < end:
        return None
    size, end = _number(data, id_bytes)
    unknown = size == (1 << 7 * (end - id_bytes)) - 1
    return int.from_bytes(data[:id_bytes], "big"), None if unknown else size, end


def _number(data: bytes, start: int) -> tuple[int, int]:
    """A number of variable length (RFC 8794, section 4) and where it ends: leading zero bits count its bytes."""
    if start >= len(data) or not data[start]:
        raise ValueError("damaged WebM data: a number has no length")
    length = 9 - data[start].bit_length()
    raw = int.from_bytes(data[start : start + length], "big")
    return raw & ((1 << 7 * length) - 1), start + length


def _children(data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start < len(data):
        header = _element_header(data[start : start + 12])
        identifier, size, length = header or (0, None, 0)
        if size is None or start + length + size > len(data):
            raise ValueError("damaged WebM data: an element reaches beyond the one it lies in")
        yield identifier, data[start + length : start + length + size]
        start += length + size


def _unlace(lacing: int, data: bytes) -> list[bytes]:
    """The packets of one block (RFC 9559, section 10.3)."""
    if lacing == _NO_LACING:
        return [data]
    if not data:
        raise ValueError("damaged WebM data: a laced block is empty")
    count, data = data[0] + 1, data[1:]
    if lacing == _FIXED_LACING:
        sizes, start = [len(data) // count] * (count - 1), 0
    else:
        sizes, start = (_xiph_sizes if lacing == _XIPH_LACING else _ebml_sizes)(data, count - 1)
    sizes.append(len(data) - start - sum(sizes))
    if min(sizes) < 0:
        raise ValueError("damaged WebM data: the packets of a block are longer than the block")
    packets = []
    for size in sizes:
        packets.append(data[start : start + size])
        start += size
    return packets


def _xiph_sizes(data: bytes, count: int) -> tuple[list[int], int]:
    """Each size is a row of bytes that are added up, of which the last one is not 255."""
    sizes, start = [], 0
    for _ in range(count):
        size = 0
        while data[start : start + 1] == b"\xff":
            size, start = size + 255, start + 1
        if start >= len(data):
            raise ValueError("damaged WebM data: a block ends within its sizes")
        sizes.append(size + data[start])
        start += 1
    return sizes, start


def _ebml_sizes(data: bytes, count: int) -> tuple[list[int], int]:
    """The first size, then differences to the one before, shifted to be positive."""
    sizes: list[int] = []
    start = 0
    for _ in range(count):
        value, end = _number(data, start)
        middle = (1 << 7 * (end - start) - 1) - 1
        sizes.append(sizes[-1] + value - middle if sizes else value)
        start = end
    return sizes, start
