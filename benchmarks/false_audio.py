"""Recordings that are not what they say: true ones in every format that servers take, and what can be wrong with them.

Each is made from a generator of random numbers that is handed in, so that it can be made again.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable

import av
import numpy as np
import soundfile

RATES = (0, 1, 7999, 8000, 11025, 16000, 22050, 44100, 48000, 48001, 192000, 655350, 2**31 - 1, 2**32 - 1)
COUNTS = (0, 1, 2, 3, 7, 8, 9, 255, 65535)
EXTREMES = (0, 1, 2, 127, 128, 255, 256, 2**15 - 1, 2**16 - 1, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
MAGIC = (
    b"RIFF",
    b"WAVE",
    b"fLaC",
    b"OggS",
    b"OpusHead",
    b"OpusTags",
    b"ID3\x04",
    b"\x1a\x45\xdf\xa3",
    b"#!AMR\n",
    b"#!AMR-WB\n",
)


def originals(random_numbers: random.Random) -> dict[str, bytes]:
    """What is then falsified: half a second of noise and a tone in each format, and two pictures."""
    noise = np.random.default_rng(random_numbers.getrandbits(32)).standard_normal((24000, 2))
    time = np.arange(24000)[:, None] / 48000
    audio = (0.3 * np.sin(2 * np.pi * 440 * time) + 0.02 * noise).astype(np.float32)
    files = {
        "wav": _written(audio, 48000, "WAV", "PCM_16"),
        "wav-float": _undated(_written(audio, 48000, "WAV", "FLOAT")),
        "wav-mulaw": _written(audio[:4000, 0], 8000, "WAV", "ULAW"),
        "wav-ex": _written(audio, 48000, "WAVEX", "PCM_24"),
        "flac": _written(audio, 48000, "FLAC", "PCM_16"),
        "flac-24": _written(audio[:, 0], 16000, "FLAC", "PCM_24"),
        "mp3": _written(audio[:, 0], 48000, "MP3", "MPEG_LAYER_III"),
        "ogg": _encoded(audio, "ogg"),
        "webm": _encoded(audio, "webm"),
        "amr": b"#!AMR\n" + b"".join(b"\x3c" + random_numbers.randbytes(31) for _ in range(25)),
        "amr-wb": b"#!AMR-WB\n" + b"".join(b"\x44" + random_numbers.randbytes(60) for _ in range(25)),
        "pcm": (audio[:, 0] * 32767).astype("<i2").tobytes(),
    }
    return files | {"png": png(8, 8), "png-bomb": png(60000, 60000)}


def bombs() -> dict[str, bytes]:
    """Small files that are long: minutes of silence, which these formats write in next to nothing."""
    silence = np.zeros(600 * 8000, np.int16)
    return {
        "flac-bomb": _written(silence, 8000, "FLAC", "PCM_16"),
        "mp3-bomb": _written(silence, 8000, "MP3", "MPEG_LAYER_III"),
        "ogg-bomb": _encoded(np.zeros((600 * 48000 // 4, 1), np.float32), "ogg"),
    }


def _written(audio: np.ndarray, rate: int, container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format=container, subtype=subtype)
    return file.getvalue()


def _undated(wav: bytes) -> bytes:
    """libsndfile notes in the PEAK chunk of floating point files when they were written."""
    place = wav.index(b"PEAK") + 12
    return wav[:place] + bytes(4) + wav[place + 4 :]


def _encoded(audio: np.ndarray, container: str, codec: str = "libopus") -> bytes:
    """(S, C) at 48 kHz. Without random serial numbers, so that the same comes out every time."""
    file = io.BytesIO()
    layout = "stereo" if audio.shape[1] == 2 else "mono"
    with av.open(file, "w", format=container, options={"fflags": "+bitexact"}) as output:
        stream = output.add_stream(codec, rate=48000, layout=layout)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio).reshape(1, -1), "flt", layout)
        frame.sample_rate = 48000
        resampler = av.AudioResampler(stream.format.name, layout, 48000, stream.codec_context.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            output.mux(stream.encode(part))
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """A picture that says it is so large and has the data of 8 x 8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(24) for _ in range(8)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def falsified(files: dict[str, bytes], chance: random.Random) -> bytes:
    """One of the files with one to three things wrong with it; one in ten is left as it is."""
    data = files[chance.choice(sorted(files))]
    for _ in range(chance.choice((0, 1, 1, 1, 1, 2, 2, 2, 3, 3))):
        data = chance.choice(_LIES)(data, files, chance)
    return data


def _cut(data: bytes, files: dict[str, bytes], chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _beheaded(data: bytes, files: dict[str, bytes], chance: random.Random) -> bytes:
    return data[chance.randrange(min(len(data), 64) + 1) :]


def _flipped(data: bytes, files: dict[str, bytes], chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 3, 30)) if changed else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _extreme(data: bytes, files: dict[str, bytes], chance: random.Random) -> bytes:
    """A number near the beginning, where headers are, replaced."""
    layout = chance.choice((">I", "<I", ">H", "<H", "B"))
    number = struct.pack(layout, chance.choice(EXTREMES) % 256 ** struct.calcsize(layout))
    place = chance.randrange(min(len(data), 200) + 1)
    return data[:place] + number + data[place + len(number) :]


def _spliced(data: bytes, files: dict[str, bytes], chance: random.Random) -> bytes:
    other = files[chance.choice(sorted(files))]
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


def _relabelled(data: bytes, files: dict[str, bytes], chance: random.Random) -> bytes:
    label = chance.choice(MAGIC)
    return label + data[chance.choice((0, len(label))) :]


def _wav_header(data: bytes, files: dict[str, bytes], chance: random.Random) -> bytes:
    rate, channels, bits = chance.choice(RATES), chance.choice(COUNTS), chance.choice((0, 1, 8, 16, 24, 32, 64, 65535))
    block, size = chance.choice((channels * bits // 8, *COUNTS)) % 65536, chance.choice((len(data), *EXTREMES))
    code = chance.choice((0, 1, 2, 3, 6, 7, 17, 85, 0xFFFE, 0xFFFF))
    form = struct.pack("<HHIIHH", code, channels, rate, rate * block % 2**32, block, bits)
    header = b"RIFF" + struct.pack("<I", chance.choice(EXTREMES)) + b"WAVE"
    header += b"fmt " + struct.pack("<I", chance.choice((16, 18, 40, *EXTREMES))) + form
    return header + b"data" + struct.pack("<I", size) + data[-4000:]


def _noise(data: bytes, files: dict[str, bytes], chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 2, 3, 43, 44, 1000, 20000)))


_LIES: tuple[Callable[[bytes, dict[str, bytes], random.Random], bytes], ...] = (
    _cut,
    _beheaded,
    _flipped,
    _extreme,
    _extreme,
    _spliced,
    _relabelled,
    _wav_header,
    _noise,
)
