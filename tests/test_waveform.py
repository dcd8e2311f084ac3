from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import pytest

from asr_server.pcm import MULAW
from training.mixing import Recording, Samples, power
from training.noise import Clip, NoiseBank
from training.rooms import RoomOptions
from training.telephone import telephone, transmit
from training.waveform import WaveformAugmenter, WaveformOptions, change_speed, shift

RATE = 16000
NONE = WaveformOptions(speed=0, jitter=0, room=0, noise=0, babble=0, clipping=0, level=0, telephone=0)
CHANGES: dict[str, Any] = {
    "speed": 0.1,
    "jitter": 0.005,
    "room": 1,
    "noise": 1,
    "babble": 1,
    "clipping": 1,
    "level": 10,
    "telephone": 1,
}


def tone(frequency: float, seconds: float = 0.5, height: float = 0.3) -> Samples:
    wave: Samples = (height * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)
    return wave


def hiss(seed: int = 0, seconds: float = 0.5, height: float = 0.1) -> Samples:
    noise: Samples = (height * np.random.default_rng(seed).standard_normal(int(seconds * RATE))).astype(np.float32)
    return noise.clip(-1, 1)


NOISES = NoiseBank((Clip.of("a", hiss(1)), Clip.of("b", hiss(2, height=0.01))))
TALKERS = [(hiss(seed, seconds=0.3) * 32767).astype(np.int16) for seed in range(3, 7)]


def augmenter(options: WaveformOptions) -> WaveformAugmenter:
    return WaveformAugmenter(replace(options, rooms=RoomOptions(count=5)), NOISES, TALKERS, RATE)


def pitch(samples: Samples) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax()) * RATE / len(samples)


def test_switched_off_nothing_changes() -> None:
    assert np.array_equal(augmenter(NONE)(hiss(), np.random.default_rng(0)), hiss())


@pytest.mark.parametrize("name", CHANGES)
def test_each_field_is_one_change(name: str) -> None:
    alone = augmenter(replace(NONE, **{name: CHANGES[name]}))
    changed = alone(hiss(), np.random.default_rng(0))
    assert len(changed) != len(hiss()) or not np.allclose(changed, hiss(), atol=1e-3)
    assert changed.dtype == np.float32 and np.abs(changed).max() <= 1


def test_equal_generators_give_equal_versions_and_the_input_stays_as_it_was() -> None:
    samples, kept, every = hiss(), hiss(), augmenter(replace(NONE, **CHANGES))
    first, again, other = (every(samples, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and np.array_equal(samples, kept)
    assert first.shape != other.shape or not np.allclose(first, other)


@pytest.mark.parametrize("name", ["room", "noise", "babble", "telephone"])
def test_one_change_switched_off_leaves_the_others_as_they_were(name: str) -> None:
    rest = replace(NONE, **{**CHANGES, name: 0}, codecs=("ULAW",))
    without, some = augmenter(rest), augmenter(replace(rest, **dict[str, Any]({name: 0.5})))
    samples = hiss(seconds=0.05)
    equal = []
    for seed in range(20):
        first, second = (each(samples, np.random.default_rng(seed)) for each in (without, some))
        assert len(first) == len(second)
        equal.append(np.array_equal(first, second))
    assert 3 <= sum(equal) <= 17  # those that did not draw the change


def test_speed_scales_length_and_pitch() -> None:
    faster = change_speed(tone(1000, seconds=1), 1.1, RATE)
    assert len(faster) == pytest.approx(RATE / 1.1, abs=2)
    assert pitch(faster) == pytest.approx(1100, abs=3)
    lengths = [len(augmenter(replace(NONE, speed=0.1))(hiss(), np.random.default_rng(seed))) for seed in range(50)]
    assert 8000 / 1.1 - 2 <= min(lengths) < 7500 and 8500 < max(lengths) <= 8000 / 0.9 + 2


def test_the_start_moves_by_at_most_the_jitter() -> None:
    samples = np.arange(1, 11, dtype=np.float32)
    assert shift(samples, 2).tolist() == [0, 0, *range(1, 11)]
    assert shift(samples, -3).tolist() == list(range(4, 11))
    assert shift(samples, 0).tolist() == samples.tolist()
    assert shift(samples, -50).tolist() == [10]
    moved = [len(augmenter(replace(NONE, jitter=0.005))(hiss(), np.random.default_rng(n))) - 8000 for n in range(100)]
    assert -80 <= min(moved) < -60 and 60 < max(moved) <= 80


@pytest.mark.parametrize(("name", "ratio"), [("noise", "noise_snr"), ("babble", "babble_snr")])
def test_backgrounds_come_at_the_ratio_asked_for(name: str, ratio: str) -> None:
    loud = replace(NONE, **dict[str, Any]({name: 1, ratio: (6.0, 6.0)}))
    speech = tone(440, seconds=1, height=0.05)
    for seed in range(5):
        background = augmenter(loud)(speech, np.random.default_rng(seed)) - speech
        assert 10 * np.log10(power(speech) / power(background)) == pytest.approx(6, abs=0.01)


class Lazy(Sequence[Recording]):
    """Talkers that are made when asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 1000

    @overload
    def __getitem__(self, index: int) -> Recording: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Recording]: ...
    def __getitem__(self, index: int | slice) -> Recording | Sequence[Recording]:
        assert isinstance(index, int)
        self.asked.append(index)
        return TALKERS[index % 4]


def test_babble_asks_for_three_to_eight_talkers() -> None:
    counts = set()
    for seed in range(60):
        talkers = Lazy()
        WaveformAugmenter(replace(NONE, babble=1), None, talkers, RATE)(hiss(), np.random.default_rng(seed))
        counts.add(len(talkers.asked))
    assert counts == {3, 4, 5, 6, 7, 8}


@pytest.mark.parametrize("name", ["room", "noise", "babble", "clipping", "telephone"])
def test_a_share_is_the_share_of_the_utterances(name: str) -> None:
    some = augmenter(replace(NONE, **dict[str, Any]({name: 0.3}), codecs=("ULAW",)))
    samples = hiss(seconds=0.05)
    changed = [not np.array_equal(some(samples, np.random.default_rng(seed)), samples) for seed in range(400)]
    assert 0.22 < np.mean(changed) < 0.38


def test_without_noises_or_talkers_there_are_none() -> None:
    bare = WaveformAugmenter(replace(NONE, noise=1, babble=1))
    assert np.array_equal(bare(hiss(), np.random.default_rng(0)), hiss())


def test_a_level_never_clips_and_a_clipped_recording_is_clipped_at_any_level() -> None:
    samples = tone(300, height=0.9)
    for seed in range(20):
        louder = augmenter(replace(NONE, level=20))(samples, np.random.default_rng(seed))
        gain = np.abs(louder).max() / 0.9
        assert np.allclose(louder, gain * samples, atol=1e-5) and np.abs(louder).max() <= 1
        clipped = augmenter(replace(NONE, level=20, clipping=1))(samples, np.random.default_rng(seed))
        flat = np.isclose(np.abs(clipped), np.abs(clipped).max(), rtol=1e-6)
        assert flat.mean() > 0.2  # a sine 1 dB over full scale is flat for 0.3 of its time, untouched for 0.02


def test_a_line_keeps_its_band_and_the_time() -> None:
    for frequency, kept in [(100, False), (1000, True), (3000, True), (3700, False), (6000, False)]:
        heard = telephone(tone(frequency), "ULAW", RATE)
        loss = 10 * np.log10(power(tone(frequency)) / max(power(heard), 1e-12))
        assert (abs(loss) < 0.5) if kept else (loss > 20)
    click = np.zeros(RATE // 2, np.float32)
    click[4000] = 0.9
    for codec in ("ULAW", "ALAW"):
        assert abs(int(np.abs(telephone(click, codec, RATE)).argmax()) - 4000) <= 1
    speech = tone(500) * np.hanning(8000).astype(np.float32)
    heard = telephone(speech, "GSM610", RATE)
    assert np.correlate(speech, heard, "same").argmax() == pytest.approx(4000, abs=8)
    assert len(heard) == len(speech) and power(heard) == pytest.approx(power(speech), rel=0.2)


def test_the_codec_is_the_one_the_server_decodes() -> None:
    levels = MULAW.decode(bytes(range(256)))  # all that G.711 can say
    samples = hiss(seconds=0.1).clip(-0.9, 0.9)
    sent = transmit(samples, "ULAW")
    assert np.isin(np.rint(sent * 32768), np.rint(levels * 32768)).all()
    assert np.abs(sent - samples).max() < 0.035  # half of the widest step, 1024 / 32768
    assert not np.array_equal(transmit(samples, "ALAW"), sent)


def test_silence_and_very_short_sounds_pass_through_everything() -> None:
    every = augmenter(replace(NONE, **CHANGES))
    for samples in (np.zeros(1000, np.float32), tone(300, seconds=0.001), tone(300, seconds=0.02)):
        for seed in range(5):
            changed = every(samples, np.random.default_rng(seed))
            assert len(changed) and np.isfinite(changed).all() and changed.dtype == np.float32
    with pytest.raises(ValueError, match="without samples"):
        every(np.zeros(0, np.float32), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"noise": 1.5}, "noise is 1.5: a share is from 0 to 1"),
        ({"telephone": -0.1}, "telephone is -0.1"),
        ({"noise_snr": (25.0, 0.0)}, "noise_snr is 25.0 to 0.0: the smaller one comes first"),
        ({"speed": 1.0}, "speed 1.0"),
        ({"level": -1.0}, "level -1.0"),
        ({"noise_clips": (0, 3)}, r"noise_clips \(0, 3\)"),
        ({"codecs": ("G729",)}, "choose from ULAW, ALAW, GSM610"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        WaveformOptions(**wrong)
    with pytest.raises(ValueError, match="'G729' is no telephone codec"):
        transmit(hiss(), "G729")


def test_the_defaults_are_on() -> None:
    assert all(getattr(WaveformOptions(), name) > 0 for name in CHANGES)
