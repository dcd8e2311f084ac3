"""Impulse responses of synthetic rooms, and the convolution that puts an utterance into one.

The early part is the image method for a shoebox (Allen and Berkley 1979): every reflection is the sound of a mirrored
source. Their number grows with the cube of the time, so where the nearest images end, the response goes on as noise
that decays exponentially (Lehmann and Johansson 2010 join the two in the same way), with the energy that the images
would have had: a shell of radius d and thickness c / rate holds 4 pi d^2 c / (rate V) of them, each 1 / d weak.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.mixing import Samples, power

SOUND = 343.0  # metres a second
IMAGES = 3  # mirror rooms on each side of the real one along each axis
KEPT = 0.75  # of the reverberation time, 45 dB; what follows is under any recording's own noise


@dataclass(frozen=True)
class RoomOptions:
    """Where a room is drawn from, uniformly; metres and seconds."""

    smallest: tuple[float, float, float] = (3.0, 3.0, 2.5)  # length, width, height
    largest: tuple[float, float, float] = (10.0, 8.0, 4.0)
    rt60: tuple[float, float] = (0.1, 0.6)  # the time in which a sound dies away by 60 dB
    distance: tuple[float, float] = (0.3, 3.0)  # from the mouth to the microphone
    count: int = 200  # responses in a bank
    seed: int = 0


@dataclass(frozen=True)
class Room:
    """A shoebox with a talker and a microphone in it; metres, (3,) each."""

    size: NDArray[np.float64]
    source: NDArray[np.float64]
    microphone: NDArray[np.float64]
    rt60: float

    @property
    def volume(self) -> float:
        return float(self.size.prod())

    @property
    def reflection(self) -> float:
        """The walls' pressure reflection coefficient, from the reverberation time by Eyring's formula (1930)."""
        surface = 2 * self.volume * float((1 / self.size).sum())
        return float(np.exp(-0.5 * 0.161 * self.volume / (surface * self.rt60)))


def draw(options: RoomOptions, random: Generator) -> Room:
    """A random room; the two places keep 0.3 m from the walls."""
    size = random.uniform(options.smallest, options.largest)
    while True:
        source, microphone = random.uniform(0.3, size - 0.3, (2, 3))
        if options.distance[0] <= np.linalg.norm(source - microphone) <= options.distance[1]:
            return Room(size, source, microphone, random.uniform(*options.rt60))


def response(room: Room, random: Generator, rate: int = 16000) -> Samples:
    """What the microphone hears of a click, (taps,): the direct sound is tap 0 and has the height 1."""
    direct = float(np.linalg.norm(room.source - room.microphone))
    distances, heights = images(room)
    complete = 2 * IMAGES * room.size.min()  # metres; farther away, images are missing
    near = distances < complete
    taps = max(1, round(KEPT * room.rt60 * rate))
    places = np.rint((distances[near] - direct) * rate / SOUND).astype(np.int64)
    clicks = np.bincount(places, heights[near] * direct, minlength=taps)[:taps].astype(np.float64, copy=False)
    early = _high_pass(clicks, rate)
    return (early + _tail(room, taps, direct, complete, random, rate)).astype(np.float32)


def images(room: Room) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances of the images to the microphone in metres and the heights of their clicks, (images,) each."""
    rooms, mirrored = np.meshgrid(np.arange(-IMAGES, IMAGES + 1), (0, 1))
    rooms, mirrored = rooms.reshape(-1, 1), mirrored.reshape(-1, 1)
    offsets = (1 - 2 * mirrored) * room.source + 2 * rooms * room.size - room.microphone  # (positions, 3)
    walls = np.abs(2 * rooms - mirrored).ravel()  # that the sound has met along one axis
    x, y, z = (offsets**2).T
    distances = np.sqrt(x[:, None, None] + y[:, None] + z).ravel()
    met = (walls[:, None, None] + walls[:, None] + walls).ravel()
    return distances, room.reflection**met / distances


def _high_pass(clicks: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """Without what is under about 100 Hz, (taps,): clicks of one sign add up to a pressure that no room has.

    Allen and Berkley filter for the same reason. One pole, which keeps what comes first at the front.
    """
    pole = np.exp(-2 * np.pi * 100 / rate)
    average = (1 - pole) * pole ** np.arange(min(len(clicks), rate // 50))
    passed: NDArray[np.float64] = clicks - np.convolve(clicks, average)[: len(clicks)]
    passed /= passed[0]
    return passed


def _tail(room: Room, taps: int, direct: float, complete: float, random: Generator, rate: int) -> NDArray[np.float64]:
    """The reverberation beyond `complete` metres, relative to the direct sound, (taps,)."""
    distances = direct + np.arange(taps) * SOUND / rate
    energies = 4 * np.pi * SOUND / rate / room.volume * 10 ** (-6 * distances / (SOUND * room.rt60))
    tail: NDArray[np.float64] = random.standard_normal(taps) * np.sqrt(energies) * direct * (distances >= complete)
    return tail


def room_bank(options: RoomOptions, rate: int = 16000) -> list[Samples]:
    """`options.count` responses, (taps,) each; the same for the same options."""
    random = np.random.default_rng(options.seed)
    return [response(draw(options, random), random, rate) for _ in range(options.count)]


def reverberate(samples: Samples, impulses: Samples) -> Samples:
    """The utterance in a room, (S,): as long, as loud, and with each sound where it was; the last echo is cut off."""
    wet = convolve(samples, impulses)
    loudness = power(wet)
    return wet * np.float32(np.sqrt(power(samples) / loudness)) if loudness else wet


def convolve(samples: Samples, taps: Samples) -> Samples:
    """The first S samples of the convolution, (S,), by overlap-add: blocks of twice the filter stay in the cache."""
    block = max(1024, 1 << (2 * len(taps)).bit_length())
    step = block - len(taps) + 1
    blocks = np.zeros((-(-len(samples) // step), step), np.float32)
    blocks.ravel()[: len(samples)] = samples
    parts = np.fft.irfft(np.fft.rfft(blocks, block) * np.fft.rfft(taps, block), block).astype(np.float32, copy=False)
    parts[1:, : len(taps) - 1] += parts[:-1, step:]
    return np.ascontiguousarray(parts[:, :step]).ravel()[: len(samples)]
