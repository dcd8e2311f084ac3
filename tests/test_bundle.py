import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asr_server import bundle
from asr_server.alphabet import Alphabet
from asr_server.beam_search import DecodingOptions
from asr_server.bundle import BundleError, SpeechBundle
from asr_server.calibration import Calibration, ConfidenceMap
from asr_server.features import FeatureConfig, Features
from asr_server.model import DeepSpeech, DeepSpeechConfig
from tests import toy_arpa


def small(folder: Path) -> SpeechBundle:
    torch.manual_seed(0)
    features = Features(FeatureConfig(filters=8))
    features.set_statistics(torch.arange(9.0), torch.arange(1.0, 10.0))
    model = DeepSpeech(DeepSpeechConfig(features=9, width=4, context=1, chunk=6, right=2))
    options = DecodingOptions(beam_width=7, alpha=0.25)
    return SpeechBundle("small", "3", folder, features, model, Alphabet(), None, options, "en-GB", "# Small\n")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    bundle.save(small(tmp_path / "small"))
    return tmp_path / "small"


def change(folder: Path, **values: Any) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_everything_survives(saved: Path) -> None:
    made, loaded = small(saved), bundle.load(saved)
    for name in ("name", "version", "folder", "alphabet", "decoding", "language_code", "card", "language_model"):
        assert getattr(loaded, name) == getattr(made, name)
    assert (loaded.model.config, loaded.features.config) == (made.model.config, made.features.config)
    samples, lengths = torch.randn(1, 4000), torch.tensor([4000])
    made.model.eval()
    expected = made.model(*made.features(samples, lengths))[0]
    assert torch.equal(loaded.model(*loaded.features(samples, lengths))[0], expected)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_language_model_is_copied_in(tmp_path: Path) -> None:
    arpa = toy_arpa.write(tmp_path)
    made = replace(small(tmp_path / "small"), name="with-words")
    bundle.save(made, arpa)
    arpa.unlink()
    loaded = bundle.load(tmp_path / "small")
    assert loaded.language_model is not None
    assert (tmp_path / "small" / "lm.arpa").is_file()


def test_find_lists_speech_bundles_only(tmp_path: Path) -> None:
    for name in ("b", "a"):
        bundle.save(small(tmp_path / name))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "bundle.json").write_text('{"kind": "vision"}')
    (tmp_path / "other").mkdir()
    assert bundle.find(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(BundleError, match="does not exist"):
        bundle.find(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"kind": "vision"}, "kind is 'vision'"),
        ({"colour": 1}, r"keys \['colour'\] are unknown"),
        ({"model": {"width": 4, "depth": 5}}, r"model has unknown keys \['depth'\]"),
        ({"model": {"width": "4"}}, "width is '4', of the wrong type"),
        ({"model": {"width": 4.5}}, "width is 4.5, of the wrong type"),
        ({"model": {"width": -1}}, "width is -1: at least 1"),
        ({"model": []}, r"model is \[\], not an object"),
        ({"model": {"width": 4}}, "takes 81 features and gives 29 symbols, but there are 9 and 29"),
        ({"alphabet": ["a"]}, "begins with the blank"),
        ({"alphabet": "abc"}, "not a list of strings"),
        ({"decoding": {"beam_width": 0}}, "beam_width is 0"),
        ({"name": ""}, "name is ''"),
        ({"language_model": "../lm.binary"}, "not a file name in this folder"),
        ({"language_model": "/etc/passwd"}, "not a file name in this folder"),
        ({"language_model": "absent.binary"}, "does not exist"),
        ({"calibration": [1, 1, 0]}, r"calibration is \[1, 1, 0\], not an object"),
        ({"calibration": None}, "calibration is None, not an object"),
        (
            {"calibration": {"letters": {}}},
            r"calibration has unknown keys \['letters'\]. Select from \['words', 'utter",
        ),
        ({"calibration": {"words": 0.5}}, "calibration: words is 0.5, not an object"),
        ({"calibration": {"words": {"d": 1.0}}}, r"words has unknown keys \['d'\]"),
        ({"calibration": {"words": {"a": "1"}}}, "words: a is '1', of the wrong type"),
        ({"calibration": {"utterances": {"c": True}}}, "utterances: c is True, of the wrong type"),
        ({"calibration": {"utterances": {"b": -0.1}}}, "b of a confidence map is -0.1: from 0 to 100"),
        ({"calibration": {"words": {"a": float("nan")}}}, "a of a confidence map is nan"),
        ({"calibration": {"words": {"c": float("inf")}}}, "c of a confidence map is inf: from -100 to 100"),
        ({"calibration": {"words": {"a": 10**400}}}, "a of a confidence map is 1000"),
    ],
)
def test_wrong_descriptions_are_refused(saved: Path, values: dict[str, Any], text: str) -> None:
    change(saved, **values)
    with pytest.raises(BundleError, match=text):
        bundle.load(saved)


def test_a_calibration_is_kept(saved: Path) -> None:
    """And where confidences were not measured, none is written, so that older versions read the bundle too."""
    assert "calibration" not in json.loads((saved / "bundle.json").read_text())
    assert bundle.load(saved).calibration == Calibration()
    fitted = Calibration(ConfidenceMap(0.4, 0.4), ConfidenceMap(2.0, 0.25, -0.5))
    bundle.save(replace(small(saved), calibration=fitted))
    assert bundle.load(saved).calibration == fitted


def test_what_a_calibration_leaves_out_is_the_identity(saved: Path) -> None:
    change(saved, calibration={"words": {"a": 2, "b": 0.5}})
    assert bundle.load(saved).calibration == Calibration(ConfidenceMap(2.0, 0.5, 0.0), ConfidenceMap())


def test_a_link_does_not_lead_out(saved: Path, tmp_path: Path) -> None:
    (saved / "lm.arpa").symlink_to(toy_arpa.write(tmp_path))
    change(saved, language_model="lm.arpa")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        bundle.load(saved)


def test_broken_files_are_named(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BundleError, match=r"model.safetensors: cannot be read"):
        bundle.load(saved)
    (saved / "bundle.json").write_text("{")
    with pytest.raises(BundleError, match=r"bundle.json: not JSON"):
        bundle.load(saved)
    (saved / "bundle.json").unlink()
    with pytest.raises(BundleError, match=r"bundle.json: cannot be read"):
        bundle.load(saved)


def test_weights_of_another_shape_are_named(saved: Path) -> None:
    change(saved, model={"features": 9, "width": 5, "context": 1})
    with pytest.raises(BundleError, match="does not fit the model"):
        bundle.load(saved)
