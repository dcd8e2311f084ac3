import numpy as np
import pytest

from training.mixing import Samples, power
from training.rooms import SOUND, Room, RoomOptions, convolve, draw, images, response, reverberate, room_bank

RATE = 16000
CUBE = Room(np.array([4.0, 4, 4]), np.array([1.0, 2, 2]), np.array([3.0, 2, 2]), 0.3)


def speech(seconds: float = 1.0) -> Samples:
    noise: Samples = (0.1 * np.random.default_rng(0).standard_normal(int(seconds * RATE))).astype(np.float32)
    return noise


def decay_time(impulses: Samples) -> float:
    """Seconds for 60 dB, from the slope between -5 and -25 dB of the backward integral (Schroeder 1965)."""
    left = 10 * np.log10(np.cumsum(impulses[::-1].astype(np.float64) ** 2)[::-1])
    left -= left[0]
    early, late = int((left > -5).sum()), int((left > -25).sum())
    return 3 * (late - early) / RATE


@pytest.mark.parametrize("size", [1, 500, 1024, 3000, 16001])
@pytest.mark.parametrize("taps", [1, 2, 300, 2000])
def test_overlap_add_is_the_convolution(size: int, taps: int) -> None:
    samples, impulses = speech(2)[:size], speech()[:taps]
    assert np.allclose(convolve(samples, impulses), np.convolve(samples, impulses)[:size], atol=1e-5)
    assert convolve(samples, impulses).dtype == np.float32


def test_the_first_images_are_those_of_the_six_walls() -> None:
    distances, heights = images(CUBE)
    order = np.argsort(distances)
    # Along x the mirrored sources stand at -1 and 7, 4 m from the microphone; across, 2 m beside a path 4 m aside.
    near = np.hypot(2.0, 4.0)
    assert distances[order][:7] == pytest.approx([2, 4, 4, near, near, near, near])
    beta = CUBE.reflection
    assert heights[order][:7] == pytest.approx([1 / 2, beta / 4, beta / 4, *[beta / near] * 4])


def test_walls_reflect_as_eyring_says() -> None:
    # Volume 64, surface 96: T = 0.161 V / (-S ln(1 - a)), and the energy 1 - a is the square of the coefficient.
    assert -0.161 * 64 / (96 * np.log(CUBE.reflection**2)) == pytest.approx(0.3)


def test_the_direct_sound_comes_first_and_the_echoes_where_the_walls_are() -> None:
    impulses = response(CUBE, np.random.default_rng(0), RATE)
    assert impulses[0] == pytest.approx(1)
    first = int(np.flatnonzero(impulses[1:] > 0)[0]) + 1
    assert first == round(2 / SOUND * RATE)  # 4 m instead of 2
    assert impulses[first] == pytest.approx(2 * CUBE.reflection * 2 / 4, rel=0.01)  # two walls are as far


def test_clicks_of_one_sign_leave_no_pressure_behind() -> None:
    spectrum = np.abs(np.fft.rfft(response(CUBE, np.random.default_rng(0), RATE), RATE))  # 1 Hz a bin
    assert spectrum[:10].mean() < 0.3 * spectrum[200:4000].mean()


@pytest.mark.parametrize("rt60", [0.2, 0.4, 0.6])
def test_the_sound_dies_away_in_the_time_asked_for(rt60: float) -> None:
    room = Room(np.array([6.0, 5, 3]), np.array([1.5, 2, 1.5]), np.array([4.0, 3.5, 1.2]), rt60)
    found = [decay_time(response(room, np.random.default_rng(seed), RATE)) for seed in range(5)]
    assert np.mean(found) == pytest.approx(rt60, rel=0.25)


def test_the_tail_goes_on_where_the_images_end() -> None:
    # A louder or weaker tail would be heard as a second sound or as a cut: 10 ms before and after the seam.
    room = Room(np.array([5.0, 4.5, 4]), np.array([1.5, 2, 1.5]), np.array([3.0, 3.5, 1.2]), 0.5)
    direct = float(np.linalg.norm(room.source - room.microphone))
    seam = round((6 * 4 - direct) / SOUND * RATE)
    ratios = []
    for seed in range(10):
        impulses = response(room, np.random.default_rng(seed), RATE)
        ratios.append(power(impulses[seam : seam + 160]) / power(impulses[seam - 160 : seam]))
    assert abs(10 * np.log10(np.mean(ratios))) < 2.5


def test_rooms_are_within_their_ranges() -> None:
    options, random = RoomOptions(), np.random.default_rng(0)
    for room in [draw(options, random) for _ in range(50)]:
        assert (options.smallest <= room.size).all() and (room.size <= options.largest).all()
        assert options.rt60[0] <= room.rt60 <= options.rt60[1]
        assert 0.3 <= np.linalg.norm(room.source - room.microphone) <= 3
        for place in (room.source, room.microphone):
            assert (place > 0.29).all() and (place < room.size - 0.29).all()


def test_a_bank_is_a_function_of_its_options() -> None:
    first, again = room_bank(RoomOptions(count=3)), room_bank(RoomOptions(count=3))
    assert len(first) == 3 and all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert not np.array_equal(first[0], room_bank(RoomOptions(count=1, seed=1))[0])
    assert all(impulses.dtype == np.float32 for impulses in first)


def test_an_utterance_in_a_room_keeps_length_level_and_place() -> None:
    samples = speech()
    samples[:4000] = 0
    wet = reverberate(samples, response(CUBE, np.random.default_rng(0), RATE))
    assert len(wet) == len(samples) and wet.dtype == np.float32
    assert power(wet) == pytest.approx(power(samples), rel=1e-3)
    assert np.abs(wet[:4000]).max() < 1e-5 < np.abs(wet[4000])
    assert not np.allclose(wet, samples, atol=0.01)


def test_silence_stays_silent_in_a_room() -> None:
    assert not reverberate(np.zeros(100, np.float32), np.ones(10, np.float32)).any()
