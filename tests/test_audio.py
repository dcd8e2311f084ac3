"""Audio decoding: any cut of a recording gives the same samples, and headers are held against the request."""

from __future__ import annotations

import io
import struct
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from asr_server.audio import AudioDecoder, AudioFormat
from asr_server.flac import FlacSource
from asr_server.pcm import ALAW, MULAW, ChannelSamples

RATE = 16000
LINEAR16 = AudioFormat("LINEAR16", RATE)


def tone(seconds: float, rate: int = RATE) -> npt.NDArray[np.int16]:
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (8000 * np.sin(2 * np.pi * 440 * time) + 300 * noise).astype(np.int16)


def encode(samples: npt.NDArray[np.int16], rate: int = RATE, container: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    scaled = samples / np.float32(32768) if subtype in ("FLOAT", "DOUBLE") else samples
    soundfile.write(file, scaled, rate, format=container, subtype=subtype)
    return file.getvalue()


def decode_channels(data: bytes, audio_format: AudioFormat, cuts: list[int] | None = None) -> ChannelSamples:
    decoder = AudioDecoder(audio_format, RATE, separate_channels=True)
    pieces = [decoder.feed(data[a:b]) for a, b in pairwise([0, *(cuts or []), len(data)])]
    pieces = [*pieces, decoder.flush()]
    assert all(piece.flags.c_contiguous and piece.dtype == np.float32 for piece in pieces)
    joined: ChannelSamples = np.concatenate([piece for piece in pieces if piece.size] or pieces[-1:], axis=1)
    return joined


def decode(data: bytes, audio_format: AudioFormat, cuts: list[int] | None = None) -> npt.NDArray[np.float32]:
    decoder = AudioDecoder(audio_format, RATE)
    pieces = [decoder.feed(data[a:b]) for a, b in pairwise([0, *(cuts or []), len(data)])]
    joined: ChannelSamples = np.concatenate([*pieces, decoder.flush()], axis=1)
    (samples,) = joined
    return np.asarray(samples)


def random_cuts(size: int, count: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    early = rng.integers(0, min(size, 80), count // 2)  # headers are short; cut through them too
    return sorted([*early.tolist(), *rng.integers(0, size, count - count // 2).tolist()])


RECORDINGS = {
    "linear16": (tone(0.7).tobytes(), LINEAR16),
    "linear16-8k": (tone(0.7, 8000).tobytes(), AudioFormat("LINEAR16", 8000)),
    "linear16-44k-stereo": (
        np.stack([tone(0.5, 44100), tone(0.5, 44100) // 2], 1).tobytes(),
        AudioFormat("LINEAR16", 44100, 2),
    ),
    "mulaw": (np.random.default_rng(1).bytes(5000), AudioFormat("MULAW", 8000)),
    "alaw": (np.random.default_rng(1).bytes(5000), AudioFormat("ALAW", 8000)),
    "wav": (encode(tone(0.7)), AudioFormat()),
    "wav-48k-24bit": (encode(tone(0.3, 48000), 48000, subtype="PCM_24"), AudioFormat()),
    "wav-mulaw": (encode(tone(0.7, 8000), 8000, subtype="ULAW"), AudioFormat()),
    "flac": (encode(tone(1.3), container="FLAC"), AudioFormat()),
    "flac-22k": (encode(tone(1.3, 22050), 22050, container="FLAC"), AudioFormat("FLAC", 22050)),
    "flac-24bit-stereo": (
        encode(np.stack([tone(1.0), tone(1.0)[::-1]], 1), container="FLAC", subtype="PCM_24"),
        AudioFormat("FLAC"),
    ),
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_any_cut_gives_the_same_samples(name: str) -> None:
    data, audio_format = RECORDINGS[name]
    whole = decode(data, audio_format)
    assert len(whole) > 4000
    for seed in range(6):
        pieces = decode(data, audio_format, random_cuts(len(data), 40, seed))
        assert np.array_equal(pieces, whole)


@pytest.mark.parametrize("container", ["", "WAV", "FLAC"])
@pytest.mark.parametrize(("rate", "channels"), [(RATE, 2), (8000, 2), (48000, 5), (RATE, 8)])
def test_separate_channels_are_those_decoded_alone(container: str, rate: int, channels: int) -> None:
    one = tone(0.4, rate)
    samples = np.stack([np.roll(one, 7 * c) // (c + 1) for c in range(channels)], 1)
    if container:
        data, audio_format = encode(samples, rate, container), AudioFormat()
    else:
        data, audio_format = samples.tobytes(), AudioFormat("LINEAR16", rate, channels)
    alone = [decode(samples[:, c].tobytes(), AudioFormat("LINEAR16", rate)) for c in range(channels)]
    assert np.array_equal(decode_channels(data, audio_format), alone)
    assert np.array_equal(decode_channels(data, audio_format, random_cuts(len(data), 40, 0)), alone)
    assert np.array_equal(decode(data, audio_format), alone[0])


@pytest.mark.parametrize("name", ["wav", "flac", "wav-mulaw"])
def test_byte_by_byte(name: str) -> None:
    data, audio_format = RECORDINGS[name]
    head = 6000
    assert np.array_equal(decode(data, audio_format, list(range(1, head))), decode(data, audio_format))


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")]
    + [("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("FLAC", "PCM_S8"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24")],
)
def test_files_decode_like_libsndfile(container: str, subtype: str) -> None:
    data = encode(tone(0.9), container=container, subtype=subtype)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    assert np.array_equal(decode(data, AudioFormat()), expected)


def test_silent_flac_with_tiny_frames() -> None:
    """Frames of silence are shorter than the longest frame header; none of them may get lost."""
    data = encode(np.zeros(3 * RATE, np.int16), container="FLAC")
    assert len(decode(data, AudioFormat())) == 3 * RATE
    assert len(decode(data, AudioFormat(), random_cuts(len(data), 30, 0))) == 3 * RATE


def test_flac_streams() -> None:
    """Samples come out while the file still comes in."""
    data = encode(tone(4), container="FLAC")
    decoder = AudioDecoder(AudioFormat("FLAC"), RATE)
    assert decoder.feed(data[: len(data) // 2]).shape[1] > RATE


def test_g711_known_values() -> None:
    assert (MULAW.decode(bytes([0xFF, 0x7F, 0x00, 0x80])) * 32768).tolist() == [0, 0, -32124, 32124]
    assert (ALAW.decode(bytes([0xD5, 0x55, 0xAA, 0x2A])) * 32768).tolist() == [8, -8, 32256, -32256]


def test_first_channel_is_taken() -> None:
    left, right = tone(0.2), np.zeros(3200, np.int16)
    stereo = np.stack([left, right], 1)
    expected = left.astype(np.float32) / 32768
    assert np.array_equal(decode(stereo.tobytes(), AudioFormat("LINEAR16", RATE, 2)), expected)
    assert np.array_equal(decode(encode(stereo), AudioFormat()), expected)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_resampling_keeps_time_and_tone(rate: int) -> None:
    samples = decode(tone(1.0, rate).tobytes(), AudioFormat("LINEAR16", rate))
    assert abs(len(samples) - RATE) <= 1
    spectrum = np.abs(np.fft.rfft(samples[:RATE] * np.hanning(len(samples[:RATE]))))
    assert abs(int(spectrum.argmax()) - 440) <= 1


def test_half_a_sample_at_the_end_is_dropped() -> None:
    assert len(decode(b"\x01\x00\x02", LINEAR16)) == 1


def test_short_audio_is_not_mistaken_for_a_header() -> None:
    assert len(decode(b"RIFF", LINEAR16)) == 2
    assert len(decode(b"", LINEAR16)) == 0


def test_wav_of_unknown_length_runs_to_the_end() -> None:
    data = bytearray(encode(tone(0.1)))
    for length in (0, 0xFFFFFFFF):
        struct.pack_into("<I", data, data.index(b"data") + 4, length)
        assert len(decode(bytes(data), AudioFormat())) == 1600


def test_chunks_around_the_wav_data_are_not_audio() -> None:
    data = encode(tone(0.1))
    note = b"LIST" + struct.pack("<I", 5) + b"hello\0"  # odd length, padded
    at = data.index(b"data")
    assert np.array_equal(decode(data[:at] + note + data[at:] + note, AudioFormat()), decode(data, AudioFormat()))


@pytest.mark.parametrize(
    ("audio_format", "text"),
    [
        (
            AudioFormat("LINEAR16", 16000),
            r"sample_rate_hertz \(16000\) in RecognitionConfig must either be omitted or match the value in the "
            r"WAV header \(22050\)\.",
        ),
        (AudioFormat("MULAW"), r"encoding \(MULAW\) .* WAV header \(LINEAR16\)"),
        (AudioFormat("LINEAR16", channels=2), r"audio_channel_count \(2\) .* WAV header \(1\)"),
    ],
)
def test_header_against_request(audio_format: AudioFormat, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        decode(encode(tone(0.1, 22050), 22050), audio_format)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("SPEEX_WITH_HEADER_BYTE", 16000),
            "bad encoding. SPEEX_WITH_HEADER_BYTE is not supported. Select one of {LINEAR16, MULAW, ALAW, FLAC, OGG_O",
        ),
        (("LINEAR16", 7999), "bad sample rate hertz. It is 7999; it must be between 8000 and 48000"),
        (("LINEAR16", 48001), "bad sample rate hertz"),
        (("LINEAR16", 16000, 9), "between 1 and 8"),
        (("MULAW", 8000, 2), "MULAW audio has one channel, not 2"),
        (("ALAW", 8000, 2), "ALAW audio has one channel, not 2"),
        (("OGG_OPUS", 44100), "It is 44100; for OGG_OPUS, select one of {8000, 12000, 16000, 24000, 48000}"),
    ],
)
def test_impossible_formats(arguments: tuple[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AudioFormat(*arguments)


@pytest.mark.parametrize(
    ("data", "audio_format", "text"),
    [
        (bytes(100), AudioFormat(), "unspecified and the audio has no WAV, FLAC, Ogg, WebM, MP3 or AMR header"),
        (bytes(100), AudioFormat("LINEAR16"), "bad sample rate hertz. It is 0"),
        (bytes(100), AudioFormat("FLAC"), "the bytes 'fLaC' are missing"),
        (encode(tone(0.1))[:30], AudioFormat(), "WAV header is incomplete"),
        (encode(tone(0.1), container="FLAC")[:30], AudioFormat(), "FLAC header is incomplete"),
        (encode(tone(0.1), 4000), AudioFormat(), "bad sample rate hertz. It is 4000"),
        (encode(tone(0.1), subtype="MS_ADPCM"), AudioFormat(), "WAV format tag 2 with 4 bits is not supported"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", AudioFormat(), "no 'fmt ' chunk"),
        (encode(tone(0.1), container="FLAC")[:100] + bytes(9000), AudioFormat(), "damaged FLAC|FLAC header"),
    ],
)
def test_audio_that_cannot_be_read(data: bytes, audio_format: AudioFormat, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        decode(data, audio_format)


def test_damaged_flac_frame_is_refused() -> None:
    data = bytearray(encode(tone(1.3), container="FLAC"))
    data[-2000] ^= 0xFF
    with pytest.raises(ValueError, match="damaged FLAC data"):
        decode(bytes(data), AudioFormat())


def test_flac_that_expands_too_far_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr_server.pcm.MAX_SAMPLES_PER_FEED", 10000)
    source = FlacSource()
    with pytest.raises(ValueError, match="at most 10000 at once"):
        source.feed(encode(np.zeros(RATE * 2, np.int16), container="FLAC"))


@pytest.mark.parametrize("name", ["wav", "wav-mulaw", "flac", "flac-24bit-stereo"])
def test_damage_is_a_value_error_or_nothing(name: str) -> None:
    """Whatever bytes come, the answer is samples in range or a ValueError."""
    data, _ = RECORDINGS[name]
    for seed in range(60):
        rng = np.random.default_rng(seed)
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 6))):
            place = int(rng.integers(0, 60 if rng.random() < 0.5 else len(data)))
            damaged[place] = int(rng.integers(0, 256))
        end = int(rng.integers(1, len(damaged)))
        try:
            samples = decode(bytes(damaged[:end]), AudioFormat(), random_cuts(end, 8, seed))
        except ValueError:
            continue
        assert np.abs(samples).max(initial=0) <= 1
