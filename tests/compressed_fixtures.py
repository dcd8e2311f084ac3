"""Compressed test audio: encoded by FFmpeg, and Ogg and WebM streams put together by hand where writers would not."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise

import av
import numpy as np
import numpy.typing as npt

from asr_server.audio import AudioDecoder, AudioFormat

Audio = npt.NDArray[np.float32]  # (C, S)

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def tones(seconds: float, rate: int, channels: int = 1) -> Audio:
    """A tone of (300 + 200 c) Hz in channel c, with noise, so that no two stretches are alike."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal((channels, len(time)))
    pitch = 300 + 200 * np.arange(channels)[:, None]
    return (0.4 * np.sin(2 * np.pi * pitch * time) + 0.02 * noise).astype(np.float32)


def encode(container: str, codec: str, audio: Audio, rate: int, **options: str) -> bytes:
    """A file of `audio` as FFmpeg writes it where it cannot seek back, as in a live stream."""
    file = io.BytesIO()
    sink = _Unseekable(file) if options.pop("live", "") else file
    with av.open(sink, "w", format=container, options=options) as output:
        channels = len(audio)
        stream = output.add_stream(codec, rate=rate, layout=LAYOUTS[channels])
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = 64000 * channels if codec != "libopencore_amrnb" else 12200
        resampler = av.AudioResampler(stream.format.name, LAYOUTS[channels], rate, stream.codec_context.frame_size)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio.T.reshape(1, -1)), "flt", LAYOUTS[channels])
        frame.sample_rate = rate
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            output.mux(stream.encode(part))
    return file.getvalue()


class _Unseekable:
    def __init__(self, file: io.BytesIO) -> None:
        self.write = file.write


def packets_of(data: bytes) -> tuple[bytes, list[bytes]]:
    """(OpusHead, packets) as FFmpeg's demuxer finds them."""
    with av.open(io.BytesIO(data), "r") as source:
        head = source.streams.audio[0].codec_context.extradata
        assert head is not None
        return bytes(head), [bytes(packet) for packet in source.demux() if packet.size]


def ogg_checksum(page: bytes | bytearray) -> int:
    """Bit by bit, as RFC 3533 describes it."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x104C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value


def ogg_page(lacing: bytes, body: bytes, flags: int = 0, granule: int = -1, serial: int = 7, number: int = 0) -> bytes:
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, number, 0, len(lacing)) + lacing
    page = bytearray(head + body)
    struct.pack_into("<I", page, 22, ogg_checksum(page))
    return bytes(page)


def lace(packets: Iterable[bytes]) -> bytes:
    return b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)


def ogg(head: bytes, pages: Sequence[Sequence[bytes]], granules: Sequence[int], serial: int = 7) -> bytes:
    """One Opus stream with the given packets on each page."""
    made = [
        ogg_page(lace([head]), head, 2, 0, serial, 0),
        ogg_page(lace([b"OpusTags" + bytes(8)]), b"OpusTags" + bytes(8), 0, 0, serial, 1),
    ]
    for number, (packets, granule) in enumerate(zip(pages, granules, strict=True), 2):
        flags = 4 if number == len(pages) + 1 else 0
        made.append(ogg_page(lace(packets), b"".join(packets), flags, granule, serial, number))
    return b"".join(made)


def element(identifier: int, contents: bytes = b"", size: int | None = None) -> bytes:
    """An EBML element; a `size` of -1 is written as unknown."""
    length = len(contents) if size is None else size
    coded = b"\x01" + b"\xff" * 7 if length < 0 else (length | 1 << 56).to_bytes(8, "big")
    return identifier.to_bytes((identifier.bit_length() + 7) // 8, "big") + coded + contents


def webm_opening(head: bytes, codec: bytes = b"A_OPUS", more: bytes = b"") -> bytes:
    track = element(0xD7, b"\1") + element(0x83, b"\2") + element(0x86, codec) + element(0x63A2, head) + more
    tracks = element(0x1654AE6B, element(0xAE, track))
    return element(0x1A45DFA3, element(0x4282, b"webm")) + element(0x18538067, size=-1) + tracks


def webm(head: bytes, blocks: Iterable[bytes]) -> bytes:
    """A stream as a browser's recorder writes it: Segment and Cluster of unknown length."""
    return webm_opening(head) + element(0x1F43B675, element(0xE7, b"\0"), -1) + b"".join(blocks)


def block(packet: bytes, flags: int = 0x80, track: int = 1) -> bytes:
    return element(0xA3, bytes([0x80 | track, 0, 0, flags]) + packet)


RATE = 48000
SPEECH = tones(1.2345, RATE)
STEREO = tones(0.7, RATE, 2)
ID3 = b"ID3\x04\0\0\0\0\x0f\x50" + bytes(2000)
STREAMS = {
    "ogg": encode("ogg", "libopus", SPEECH, RATE),
    "ogg-live": encode("ogg", "libopus", STEREO, RATE, page_duration="20000", live="1"),
    "ogg-5.1": encode("ogg", "libopus", tones(0.5, RATE, 6), RATE),
    "webm": encode("webm", "libopus", SPEECH, RATE),
    "webm-live": encode("webm", "libopus", STEREO, RATE, live="1"),
    "mp3": ID3 + encode("mp3", "libmp3lame", SPEECH, RATE),
    "mp3-16k-live": encode("mp3", "libmp3lame", tones(1.3, 16000, 2), 16000, live="1", write_xing="0"),
    "amr": encode("amr", "libopencore_amrnb", tones(1.0, 8000), 8000),
    "amr-wb": b"#!AMR-WB\n" + b"".join(b"\x44" + np.random.default_rng(i).bytes(60) for i in range(50)),  # 23.85 kbit/s
}
HEAD, PACKETS = packets_of(STREAMS["ogg"])


def decode(
    data: bytes, cuts: list[int] | None = None, audio_format: AudioFormat | None = None, rate: int = RATE
) -> Audio:
    """(C, S)"""
    decoder = AudioDecoder(audio_format or AudioFormat(), rate, separate_channels=True)
    pieces = [decoder.feed(data[a:b]) for a, b in pairwise([0, *(cuts or []), len(data)])]
    pieces.append(decoder.flush())
    assert all(piece.flags.c_contiguous and piece.dtype == np.float32 for piece in pieces)
    return np.concatenate([piece for piece in pieces if piece.size] or pieces[-1:], axis=1)
