import json
import math
import os
import pickle
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

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


FILES = ("bundle.json", "model.safetensors", "README.md", "lm.arpa", "lm.words")


@pytest.fixture
def spoken(saved: Path, tmp_path: Path) -> Path:
    """A bundle with every file that there can be."""
    bundle.save(small(saved), toy_arpa.write(tmp_path))
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    return saved


@pytest.mark.parametrize("name", FILES)
def test_no_file_leads_out(spoken: Path, tmp_path: Path, name: str) -> None:
    (spoken / name).rename(tmp_path / "outside")
    (spoken / name).symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match=rf"{name}: leads out of the bundle to .*outside"):
        bundle.load(spoken)


def test_links_inside_are_files_of_the_bundle(spoken: Path) -> None:
    """As mounted volumes lay their files out."""
    (spoken / "..data").mkdir()
    for name in FILES:
        (spoken / name).rename(spoken / "..data" / name)
        (spoken / name).symlink_to(Path("..data") / name)
    loaded = bundle.load(spoken)
    assert loaded.language_model is not None and loaded.language_model.lexicon is not None


@pytest.mark.parametrize("name", FILES[:3])
def test_what_is_no_file_is_not_waited_for(spoken: Path, name: str) -> None:
    (spoken / name).unlink()
    os.mkfifo(spoken / name)
    with pytest.raises(BundleError, match=f"{name}: not a regular file"):
        bundle.load(spoken)


@pytest.mark.parametrize("name", FILES[:3])
def test_links_to_themselves_are_refused(spoken: Path, name: str) -> None:
    (spoken / name).unlink()
    (spoken / name).symlink_to(name)
    if name == "README.md":
        assert bundle.load(spoken).card == ""
    else:
        with pytest.raises(BundleError, match=name):
            bundle.load(spoken)


class Bomb:
    """What runs a function when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_not_read(saved: Path, protocol: int) -> None:
    (saved / "model.safetensors").write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(BundleError, match="cannot be read as safetensors"):
        bundle.load(saved)


def test_a_checkpoint_is_not_read(saved: Path) -> None:
    torch.save({"bomb": Bomb()}, saved / "model.safetensors")
    with pytest.raises(BundleError, match="cannot be read as safetensors"):
        bundle.load(saved)


def test_every_cut_is_refused(saved: Path) -> None:
    whole = (saved / "model.safetensors").read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        (saved / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(BundleError, match="cannot be read as safetensors"):
            bundle.load(saved)
    description = (saved / "bundle.json").read_bytes()
    for size in range(len(description) - 1):  # the last byte ends a line
        (saved / "bundle.json").write_bytes(description[:size])
        with pytest.raises(BundleError, match=r"bundle\.json: not JSON"):
            bundle.load(saved)


def rewrite(folder: Path, **changed: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **{name.replace("__", "."): tensor for name, tensor in changed.items()}}, path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["model.output.weight", "model.backward_weight", "features.mean", "features.std"])
def test_weights_are_finite(saved: Path, name: str, value: float) -> None:
    tensor = load_file(saved / "model.safetensors")[name].clone()
    tensor.view(-1)[-1] = value
    rewrite(saved, **{name: tensor})
    with pytest.raises(BundleError, match=rf"{name} holds a number that is not finite"):
        bundle.load(saved)


def test_weights_are_floats_of_any_width(saved: Path) -> None:
    rewrite(saved, model__output__bias=torch.zeros(29, dtype=torch.int32))
    with pytest.raises(BundleError, match=r"model\.output\.bias is of type torch\.int32"):
        bundle.load(saved)
    bias = torch.linspace(-1, 1, 29).half()
    rewrite(saved, model__output__bias=bias)
    assert torch.equal(bundle.load(saved).model.output.bias, bias.float())


def test_matrices_can_be_written_as_float16(tmp_path: Path) -> None:
    made = small(tmp_path / "half")
    bundle.save(made, half=True)
    written = load_file(tmp_path / "half" / "model.safetensors")
    assert {(tensor.dtype, tensor.ndim > 1) for tensor in written.values()} == {
        (torch.float16, True),
        (torch.float32, False),
    }
    found = bundle.load(tmp_path / "half").model.state_dict()
    for name, tensor in made.model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=2**-11, atol=2**-24)


def test_features_are_not_divided_by_nothing(saved: Path) -> None:
    rewrite(saved, features__std=torch.zeros(9))
    with pytest.raises(BundleError, match=r"features\.std is not above 0"):
        bundle.load(saved)


def test_names_are_exactly_the_models(saved: Path) -> None:
    rewrite(saved, model__code=torch.zeros(1))
    with pytest.raises(BundleError, match=r"does not fit the model of bundle\.json: model\.code"):
        bundle.load(saved)


FEATURES, MODEL = {"filters": 8}, {"features": 9, "width": 4, "context": 1}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"model": {**MODEL, "width": 10**9}}, "does not fit the model of"),
        ({"model": {**MODEL, "width": 10**12}}, "model is too large"),
        ({"model": {**MODEL, "width": 10**30}}, "model is too large"),
        ({"model": {**MODEL, "context": 10**9}}, "does not fit the model of"),
        ({"model": {**MODEL, "chunk": 10**9}}, "chunk and right context is 1000000000: at most"),
        ({"model": {**MODEL, "chunk": 6, "right": 10**9}}, "chunk and right context is 1000000006: at most"),
        ({"model": {**MODEL, "clip": float("inf")}}, "clip is inf"),
        ({"model": {**MODEL, "clip": float("nan")}}, "clip is nan"),
        ({"features": {**FEATURES, "sample_rate": 10**9}}, "sample_rate is 1000000000: at most"),
        ({"features": {**FEATURES, "sample_rate": 10**400}}, "features: "),
        ({"features": {**FEATURES, "window_seconds": 1e6}}, "window in samples is 16000000000: at most"),
        ({"features": {**FEATURES, "window_seconds": float("inf")}}, "features: cannot convert float infinity"),
        ({"features": {"filters": 10**9}}, "filters is 1000000000"),
        ({"features": {"window_seconds": 1.0, "filters": 4000}}, "filters is 4000: at most"),
        ({"decoding": {"beam_width": 10**9}}, "beam_width is 1000000000: at most"),
    ],
)
def test_what_is_declared_reserves_no_memory(saved: Path, values: dict[str, Any], text: str) -> None:
    change(saved, **values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    with pytest.raises(BundleError, match=text):
        bundle.load(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_long_file_of_weights_is_not_copied(saved: Path) -> None:
    """A file with a hole in it takes no disk, so only its length says what it would take in memory."""
    os.truncate(saved / "model.safetensors", 1 << 40)
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        bundle.load(saved)


def test_texts_are_bounded(saved: Path) -> None:
    (saved / "README.md").write_bytes(b"\xff")
    with pytest.raises(BundleError, match=r"README\.md: not UTF-8"):
        bundle.load(saved)
    (saved / "README.md").write_bytes(b" " * (1 << 20) + b" ")
    with pytest.raises(BundleError, match=r"README\.md: more than 1048576 bytes"):
        bundle.load(saved)
    (saved / "README.md").unlink()
    (saved / "bundle.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match=r"bundle\.json: not JSON: .*recursion"):
        bundle.load(saved)


def test_a_loaded_bundle_needs_its_files_no_more(spoken: Path) -> None:
    """What is mapped into memory would end the process when the file becomes shorter."""
    loaded, expected = bundle.load(spoken), bundle.load(spoken)
    for name in FILES:
        (spoken / name).write_bytes(b"")
    samples, lengths = torch.randn(1, 4000), torch.tensor([4000])
    found = loaded.model(*loaded.features(samples, lengths))[0]
    assert torch.equal(found, expected.model(*expected.features(samples, lengths))[0])
    assert loaded.language_model is not None
    assert loaded.language_model.score(loaded.language_model.begin(), "a")[0] < 0
