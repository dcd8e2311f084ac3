import math

import pytest
import torch
from torch import Tensor

from asr_server.features import FLOOR, FeatureConfig, Features
from tests.cuts import random_cuts


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def test_a_window_every_hop_and_only_complete_ones() -> None:
    features = Features()
    for samples, frames in ((0, 0), (319, 0), (320, 1), (479, 1), (480, 2), (16000, 99)):
        found, lengths = features(noise(samples)[None], torch.tensor([samples]))
        assert found.shape == (1, frames, 81)
        assert lengths.tolist() == [frames]


def test_a_tone_is_in_its_filter() -> None:
    config = FeatureConfig()
    time = torch.arange(1600) / config.sample_rate
    for wanted in (5, 40, 79):
        hertz = (wanted + 1) * config.sample_rate / 2 / (config.filters + 1)
        spectrum = Features(config).spectrum(torch.sin(2 * math.pi * hertz * time))
        assert (spectrum[:, :-1].argmax(-1) == wanted).all()


def test_energy_is_the_sum_of_squares_of_the_window() -> None:
    spectrum = Features().spectrum(torch.full((480,), 0.5))
    assert torch.allclose(spectrum[:, -1].exp(), torch.tensor(320 * 0.25))


def test_silence_is_the_floor() -> None:
    assert torch.allclose(Features().spectrum(torch.zeros(320)), torch.tensor(math.log(FLOOR)))


def test_statistics_normalise() -> None:
    features = Features()
    spectrum = features.spectrum(noise(16000))
    features.set_statistics(spectrum.mean(0), spectrum.std(0))
    found, _ = features(noise(16000)[None], torch.tensor([16000]))
    assert torch.allclose(found[0].mean(0), torch.zeros(81), atol=1e-4)
    assert torch.allclose(found[0].std(0), torch.ones(81), atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_chunks_equal_the_whole(seed: int) -> None:
    features = Features()
    features.set_statistics(torch.full((81,), -3.0), torch.full((81,), 2.0))
    samples = noise(9000 + seed, seed)
    whole, _ = features(samples[None], torch.tensor([len(samples)]))
    state, parts = features.initial_state(), []
    for chunk in random_cuts(samples, seed, longest=1200):
        part, state = features.step(chunk, state)
        assert len(state.tail) < features.config.window + features.config.hop
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), whole[0], rtol=0, atol=2e-6)


def test_padding_changes_nothing_and_is_zero() -> None:
    features = Features()
    samples = noise(4000)
    alone, _ = features(samples[None, :2000], torch.tensor([2000]))
    padded, lengths = features(samples[None], torch.tensor([2000]))
    assert lengths.tolist() == [11]
    torch.testing.assert_close(padded[:, :11], alone, rtol=0, atol=2e-6)
    assert (padded[:, 11:] == 0).all()


def test_impossible_configurations() -> None:
    with pytest.raises(ValueError, match="hop is at least 1"):
        FeatureConfig(window_seconds=0.005)
    with pytest.raises(ValueError, match="filters is 0"):
        FeatureConfig(filters=0)
