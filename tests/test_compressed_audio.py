"""Compressed streams: any cut gives the same samples, and what arrived comes out."""

from __future__ import annotations

import io
import subprocess
import sys

import av
import numpy as np
import pytest

from asr_server.audio import AudioDecoder, AudioFormat
from asr_server.ogg import OggReader
from asr_server.opus_packet import OpusPacket
from asr_server.webm import WebmReader
from tests.compressed_fixtures import (
    HEAD,
    ID3,
    PACKETS,
    RATE,
    SPEECH,
    STREAMS,
    Audio,
    block,
    decode,
    element,
    lace,
    ogg,
    ogg_page,
    webm,
)

OPENING = ogg(HEAD, [], [])


def reference(data: bytes, codec: str) -> Audio:
    """What FFmpeg's demuxer and `codec` make of a whole file."""
    with av.open(io.BytesIO(data), "r") as source:
        context = av.CodecContext.create(codec, "r")
        assert isinstance(context, av.AudioCodecContext)
        context.extradata = source.streams.audio[0].codec_context.extradata
        context.options = {"request_sample_fmt": "flt"}
        frames = [frame for packet in source.demux() if packet.size for frame in context.decode(packet)]
    arrays = [np.asarray(frame.to_ndarray()) for frame in frames]
    if not frames[0].format.is_planar:
        arrays = [array.reshape(-1, frames[0].layout.nb_channels).T for array in arrays]
    return np.clip(np.concatenate(arrays, axis=1), -1, 1).astype(np.float32)


@pytest.mark.parametrize("rate", [RATE, 16000])
@pytest.mark.parametrize("name", STREAMS)
def test_any_cut_gives_the_same_samples(name: str, rate: int) -> None:
    data = STREAMS[name]
    whole = decode(data, rate=rate)
    assert whole.shape[1] > 0.45 * rate
    for seed in range(4):
        rng = np.random.default_rng(seed)
        cuts = sorted([*rng.integers(0, 200, 15).tolist(), *rng.integers(0, len(data), 30).tolist()])
        assert np.array_equal(decode(data, cuts, rate=rate), whole)
    assert np.array_equal(decode(data, list(range(1, len(data))), rate=rate), whole)


@pytest.mark.parametrize("name", ["ogg", "ogg-live", "ogg-5.1", "webm", "webm-live"])
def test_opus_is_what_libopus_makes_of_it(name: str) -> None:
    assert np.array_equal(decode(STREAMS[name]), reference(STREAMS[name], "libopus"))
    if name in ("ogg", "webm"):  # neither the pre-skip nor the padding of the last packet is left
        assert decode(STREAMS[name]).shape == SPEECH.shape


def test_mp3_is_what_ffmpeg_makes_of_it() -> None:
    expected = reference(STREAMS["mp3"], "mp3float")
    samples = decode(STREAMS["mp3"])
    assert expected.shape == SPEECH.shape
    assert np.array_equal(samples[:, : expected.shape[1]], expected)
    assert samples.shape[1] - expected.shape[1] < 1152  # the padding of the last frame is left
    assert np.corrcoef(samples[0, : SPEECH.shape[1]], SPEECH[0])[0, 1] > 0.99


@pytest.mark.parametrize(("name", "rate"), [("amr", 8000), ("amr-wb", 16000)])
def test_amr_is_what_ffmpeg_makes_of_it(name: str, rate: int) -> None:
    codec = {"amr": "amrnb", "amr-wb": "amrwb"}[name]
    assert np.array_equal(decode(STREAMS[name], rate=rate), reference(STREAMS[name], codec))


def test_amr_without_speech_is_silence() -> None:
    samples = decode(b"#!AMR\n" + bytes([15 << 3 | 4]) * 3 + bytes([8 << 3 | 4, 0, 0, 0, 0, 0]), rate=8000)
    assert samples.shape == (1, 640)
    assert not samples.any()


def test_each_channel_comes_out() -> None:
    samples = decode(STREAMS["ogg-live"])
    spectrum = np.abs(np.fft.rfft(samples[:, : RATE // 2]))
    assert (2 * spectrum.argmax(axis=1)).tolist() == [300, 500]
    first = AudioDecoder(AudioFormat(), RATE).feed(STREAMS["ogg-live"])
    assert np.array_equal(first, samples[:1])


@pytest.mark.parametrize("name", ["ogg", "ogg-live", "webm", "webm-live", "mp3", "mp3-16k-live", "amr", "amr-wb"])
def test_what_arrived_comes_out(name: str) -> None:
    """Even where a page or a cluster holds a second, less than 100 ms of what arrived are kept back."""
    data = STREAMS[name].removeprefix(ID3)
    header = max(data.find(mark) for mark in (b"OpusTags", b"\x1f\x43\xb6\x75", b"LAME", b"Lavc"))
    rate = {"mp3-16k-live": 16000, "amr": 8000, "amr-wb": 16000}.get(name, RATE)  # a resampler would add to it
    whole = decode(data, rate=rate).shape[1]
    decoder, samples = AudioDecoder(AudioFormat(), rate), 0
    for end in range(20, len(data), 20):
        samples += decoder.feed(data[end - 20 : end]).shape[1]
        arrived = (end - max(header, 0)) / (len(data) - max(header, 0)) * whole
        assert arrived - samples < 0.1 * rate + 0.02 * whole  # bit rates vary by a little


@pytest.mark.parametrize(
    ("name", "audio_format", "text"),
    [
        ("ogg", AudioFormat("WEBM_OPUS"), r"encoding \(WEBM_OPUS\) .* Ogg header \(OGG_OPUS\)"),
        ("webm", AudioFormat("OGG_OPUS"), r"encoding \(OGG_OPUS\) .* WebM header \(WEBM_OPUS\)"),
        ("ogg", AudioFormat("LINEAR16", 16000), r"encoding \(LINEAR16\) .* Ogg header \(OGG_OPUS\)"),
        ("mp3", AudioFormat("FLAC"), r"encoding \(FLAC\) .* MP3 header \(MP3\)"),
        ("mp3", AudioFormat("MP3", 16000), r"sample_rate_hertz \(16000\) .* MP3 header \(48000\)"),
        ("amr", AudioFormat("AMR", 16000), r"sample_rate_hertz \(16000\) .* AMR header \(8000\)"),
        ("amr-wb", AudioFormat("AMR"), r"encoding \(AMR\) .* AMR header \(AMR_WB\)"),
        ("ogg-live", AudioFormat("OGG_OPUS", channels=1), r"audio_channel_count \(1\) .* Ogg header \(2\)"),
    ],
)
def test_header_against_request(name: str, audio_format: AudioFormat, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        decode(STREAMS[name], audio_format=audio_format)


@pytest.mark.parametrize("rate", [0, 8000, 12000, 16000, 24000, 48000])
def test_the_rate_said_of_opus_is_not_held_against_it(rate: int) -> None:
    said = decode(STREAMS["ogg"], audio_format=AudioFormat("OGG_OPUS", rate, 1))
    assert np.array_equal(said, decode(STREAMS["ogg"]))


def test_loud_samples_are_not_mistaken_for_mp3() -> None:
    data = b"\xff\xfb\x90\x64" * 500
    samples = decode(data, audio_format=AudioFormat("LINEAR16", RATE))
    assert np.array_equal(samples[0], np.frombuffer(data, "<i2") / np.float32(32768))


def test_chained_and_multiplexed_ogg() -> None:
    """A stream that follows the end of another one goes on; pages of other streams between its own do not matter."""
    one = ogg(HEAD, [PACKETS[:5], PACKETS[5:9]], [5 * 960, 9 * 960 - 100])
    alone = decode(one)
    assert alone.shape[1] == 9 * 960 - 100 - 312
    two = ogg(HEAD, [PACKETS[:5], PACKETS[5:9]], [5 * 960, 9 * 960 - 100], serial=8)
    assert np.array_equal(decode(one + two), np.concatenate([alone, alone], axis=1))
    other = ogg_page(lace([b"fishead\0"]), b"fishead\0", 2, 0, serial=3)
    assert np.array_equal(decode(one[: len(ogg(HEAD, [], []))] + other + one[len(ogg(HEAD, [], [])) :]), alone)
    with pytest.raises(ValueError, match="goes on with 2 channels after 1"):
        decode(one + STREAMS["ogg-live"])


def test_a_packet_goes_on_on_the_next_page_and_lost_pages_are_passed() -> None:
    long, short = PACKETS[3] + bytes(600), PACKETS[4]
    reader = OggReader()
    start = ogg_page(b"\xff\xff", long[:510], number=2)
    rest = ogg_page(lace([long[510:], short]), long[510:] + short, 1, number=3)
    assert [item.data for item in reader.feed(OPENING + start + rest)] == [HEAD, long, short]
    assert [item.data for item in reader.feed(rest)] == [short]  # the start of the first packet is lost
    assert [item.data for item in reader.feed(start + ogg_page(lace([short]), short))] == [short]  # and here its end


def test_webm_lacing_padding_and_other_tracks() -> None:
    a, b, c = (b"\xfc" + bytes(size) for size in (299, 9, 99))
    fixed = [b"\xfc" + bytes([value] * 9) for value in range(3)]
    ebml = b"\x02" + b"\x41\x2c" + (10 - 300 + 8191 | 0x4000).to_bytes(2, "big")
    blocks = [
        block(b"\x02\xff\x2d\x0a" + a + b + c, 0x82),
        block(b"\x02" + b"".join(fixed), 0x84),
        block(ebml + a + b + c, 0x86),
        block(b"\xfc", track=2),
        block(bytes(600_000), track=3),  # a picture
        element(0xA0, element(0xA1, b"\x81\0\0\0" + b) + element(0x75A2, (10**7).to_bytes(4, "big"))),
    ]
    reader, stream = WebmReader(), webm(HEAD, blocks)
    items = [item for at in range(0, len(stream), 999) for item in reader.feed(stream[at : at + 999])][1:]
    assert [item.data for item in items] == [a, b, c, *fixed, a, b, c, b]
    assert [item.keep for item in items if isinstance(item, OpusPacket)] == [960] * 9 + [480]
    for flags in (0x82, 0x84, 0x86):
        with pytest.raises(ValueError, match="damaged WebM data: "):
            decode(webm(HEAD, [block(b"", flags)]))
    with pytest.raises(ValueError, match="longer than the block"):
        decode(webm(HEAD, [block(b"\x01\x09\xfc", 0x82)]))


def test_a_decoder_may_be_closed_twice_or_dropped() -> None:
    decoder = AudioDecoder(AudioFormat(), RATE)
    decoder.feed(STREAMS["ogg"][:2000])
    decoder.close()
    decoder.close()
    assert decoder.header is not None


def test_ffmpeg_is_loaded_for_compressed_audio_only() -> None:
    program = """
import io, sys, numpy, soundfile
from asr_server.audio import AudioDecoder, AudioFormat
for container in ("WAV", "FLAC"):
    file = io.BytesIO()
    soundfile.write(file, numpy.zeros(1600), 8000, format=container)
    AudioDecoder(AudioFormat(), 16000).feed(file.getvalue())
for encoding in ("LINEAR16", "MULAW", "ALAW"):
    AudioDecoder(AudioFormat(encoding, 8000), 16000).feed(bytes(1600))
assert "av" not in sys.modules
AudioDecoder(AudioFormat("MP3"), 16000)
assert "av" not in sys.modules
AudioDecoder(AudioFormat("MP3"), 16000).feed(bytes(100))
assert "av" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
