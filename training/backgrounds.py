"""The five backgrounds of the paper's noisy test (Deep Speech, section 5.2), put together from recordings of noise.

    kind         what is heard                                   recordings whose ids contain
    radio        a radio or television                           tuning-radio
    dishes       dishes washed in a sink                         doing_the_dishes
    cafeteria    a crowded cafeteria: talk and crockery, 3 dB    coffee-shop, places_cafe
                 below them a hall full of people                places_supermarket, urban_crowd
    restaurant   a restaurant                                    places_restaurant
    car          a car in the rain: rain on its roof, as loud    rain-on-car-roof
                 a road, 6 dB below both the wipers              urban_road, urban_highway, urban_traffic
                                                                 windshield-wipers

Only held-out recordings are used (training.noise), which training never hears. Of the recordings of a layer one is
drawn. Everything that decides a sample is whole numbers or the standard library's `random()`, whose sequence Python
guarantees, so that the same seed gives the same samples on any machine.

Dimension letter: S samples.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int64]  # (S,), a 16-bit sample each
LEVEL = 2048.0  # root mean square of a layer at 0 dB, so that rounding a mix to whole numbers does not matter


@dataclass(frozen=True)
class Layer:
    """A recording whose id contains one of `names`; decibels: its level beside the kind's other layers."""

    names: tuple[str, ...]
    decibels: float = 0.0

    def takes(self, clip: str) -> bool:
        return any(name in clip for name in self.names)


KINDS: Mapping[str, tuple[Layer, ...]] = {
    "radio": (Layer(("tuning-radio",)),),
    "dishes": (Layer(("doing_the_dishes",)),),
    "cafeteria": (Layer(("coffee-shop", "places_cafe")), Layer(("places_supermarket", "urban_crowd"), -3.0)),
    "restaurant": (Layer(("places_restaurant",)),),
    "car": (
        Layer(("rain-on-car-roof",)),
        Layer(("urban_road", "urban_highway", "urban_traffic")),
        Layer(("windshield-wipers",), -6.0),
    ),
}


@dataclass(frozen=True)
class Background:
    """`clips`: the ids of what was put together."""

    kind: str
    clips: tuple[str, ...]
    samples: Whole


def candidates(clips: Sequence[str], held_out: Callable[[str], bool]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """For each kind and each of its layers the ids that may be used, sorted; ValueError where there is none."""
    allowed = sorted(clip for clip in clips if held_out(clip))
    found = {
        kind: tuple(tuple(clip for clip in allowed if layer.takes(clip)) for layer in layers)
        for kind, layers in KINDS.items()
    }
    for kind, layers in found.items():
        for layer, ids in zip(KINDS[kind], layers, strict=True):
            if not ids:
                raise ValueError(
                    f"{kind}: none of {len(allowed)} held-out recordings of {len(clips)} has one of "
                    f"{list(layer.names)} in its id; add the manifest that has it"
                )
    return found


def draw(
    kind: str, layers: Sequence[Sequence[str]], recordings: Mapping[str, Whole], size: int, chance: random.Random
) -> Background:
    """`size` samples of a kind: of each layer one of its recordings, from a random place, looped where it is short."""
    chosen, total = [], np.zeros(size)
    for layer, clips in zip(KINDS[kind], layers, strict=True):
        clip = clips[below(len(clips), chance)]
        cut = _cut(recordings[clip], size, chance)
        total += cut * (LEVEL * 10 ** (layer.decibels / 20) / max(1.0, math.sqrt(power(cut))))
        chosen.append(clip)
    return Background(kind, tuple(chosen), np.rint(total).astype(np.int64))


def _cut(recording: Whole, size: int, chance: random.Random) -> Whole:
    start = below(max(1, len(recording) - size + 1) if len(recording) >= size else len(recording), chance)
    return recording.take(np.arange(start, start + size), mode="wrap")


def power(samples: Whole) -> float:
    """Mean square. The sum is of whole numbers, so that no machine adds in an order of its own."""
    return int(np.square(samples).sum()) / len(samples)


def below(count: int, chance: random.Random) -> int:
    """A whole number from 0, below `count`."""
    return int(chance.random() * count)


def mixed(speech: Whole, background: Whole, snr: float) -> tuple[Whole, float]:
    """Speech over a background at `snr` decibels by their mean powers, silence between words included, and the gain in
    decibels by which the sum was turned down so that it fits into 16 bits."""
    spoken, noise = power(speech), power(background)
    if not spoken or not noise:
        raise ValueError(f"powers are {spoken:g} of the speech and {noise:g} of the background: silence has no SNR")
    total = speech + background * (math.sqrt(spoken / noise) * 10 ** (-snr / 20))
    gain = min(1.0, 32767 / float(np.abs(total).max()))
    return np.rint(total * gain).astype(np.int64), 20 * math.log10(gain)
