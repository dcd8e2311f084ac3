"""Background noise for training: short clips of real recordings, and which of them sound like real places.

    python -m training.noise noise-*.jsonl      # what is used, what is rejected and why

Noise is a sum of several clips (Hannun et al. 2014, section 4.1): one clip heard often would be learned by heart. A
sum of arbitrary clips can be a noise that no place has, so a candidate is rejected when its power in any frequency
band differs too much from that of real noisy recordings. The paper's own noisy recordings are not public. The
reference here is the clips of the same sources that were recorded in places, streets and vehicles
(`NoiseOptions.reference`): a real background each, though without a talker in front of it; where no clip is one, all
are. In every band the reference has a mean level in decibels, relative to the whole clip, and a standard deviation
over its clips; a candidate that is more than `NoiseOptions.deviations` of them away in some band is rejected. The
reference clips are judged by the same rule.
"""

from __future__ import annotations

import argparse
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.mixing import Recording, Samples, power, stretch, to_float
from training.speech_manifest import read_manifest

BANDS = (50, 125, 250, 500, 1000, 2000, 4000, 6000, 8000)  # Hz; about octaves, the top one halved
FLOOR = -60.0  # decibels below the whole clip; a codec's empty band is no further away than this
SILENCE = 1e-7  # mean square, -70 dB: amplified to be heard, such a clip would be the hiss of its codec
HELD_OUT_PERCENT = 30
REFERENCE_HELP = "in the ids of recordings of real places, which all are judged by; where there are none, all are"
# Of 20 000 salts, the one that holds out the most even share of every kind of sound among those that hold out a
# recording of each background of the paper's noisy test, while training keeps others of a cafeteria, of water and rain.
SALT = 12227


def held_out(clip: str) -> bool:
    """Whether a noise recording belongs to testing and never to training, by its name: its id, else the file's stem.

    Whole recordings are held out, also where a data set cut one into several takes (ESC's `1-100032-A`).
    """
    take = re.search(r"\d-(\d+)-[A-Z]\d*$", clip)
    recording = take[1] if take else clip
    return zlib.crc32(f"{SALT} {recording}".encode()) % 100 < HELD_OUT_PERCENT


@dataclass(frozen=True)
class NoiseOptions:
    """How clips are cut and judged."""

    clip_seconds: float = 10.0  # longer recordings are cut into equal parts of about this length
    reference: tuple[str, ...] = ("_places_", "_urban_", "_transport_")  # in the ids of reference recordings
    deviations: float = 3.0  # in standard deviations of the reference; 0 rejects nothing but silence
    testing: bool = False  # take the held-out recordings instead of the others

    def __post_init__(self) -> None:
        if self.clip_seconds <= 0 or self.deviations < 0:
            raise ValueError(
                f"clips of {self.clip_seconds} s at {self.deviations} deviations: the first is above 0, "
                "the second not below it"
            )


@dataclass(frozen=True)
class Clip:
    """One candidate: (S,) int16 or float32, the mean square of its samples in [-1, 1]."""

    name: str
    samples: Recording
    power: float

    @classmethod
    def of(cls, name: str, samples: Samples) -> Clip:
        """Keep `samples` as int16, which halves the memory."""
        whole = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
        return cls(name, whole, power(samples))


@dataclass(frozen=True)
class Rejected:
    """Why a clip is not used: its level in the worst band and the reference's mean and deviation there, decibels."""

    clip: Clip
    band: str
    level: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class NoiseBank:
    """Clips that noise is made of."""

    clips: tuple[Clip, ...]
    rejected: tuple[Rejected, ...] = ()
    reference: int | None = None  # how many clips all were judged by; 0: by all of them; None: they were not

    @classmethod
    def from_manifest(cls, paths: Sequence[Path], options: NoiseOptions | None = None, rate: int = 16000) -> NoiseBank:
        """Read, cut and judge the recordings of manifests; ValueError when none is left."""
        options = options or NoiseOptions()
        clips = [clip for path in paths for clip in _read(path, options, rate)]
        bank = judge(clips, options, rate)
        if not bank.clips:
            raise ValueError(
                f"none of {len(clips)} noise clips of {', '.join(map(str, paths))} is left; see deviations"
            )
        return bank

    def sum(self, size: int, count: int, random: Generator) -> Samples:
        """`count` clips on top of each other, (size,): cut or looped at random, none more than 10 dB above another."""
        total = np.zeros(size, np.float32)
        for index in random.integers(len(self.clips), size=count):
            clip = self.clips[index]
            gain = 10 ** (random.uniform(-10, 0) / 20) / np.sqrt(clip.power)
            total += stretch(clip.samples, size, random) * np.float32(gain)
        return total

    def summary(self) -> str:
        """One line about what is used and what not, one more for each recording with rejected clips."""
        judged = len(self.clips) + len(self.rejected)
        judges = "" if self.reference is None else f", by {self.reference} clips of real places"
        if self.reference == 0:
            judges = ", by all of them: no id says which were recorded in a real place"
        lines = [f"noise: {len(self.clips)} of {judged} clips used, {len(self.rejected)} rejected{judges}"]
        for name, count in Counter(each.clip.name for each in self.rejected).items():
            each = next(each for each in self.rejected if each.clip.name == name)
            reason = f"{each.band}, {each.level:.0f} dB; the reference has {each.mean:.0f} +- {each.deviation:.0f} dB"
            lines.append(f"  {name}: {count} rejected, the first by {reason if each.band else 'silence'}")
        return "\n".join(lines)


def band_levels(samples: Samples, rate: int) -> NDArray[np.float64]:
    """Mean power in each of the bands relative to their sum, decibels, (bands,)."""
    window = 512
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    frames = padded[: len(padded) // window * window].reshape(-1, window)
    spectrum = (np.abs(np.fft.rfft(frames * np.hanning(window).astype(np.float32))) ** 2).mean(axis=0)
    edges = np.searchsorted(np.fft.rfftfreq(window, 1 / rate), BANDS)
    powers = np.array([spectrum[low:high].sum() for low, high in itertools.pairwise(edges)])
    levels: NDArray[np.float64] = 10 * np.log10(np.maximum(powers / max(powers.sum(), 1e-20), 10 ** (FLOOR / 10)))
    return levels


def judge(clips: Sequence[Clip], options: NoiseOptions, rate: int) -> NoiseBank:
    """Sort candidates into used and rejected."""
    loud = [clip for clip in clips if clip.power > SILENCE]
    rejected = [Rejected(clip, "", 0, 0, 0) for clip in clips if clip.power <= SILENCE]
    if not options.deviations or not loud:
        return NoiseBank(tuple(loud), tuple(rejected))
    levels = np.array([band_levels(to_float(clip.samples), rate) for clip in loud])
    known = np.array([any(word in clip.name for word in options.reference) for clip in loud])
    reference = int(known.sum())
    if not reference:
        known[:] = True
    mean, deviation = levels[known].mean(axis=0), np.maximum(levels[known].std(axis=0), 1.0)
    distances = np.abs(levels - mean) / deviation
    used = []
    for clip, level, distance in zip(loud, levels, distances, strict=True):
        worst = int(distance.argmax())
        if distance[worst] <= options.deviations:
            used.append(clip)
        else:
            band = f"{BANDS[worst]}-{BANDS[worst + 1]} Hz"
            rejected.append(Rejected(clip, band, level[worst], mean[worst], deviation[worst]))
    return NoiseBank(tuple(used), tuple(rejected), reference)


def _read(path: Path, options: NoiseOptions, rate: int) -> Iterator[Clip]:
    """The clips of one manifest's recordings, without the digital silence that some are padded with."""
    for noise in read_manifest(path, text=False):
        if held_out(noise.name) != options.testing:
            continue
        samples = noise.samples(rate)
        heard = np.flatnonzero(np.abs(samples) > 1.5 / 32768)
        if len(heard):
            samples = samples[heard[0] : heard[-1] + 1]
        parts = max(1, round(len(samples) / (options.clip_seconds * rate)))
        for part in np.array_split(samples, parts):
            yield Clip.of(noise.name, part)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.noise", description="Show which noise clips are used.")
    parser.add_argument("manifests", type=Path, nargs="+")
    parser.add_argument("--deviations", type=float, default=NoiseOptions.deviations, help="default %(default)s")
    parser.add_argument("--reference", nargs="*", default=NoiseOptions.reference, metavar="WORD", help=REFERENCE_HELP)
    parser.add_argument("--testing", action="store_true", help="judge the held-out recordings instead")
    args = parser.parse_args()
    try:
        options = NoiseOptions(reference=(*args.reference,), deviations=args.deviations, testing=args.testing)
        print(NoiseBank.from_manifest(args.manifests, options).summary())
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
