"""Changes of training waveforms that leave the words as they are: another speed, place, background, device.

The order is that of a recording: the talker (speed, start), the room, other sounds beside the talker, then the
microphone's level and the line. Every change draws from a generator of its own, so that an ablation which switches one
off leaves the others exactly as they were.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import soxr
from numpy.random import Generator

from training.mixing import Recording, Samples, at_snr, power, stretch
from training.noise import NoiseBank
from training.rooms import RoomOptions, reverberate, room_bank
from training.telephone import CODECS, telephone


@dataclass(frozen=True)
class WaveformOptions:
    """One field a change, `0` switches it off: how far it goes, or the share of the utterances that get it.

    ValueError for a share outside [0, 1] or a range whose end comes before its start.
    """

    speed: float = 0.1  # factors within 1 -+ speed; tempo and pitch together (Ko et al. 2015)
    jitter: float = 0.005  # seconds by which the start moves, at most; half a frame step (Hannun et al. 2014, 2.1)
    room: float = 0.3  # share
    noise: float = 0.5  # share
    babble: float = 0.1  # share
    clipping: float = 0.03  # share of recordings that were too loud
    level: float = 10.0  # decibels up or down, at most
    telephone: float = 0.1  # share
    noise_snr: tuple[float, float] = (0.0, 25.0)  # decibels, of all noise clips together
    noise_clips: tuple[int, int] = (2, 5)
    babble_snr: tuple[float, float] = (3.0, 20.0)
    babble_talkers: tuple[int, int] = (3, 8)
    excess: tuple[float, float] = (1.0, 9.0)  # decibels of a clipped recording's peak above full scale
    codecs: tuple[str, ...] = ("ULAW", "ULAW", "ULAW", "ALAW", "GSM610")  # one is drawn; GSM takes 20 times as long
    rooms: RoomOptions = field(default_factory=RoomOptions)

    def __post_init__(self) -> None:
        for name in ("room", "noise", "babble", "clipping", "telephone"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: a share is from 0 to 1")
        for name in ("noise_snr", "noise_clips", "babble_snr", "babble_talkers", "excess"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is {low} to {high}: the smaller one comes first")
        if not 0 <= self.speed < 1 or self.jitter < 0 or self.level < 0:
            raise ValueError(
                f"speed {self.speed}, jitter {self.jitter}, level {self.level}: none is negative, speed < 1"
            )
        if min(self.noise_clips[0], self.babble_talkers[0]) < 1:
            raise ValueError(f"noise_clips {self.noise_clips}, babble_talkers {self.babble_talkers}: at least 1 each")
        if not self.codecs or not set(self.codecs) <= set(CODECS):
            raise ValueError(f"codecs are {self.codecs}; choose from {', '.join(CODECS)}")


class WaveformAugmenter:
    """A function of (samples, generator): equal ones give equal versions.

    `noises` None means no noise. `talkers` are waveforms of training utterances, (S,) int16 or float32, decoded by
    their sequence as late as it likes; none means no babble. The utterance itself may be among its own talkers, which
    with thousands of them hardly ever happens.
    """

    def __init__(
        self,
        options: WaveformOptions,
        noises: NoiseBank | None = None,
        talkers: Sequence[Recording] = (),
        rate: int = 16000,
    ) -> None:
        self.options, self.noises, self.talkers, self.rate = options, noises, talkers, rate
        self.rooms = room_bank(options.rooms, rate) if options.room else []

    def __call__(self, samples: Samples, generator: Generator) -> Samples:
        """Another version of an utterance in [-1, 1], (S',) float32; only speed and jitter change its length."""
        if not len(samples):
            raise ValueError("an utterance without samples has no other versions")
        speed, jitter, room, noise, babble, level, phone = map(np.random.default_rng, generator.integers(2**63, size=7))
        options = self.options
        samples = change_speed(samples, 1 + options.speed * speed.uniform(-1, 1), self.rate)
        samples = shift(samples, round(options.jitter * self.rate * jitter.uniform(-1, 1)))
        if room.random() < options.room:
            samples = reverberate(samples, self.rooms[int(room.integers(len(self.rooms)))])
        spoken = samples
        if self.noises is not None and noise.random() < options.noise:
            samples = samples + self._noise(spoken, self.noises, noise)
        if len(self.talkers) and babble.random() < options.babble:
            samples = samples + self._babble(spoken, babble)
        samples = self._level(samples, level)
        if phone.random() < options.telephone:
            samples = telephone(samples, str(phone.choice(options.codecs)), self.rate)
        return np.clip(samples, -1, 1)

    def _noise(self, spoken: Samples, bank: NoiseBank, random: Generator) -> Samples:
        count = int(random.integers(*self.options.noise_clips, endpoint=True))
        return at_snr(spoken, bank.sum(len(spoken), count, random), random.uniform(*self.options.noise_snr))

    def _babble(self, spoken: Samples, random: Generator) -> Samples:
        """Other talkers at once, none more than 6 dB louder than another."""
        total = np.zeros_like(spoken)
        count = int(random.integers(*self.options.babble_talkers, endpoint=True))
        for index in random.integers(len(self.talkers), size=count):
            talker = stretch(self.talkers[int(index)], len(spoken), random)
            loudness = power(talker)
            if loudness:
                total += talker * np.float32(10 ** (random.uniform(-6, 0) / 20) / np.sqrt(loudness))
        return at_snr(spoken, total, random.uniform(*self.options.babble_snr))

    def _level(self, samples: Samples, random: Generator) -> Samples:
        """Clip some, then set the level; what was not meant to be clipped is not."""
        peak = float(np.abs(samples).max())
        if not peak:
            return samples
        if random.random() < self.options.clipping:
            drive = 10 ** (random.uniform(*self.options.excess) / 20) / peak
            samples, peak = np.clip(samples * np.float32(drive), -1, 1), 1.0
        gain = min(10 ** (self.options.level * random.uniform(-1, 1) / 20), 1 / peak)
        return samples * np.float32(gain)


def change_speed(samples: Samples, factor: float, rate: int = 16000) -> Samples:
    """Faster and higher by `factor`, (S / factor,): played as if it had been recorded at another rate."""
    if factor == 1:
        return samples
    changed: Samples = soxr.resample(samples, rate * factor, rate, quality="MQ")
    return changed


def shift(samples: Samples, late: int) -> Samples:
    """Begin `late` samples later, after silence, or earlier for a negative number: those samples are lost then."""
    if late >= 0:
        return np.pad(samples, (late, 0)) if late else samples
    return samples[min(-late, len(samples) - 1) :]
