"""What a recording is, measured once: its rate, its length, its loudness, and a digest of what it sounds like.

The digest is of the samples: a WAV and the FLAC made of it are the same recording, one that was cut or scaled is not.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

FULL_SCALE = 0.999  # of the largest 16-bit sample


@dataclass(frozen=True)
class RecordingFacts:
    """Of one file. `trouble` is why it cannot be used, and nothing else is known then."""

    trouble: str = ""
    rate: int = 0  # Hz
    channels: int = 0
    seconds: float = 0.0
    peak: float = 0.0  # of [-1, 1]
    clipped: float = 0.0  # share of the samples that lie at full scale beside another one
    silence: float = 0.0  # seconds: the longest run of samples that are exactly zero
    digest: str = ""


def measure(path: Path) -> RecordingFacts:
    """Read one file; never raises for what is in it."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError) as error:  # of .raw, whose rate nobody says
        return RecordingFacts(f"cannot be read as audio: {error}")
    mono = np.ascontiguousarray(samples[:, 0])  # the channel that training takes
    if not len(mono) or not np.isfinite(mono).all():
        return RecordingFacts("has no samples" if not len(mono) else "has samples that are not finite numbers")
    loud = np.abs(mono)
    return RecordingFacts(
        rate=rate,
        channels=samples.shape[1],
        seconds=len(mono) / rate,
        peak=float(loud.max()),
        clipped=_clipped(loud),
        silence=_longest_run(mono == 0) / rate,
        digest=hashlib.blake2b(mono.tobytes(), digest_size=16).hexdigest(),
    )


def measure_header(path: Path) -> RecordingFacts:
    """What the header says: rate, channels, length, and FLAC's own digest; nothing about loudness."""
    try:
        info = soundfile.info(path)
        digest = _flac_digest(path)
    except (OSError, RuntimeError, TypeError) as error:
        return RecordingFacts(f"cannot be read as audio: {error}")
    if not info.frames:
        return RecordingFacts("has no samples")
    return RecordingFacts("", info.samplerate, info.channels, info.frames / info.samplerate, 1.0, digest=digest)


def measure_all(paths: set[Path], jobs: int, headers: bool = False) -> dict[Path, RecordingFacts]:
    """Each file once. Threads, because decoding, arithmetic and digests let go of the interpreter."""
    order, one = sorted(paths), measure_header if headers else measure
    with ThreadPoolExecutor(jobs) as pool:
        facts = tqdm(pool.map(one, order), "recordings", len(order), unit="file", disable=None, leave=False)
        return dict(zip(order, facts, strict=True))


def _flac_digest(path: Path) -> str:
    """MD5 of the samples, which an encoder writes into the first block (RFC 9639, section 8.2); "" without one."""
    with path.open("rb") as file:
        head = file.read(42)
    digest = head[26:] if head.startswith(b"fLaC") else b""
    return digest.hex() if any(digest) else ""


def _clipped(loud: NDArray[np.float32]) -> float:
    """A single sample at full scale is a peak that was normalised; two in a row are a wave without its top."""
    full = loud >= FULL_SCALE
    flat = full[1:] & full[:-1]
    return float(flat.sum()) / len(loud)


def _longest_run(flags: NDArray[np.bool_]) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))
