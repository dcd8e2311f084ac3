"""Averages of outputs by hand, and ensembles and jitter on the bundle that hears tones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asr_server import bundle
from asr_server.alphabet import Alphabet
from asr_server.features import FeatureConfig, Features
from asr_server.model import DeepSpeech
from tests.speech_fixtures import save_toy_bundle, speak
from training.recognition import Recognition, Setting, averaged, jittered


@pytest.fixture(scope="module")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_bundle(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def other_bundle(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It is less sure of everything."""
    toy = bundle.load(toy_bundle)
    model = DeepSpeech(toy.model.config).eval()
    model.load_state_dict(toy.model.state_dict())
    with torch.no_grad():
        model.output.weight.mul_(0.5)
    return saved(replace(toy, model=model), tmp_path_factory.mktemp("others") / "doubtful")


def saved(changed: bundle.SpeechBundle, folder: Path) -> Path:
    bundle.save(replace(changed, name=folder.name, folder=folder))
    return folder


def test_shifts_keep_the_length() -> None:
    samples = np.array([1, 2, 3], np.float32)
    assert [copy.tolist() for copy in jittered(samples, 1)] == [[1, 2, 3], [2, 3, 0], [0, 1, 2]]
    assert [copy.tolist() for copy in jittered(samples, 5)] == [[1, 2, 3], [0, 0, 0], [0, 0, 0]]


def test_probabilities_are_averaged_not_their_logarithms() -> None:
    outputs = [np.log(np.array([[0.9, 0.1]], np.float32)), np.log(np.array([[0.3, 0.7]], np.float32))]
    np.testing.assert_allclose(np.exp(averaged(outputs)), [[0.6, 0.4]], rtol=1e-6)
    assert averaged(outputs).dtype == np.float32
    assert averaged(outputs[:1]) is outputs[0]


@pytest.mark.parametrize("mode", ["whole", "chunked"])
def test_an_ensemble_is_the_mean_of_its_members(toy_bundle: Path, other_bundle: Path, mode: str) -> None:
    samples = speak("one")
    sure, doubtful = (Setting(each, mode).load().log_probs(samples) for each in (toy_bundle, other_bundle))
    assert np.abs(sure - doubtful).max() > 1
    both = Setting(toy_bundle, mode, others=(other_bundle,)).load()
    np.testing.assert_allclose(np.exp(both.log_probs(samples)), (np.exp(sure) + np.exp(doubtful)) / 2, atol=1e-6)
    assert both.transcribe(samples) == "one"
    again = Setting(toy_bundle, mode, others=(toy_bundle, toy_bundle)).load()
    np.testing.assert_allclose(again.log_probs(samples), sure, atol=1e-4)


def test_jitter_is_the_mean_over_three_recordings(toy_bundle: Path) -> None:
    plain, samples = Setting(toy_bundle).load(), speak("go")
    shift = 80  # 5 ms
    copies = [samples, np.append(samples[shift:], np.zeros(shift, np.float32))]
    copies.append(np.append(np.zeros(shift, np.float32), samples[:-shift]))
    expected = np.mean([np.exp(plain.log_probs(copy)) for copy in copies], axis=0)
    found = Setting(toy_bundle, jitter=True).load().log_probs(samples)
    np.testing.assert_allclose(found, np.log(expected), atol=1e-4)
    assert np.abs(found - plain.log_probs(samples)).max() > 1e-2


def test_what_does_not_fit_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    toy = bundle.load(toy_bundle)
    turned = saved(
        replace(toy, alphabet=Alphabet((toy.alphabet.labels[0], *toy.alphabet.labels[:0:-1]))), tmp_path / "turned"
    )
    with pytest.raises(ValueError, match="'tones' and 'turned' have other alphabets"):
        Setting(toy_bundle, others=(turned,)).load()
    slower = saved(replace(toy, features=Features(FeatureConfig(hop_seconds=0.0125))), tmp_path / "slower")
    with pytest.raises(ValueError, match=r"320/160 samples of 16000 Hz by 2 and 320/200 .*the same sample rate"):
        Setting(toy_bundle, others=(slower,)).load()
    for mode in ("streaming", "endpointed"):
        with pytest.raises(ValueError, match=f"mode is '{mode}': --jitter and several bundles"):
            Setting(toy_bundle, mode, others=(turned,))


def test_settings_share_a_network_when_only_the_search_differs(toy_bundle: Path) -> None:
    plain = Setting(toy_bundle)
    assert replace(plain, greedy=True, decoding=(("alpha", 2.0),)).network == plain.network
    for other in (replace(plain, jitter=True), replace(plain, mode="chunked"), replace(plain, precision="bf16")):
        assert other.network != plain.network


def test_the_precision_is_the_network_s(toy_bundle: Path) -> None:
    fast: Recognition = Setting(toy_bundle, "streaming", precision="auto").load()
    assert fast.transcribe(speak("left")) == "left"
    with pytest.raises(ValueError, match="precision 'fp8' is not one of this processor's"):
        Setting(toy_bundle, precision="fp8").load()
