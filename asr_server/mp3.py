"""MP3: a row of frames that need no container, with a tag before and perhaps one after them.

FFmpeg's parser finds the frames. An ID3v2 tag, which may hold pictures, is passed over before it could see it. The
first frame of a file is often none: encoders write their own notes into a silent one ("Xing" or "Info" for LAME and
FFmpeg, "VBRI" for Fraunhofer), among them how many samples at the start only settle the codec.
"""

from __future__ import annotations

from asr_server.ffmpeg import FrameDecoder
from asr_server.pcm import ChannelSamples, Header, join

ID3_MAGIC = b"ID3"

_ID3_SIZE = 10  # bytes of an ID3v2 header
_DECODER_DELAY = 529  # samples that every decoder adds to the encoder's own
_LAME_TAG = 120  # bytes from "Xing" to the encoder's name where all four optional fields are there


class Mp3Source:
    """Samples of an MP3 stream. `header` is None until a frame could be decoded."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self._decoder = FrameDecoder("mp3float")
        self._opening = b""  # bytes that may be an ID3v2 header
        self._in_tags = True
        self._skip = 0  # bytes of a tag to pass over
        self._first = True  # the next packet is the first one
        self._delay = 0  # samples still to be dropped

    def feed(self, data: bytes) -> ChannelSamples:
        if self._in_tags:
            data = self._pass_tags(self._opening + data)
        if not data:  # which the parser would take for the end
            return join([])
        return self._decode(data)

    def flush(self) -> ChannelSamples:
        rest = join([self._decode(self._opening) if self._opening else join([]), self._decode(b"")])
        if self.header is None:
            raise ValueError("damaged MP3 data: the audio ended before a frame that could be decoded")
        return rest

    def _pass_tags(self, data: bytes) -> bytes:
        """What follows the ID3v2 tags, of which there may be several (id3.org, ID3v2.4.0 structure, section 3.1)."""
        while True:
            passed = min(self._skip, len(data))
            data, self._skip = data[passed:], self._skip - passed
            self._opening = b""
            if self._skip or not data:
                return b""
            if not is_id3(data):
                self._in_tags = False
                return data
            if len(data) < _ID3_SIZE:
                self._opening = data
                return b""
            size = 0
            for byte in data[6:10]:
                size = size << 7 | byte
            self._skip = _ID3_SIZE + size + (_ID3_SIZE if data[5] & 0x10 else 0)  # a footer repeats the header

    def _decode(self, data: bytes) -> ChannelSamples:
        packets = self._decoder.split(data)
        if self._first and packets:
            self._first = False
            notes = _find_notes(packets[0])
            if notes is not None:
                self._delay = notes
                del packets[0]
        return join(self._decode_frame(packet) for packet in packets)

    def _decode_frame(self, packet: bytes) -> ChannelSamples:
        samples = self._decoder.decode(packet)
        if samples is None:  # often the first one of a stream that was tuned into: its bits began earlier
            return join([])
        header = Header("MP3", "MP3", self._decoder.sample_rate, len(samples))
        if self.header and self.header != header:
            raise ValueError(
                f"the MP3 stream goes on with {header.sample_rate} Hz and {header.channels} channels "
                f"after {self.header.sample_rate} Hz and {self.header.channels}"
            )
        self.header = header
        dropped = min(self._delay, samples.shape[1])
        self._delay -= dropped
        return samples[:, dropped:]


def is_id3(data: bytes) -> bool:
    """Whether the first bytes are, or may still become, an ID3v2 header: version below 255, sizes of 7 bits a byte."""
    return (
        data[:3] == ID3_MAGIC[: len(data)]
        and all(byte < 0xFF for byte in data[3:5])
        and all(byte < 0x80 for byte in data[6:10])
    )


def is_frame(data: bytes) -> bool:
    """Whether four bytes are the header of a frame of layer III (ISO/IEC 11172-3, section 2.4.1.3)."""
    synchronised = data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    known = data[1] & 0x18 != 0x08 and data[1] & 0x06 == 0x02  # version, layer
    return synchronised and known and data[2] >> 4 not in (0, 15) and data[2] & 0x0C != 0x0C  # bit rate, sample rate


def _find_notes(packet: bytes) -> int | None:
    """Samples to drop at the start by the encoder's notes; None where the packet holds audio."""
    if len(packet) < 4:  # what the parser leaves of a stream that ends in a header
        return None
    mono, mpeg1 = packet[3] & 0xC0 == 0xC0, packet[1] & 0x18 == 0x18
    start = 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))  # after the side information
    if packet[36:40] == b"VBRI":
        return 0
    if packet[start : start + 4] not in (b"Xing", b"Info"):
        return None
    encoder = packet[start + _LAME_TAG :]
    if encoder[:4] not in (b"LAME", b"Lavf", b"Lavc") or len(encoder) < 24:
        return 0
    return (int.from_bytes(encoder[21:24], "big") >> 12) + _DECODER_DELAY
