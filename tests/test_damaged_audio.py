"""Compressed streams that are damaged or made to harm: the answer is samples or a ValueError, within bounds."""

from __future__ import annotations

import io
import threading
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from asr_server.audio import AudioDecoder, AudioFormat
from asr_server.opus_packet import duration
from tests.compressed_fixtures import (
    HEAD,
    PACKETS,
    RATE,
    SPEECH,
    STREAMS,
    block,
    decode,
    element,
    lace,
    ogg,
    ogg_checksum,
    ogg_page,
    webm,
    webm_opening,
)


def vorbis(container: str) -> bytes:
    if container == "webm":
        return webm_opening(b"\x02", b"A_VORBIS") + element(0x1F43B675, size=-1)
    file = io.BytesIO()
    soundfile.write(file, SPEECH[0], RATE, format="OGG", subtype="VORBIS")
    return file.getvalue()


OPENING = ogg(HEAD, [], [])
ENDLESS = bytes(16384)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (vorbis("ogg"), "holds Vorbis, which is not supported; it must hold Opus"),
        (vorbis("webm"), "no Opus track, only A_VORBIS; it must hold Opus"),
        (STREAMS["ogg"][:40], "the Ogg header is incomplete"),
        (STREAMS["webm"][:40], "the WebM header is incomplete"),
        (STREAMS["mp3"][:2100], "ended before a frame that could be decoded"),
        (STREAMS["ogg"].replace(b"Lavf", b"LAVF", 1), "does not agree with its checksum"),
        (OPENING + b"rubbish", "no page where one must begin, but b'rubbi'"),
        (ogg(HEAD[:9] + b"\x09" + HEAD[10:], [], []), "says 9 channels in mapping family 0"),
        (ogg(HEAD[:8] + b"\x10" + HEAD[9:], [], []), "has version 16"),
        (ogg(HEAD[:18] + b"\x01\x02\x00\x00", [], []), "maps 1 channels to 2 streams"),
        (ogg(HEAD[:18] + b"\x01\x01\x00\x01", [], []), "a stream that does not exist"),
        (ogg(HEAD[:12], [], []), "OpusHead is incomplete"),
        (ogg(HEAD, [[b"\xff\xff"] * 3], [9999]), "none of 3 Opus packets could be decoded"),
        (webm(HEAD, [block(b"\xff\xff")]), "none of 1 Opus packets could be decoded"),
        (webm(HEAD, [element(0xA3, size=-1)]), "element A3 has no length"),
        (webm(HEAD, [element(0xA3, b"\x81" + bytes(7), 1 << 20)]), "element A3 has 1048576 bytes; at most"),
        (webm(HEAD, [b"\0\0\0"]), "no element where one must begin"),
        (webm_opening(HEAD, more=element(0x6D80, b"\0")), "compressed or encrypted"),
        (b"#!AMR\n\xff", "no frame begins with the byte 0xff"),
        (OPENING + ogg_page(b"\xff" * 255, bytes(65025)) + ogg_page(b"\xff" * 255, bytes(65025), 1) * 8, "more than 5"),
    ],
)
def test_audio_that_cannot_be_read(data: bytes, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=text):
        decode(data)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("opening", "more"),
    [
        (b"ID3\x04\0\0\x7f\x7f\x7f\x7f", ENDLESS),
        (webm_opening(HEAD) + element(0xEC, size=1 << 40), ENDLESS),
        (webm(HEAD, []), element(0x1254C367) * 1500),
        (ogg_page(lace([HEAD]), HEAD, 2, 0), ogg_page(b"\xff" * 64, bytes(64 * 255))),
        (
            b"fLaC\0\0\0\x22" + bytes(10) + (RATE << 44).to_bytes(8, "big") + bytes(16),
            b"\x06\x00\x3f\xfc" + ENDLESS[4:],
        ),
    ],
    ids=["id3", "void", "tags", "comments", "flac"],
)
def test_endless_metadata_is_neither_kept_nor_read_for_ever(
    opening: bytes, more: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asr_server.audio.MAX_BYTES_WITHOUT_AUDIO", 2 << 20)
    decoder = AudioDecoder(AudioFormat(), RATE)
    decoder.feed(opening)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="no audio within 2097152 bytes of the stream"):
            feed_repeatedly(decoder, more, (2 << 20) // len(more) + 1)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def feed_repeatedly(decoder: AudioDecoder, data: bytes, times: int) -> None:
    for _ in range(times):
        decoder.feed(data)


@pytest.mark.parametrize("container", ["ogg", "webm"])
def test_packets_that_expand_too_far_are_refused(container: str) -> None:
    silence = b"\xfb\x06"  # six frames of 20 ms without contents
    packets = [silence] * 100
    if container == "ogg":
        bomb = OPENING + ogg_page(lace(packets), b"".join(packets)) * 40
    else:
        bomb = webm(HEAD, []) + (b"\xa3\x86\x81\0\0\x80" + silence) * 2000
    assert len(bomb) < 16384 + 200
    with pytest.raises(ValueError, match="expands to more than 8388608 samples at once"):
        decode(bomb)
    assert decode(bomb, list(range(100, len(bomb), 100))).shape[1] > 1 << 23


def test_a_damaged_packet_is_silence_of_its_length() -> None:
    bad = bytes([PACKETS[20][0] & 0xFC | 1]) + b"\xff" * 3  # two frames of one length cannot have three bytes
    assert duration(bad) == 2 * duration(PACKETS[20])
    whole = decode(ogg(HEAD, [PACKETS], [-1]))
    hurt = decode(ogg(HEAD, [[*PACKETS[:20], bad, *PACKETS[20:]]], [-1]))
    silent = slice(20 * 960 - 312, 22 * 960 - 312)
    assert hurt.shape[1] == whole.shape[1] + 1920
    assert np.array_equal(hurt[:, : silent.start], whole[:, : silent.start])
    assert not hurt[:, silent].any()


@pytest.mark.parametrize("name", STREAMS)
def test_damage_is_a_value_error_or_samples(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data, threads = STREAMS[name], threading.active_count()
    for seed in range(120):
        rng = np.random.default_rng(seed)
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 8))):
            place = int(rng.integers(0, 400 if rng.random() < 0.4 else len(data)))
            damaged[place] = int(rng.integers(0, 256))
        if name.startswith("ogg") and seed % 2:
            repair_checksums(damaged)
        end = int(rng.integers(1, len(damaged)))
        try:
            samples = decode(bytes(damaged[:end]), sorted(rng.integers(0, end, 8).tolist()))
        except ValueError:
            continue
        assert np.abs(samples).max(initial=0) <= 1
    assert threading.active_count() == threads
    assert capfd.readouterr().err == ""


def repair_checksums(data: bytearray) -> None:
    """So that damage gets beyond the page."""
    starts = [at for at in range(len(data)) if data[at : at + 4] == b"OggS"]
    for start, end in pairwise([*starts, len(data)]):
        data[start + 22 : start + 26] = bytes(4)
        data[start + 22 : start + 26] = ogg_checksum(data[start:end]).to_bytes(4, "little")


def test_mp3_that_ends_within_a_header() -> None:
    for end in range(4):
        with pytest.raises(ValueError, match="ended before a frame that could be decoded"):
            decode(b"ID3\x04\0\0\0\0\0\0" + b"\xff\xfb\x90"[:end])


def test_memory_behind_a_packet_is_not_decoded() -> None:
    """FFmpeg reads on behind a damaged frame; what lies there must not be what this process happens to hold."""
    data = bytearray(STREAMS["mp3"])
    rng = np.random.default_rng(437)
    for _ in range(int(rng.integers(1, 12))):
        data[int(rng.integers(0, len(data)))] = int(rng.integers(0, 256))
    whole = decode(bytes(data))
    for _ in range(100):
        left_behind = [rng.bytes(int(rng.integers(100, 40000))) for _ in range(20)]
        del left_behind
        assert np.array_equal(decode(bytes(data)), whole)
