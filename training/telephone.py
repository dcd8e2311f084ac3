"""Speech through a telephone line: its band, its rate and its codec."""

import io
from functools import cache

import numpy as np
import soundfile
import soxr

from training.mixing import Samples
from training.rooms import convolve

RATE = 8000
BAND = (300.0, 3400.0)  # Hz
TAPS = 255  # 32 ms at 8 kHz: edges about 100 Hz wide
CODECS = ("ULAW", "ALAW", "GSM610")  # ITU-T G.711 (both laws) and GSM 06.10 full rate, as libsndfile names them


def telephone(samples: Samples, codec: str, rate: int = 16000) -> Samples:
    """What the other end hears, (S,) at the same rate and in time with the original; ValueError for another codec."""
    narrow = soxr.resample(samples, rate, RATE, quality="MQ")
    delay = TAPS // 2
    padded = np.pad(narrow, (0, delay))
    line = transmit(convolve(padded, _band_pass())[delay:], codec)
    wide = soxr.resample(line, RATE, rate, quality="MQ")
    heard: Samples = np.pad(wide, (0, max(0, len(samples) - len(wide))))[: len(samples)]
    return heard


def transmit(samples: Samples, codec: str) -> Samples:
    """Encode and decode 8 kHz speech, (S,); what is above full scale is clipped."""
    if codec not in CODECS:
        raise ValueError(f"{codec!r} is no telephone codec; choose from {', '.join(CODECS)}")
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype=codec)
    file.seek(0)
    decoded: Samples = soundfile.read(file, dtype="float32")[0]
    return decoded[: len(samples)]  # GSM fills its last block


@cache
def _band_pass() -> Samples:
    """Windowed-sinc filter, symmetric, (TAPS,)."""
    time = np.arange(TAPS) - TAPS // 2
    low, high = (2 * edge / RATE * np.sinc(2 * edge / RATE * time) for edge in BAND)
    taps: Samples = ((high - low) * np.hamming(TAPS)).astype(np.float32)
    return taps
