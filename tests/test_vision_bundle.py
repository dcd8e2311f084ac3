"""Bundles: what is saved is loaded, and what does not fit, or leads out of the folder, is refused by name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.vision_fixtures import COLOURS, TINY
from vision_zoo import bundle
from vision_zoo.bundle import BundleError
from vision_zoo.cells import NASNET_A, Genotype
from vision_zoo.nasnet import NASNet
from vision_zoo.transforms import Preprocessing

PREPROCESSING = Preprocessing(size=16, resize="shorter-side", crop=0.9, normalisation="mean-std", mean=(0.1, 0.2, 0.3))


def save(folder: Path, model: torch.nn.Module, **changes: Any) -> bundle.VisionBundle:
    settings: dict[str, Any] = {
        "name": "colours",
        "version": "1.2",
        "model": model,
        "labels": COLOURS,
        "preprocessing": PREPROCESSING,
        "card": "# Colours\n\nNothing is known.\n",
    }
    return bundle.save(folder, **(settings | changes))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("original") / "colours", NASNet(TINY)).folder


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "colours"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "bundle.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))


def test_a_network_comes_back_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NASNet(replace(TINY, filters=48, input_size=32, auxiliary=True, stem_stride=1))
    save(tmp_path / "colours", model)
    loaded = bundle.load(tmp_path / "colours")
    assert (loaded.name, loaded.version, loaded.labels) == ("colours", "1.2", COLOURS)
    assert loaded.preprocessing == PREPROCESSING and loaded.card.startswith("# Colours")
    assert not loaded.model.training
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), model.eval()(x))
    own = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("auxiliary."))
    assert loaded.parameters == own < sum(p.numel() for p in model.parameters())
    assert not any("auxiliary" in name for name in load_file(tmp_path / "colours" / "model.safetensors"))


def test_a_timm_model_comes_back_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    save(tmp_path / "colours", model)
    loaded = bundle.load(tmp_path / "colours")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), model.eval()(x))


def test_find_gives_the_vision_bundles_of_a_folder(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "bundle.json").write_text('{"kind": "speech"}')
    (tmp_path / "empty").mkdir()
    assert bundle.find(tmp_path) == [saved]
    assert bundle.read_name(saved) == "colours"
    with pytest.raises(BundleError, match="does not exist"):
        bundle.find(tmp_path / "nowhere")


def test_who_reads_the_description_reads_the_weights(saved: Path) -> None:
    modes = {(saved / name).stat().st_mode for name in ("bundle.json", "model.safetensors", "README.md")}
    assert len(modes) == 1


def test_a_missing_card_is_an_empty_one(saved: Path) -> None:
    (saved / "README.md").unlink()
    assert bundle.load(saved).card == ""


CHANGES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda d: d.update(kind="speech"), "kind 'speech' is not 'vision'"),
    (lambda d: d.update(extra=1), r"unknown keys \['extra'\]; known are"),
    (lambda d: d.pop("labels"), r"missing keys \['labels'\]"),
    (lambda d: d.update(name="../up"), "name '../up' must be"),
    (lambda d: d.update(version=3), "version 3 must be of type str"),
    (lambda d: d.update(labels=["red", "green"]), "labels must be 3 different texts"),
    (lambda d: d.update(labels=["red", "green", "red"]), "labels must be 3 different texts"),
    (lambda d: d.update(labels=["red", "green", 3]), "labels must be a list of non-empty texts"),
    (lambda d: d.update(architecture=3), "architecture must be an object"),
    (lambda d: d["architecture"].update(family="caffe"), "family 'caffe' is unknown; choose from"),
    (lambda d: d["architecture"].update(weights="x"), r"unknown keys \['weights'\]"),
    (lambda d: d["architecture"].update(genotype="nasnet-z"), "genotype 'nasnet-z' is unknown; choose from"),
    (lambda d: d["architecture"]["config"].update(depth=3), r"config: unknown keys \['depth'\]; known are"),
    (lambda d: d["architecture"]["config"].update(cells="6"), "config.cells '6' must be of type int"),
    (lambda d: d["architecture"]["config"].update(cells=True), "config.cells True must be of type int"),
    (lambda d: d["architecture"]["config"].update(filters=100), "filters 100 must be a positive multiple"),
    (lambda d: d["architecture"]["config"].update(filters=48), "weights do not fit"),
    (lambda d: d["architecture"]["config"].update(auxiliary=True, input_size=64), "weights do not fit: missing aux"),
    (lambda d: d["preprocessing"].update(size=0), "size 0 must be 1 to 4096"),
    (lambda d: d["preprocessing"].update(mean="grey"), "mean 'grey' must be a list"),
    (lambda d: d["preprocessing"].update(mean=[1, 2]), "need three channels"),
    (lambda d: d.update(architecture={"family": "timm", "name": "no_such_net", "num_classes": 3}), "timm has no model"),
    (lambda d: d.update(architecture={"family": "timm", "num_classes": 3}), "missing 1 required"),
]


@pytest.mark.parametrize(("change", "text"), CHANGES, ids=[text for _, text in CHANGES])
def test_what_does_not_fit_is_named(saved: Path, change: Callable[[dict[str, Any]], object], text: str) -> None:
    edit(saved, change)
    with pytest.raises(BundleError, match=text):
        bundle.load(saved)


def test_whole_numbers_may_stand_for_decimals(saved: Path) -> None:
    edit(saved, lambda d: d["preprocessing"].update(crop=1, std=[1, 1, 1]))
    assert bundle.load(saved).preprocessing.std == (1.0, 1.0, 1.0)


def test_files_that_cannot_be_read_are_named(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(BundleError, match=r"model\.safetensors is not a file of weights"):
        bundle.load(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors does not exist"):
        bundle.load(saved)
    (saved / "bundle.json").write_text("{")
    with pytest.raises(BundleError, match=r"bundle\.json cannot be read"):
        bundle.load(saved)
    (saved / "bundle.json").write_text("[]")
    with pytest.raises(BundleError, match="JSON object"):
        bundle.load(saved)
    (saved / "bundle.json").unlink()
    with pytest.raises(BundleError, match=r"is no bundle: it has no bundle\.json"):
        bundle.load(saved)


@pytest.mark.parametrize("name", ["bundle.json", "model.safetensors", "README.md"])
def test_a_link_out_of_the_folder_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    (saved / name).rename(tmp_path / "outside")
    (saved / name).symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="leads out of its bundle"):
        bundle.load(saved)


def test_saving_checks_before_it_writes(tmp_path: Path) -> None:
    model = NASNet(TINY)
    with pytest.raises(BundleError, match="name 'Colours!' must be"):
        save(tmp_path / "a", model, name="Colours!")
    with pytest.raises(BundleError, match="labels must be 3"):
        save(tmp_path / "a", model, labels=("red",))
    with pytest.raises(BundleError, match="neither a NASNet nor a model of timm"):
        save(tmp_path / "a", torch.nn.Linear(3, 3))
    with pytest.raises(BundleError, match=r"temperature 0\.0 must be above 0"):
        save(tmp_path / "a", model, temperature=0)
    assert not (tmp_path / "a").exists()


def test_a_genotype_without_a_name_is_kept_as_data(tmp_path: Path) -> None:
    cells = Genotype(NASNET_A.normal, replace(NASNET_A.reduction, output=(3, 4, 5)))
    model = NASNet(TINY, cells)
    loaded = save(tmp_path / "a", model)
    assert isinstance(loaded.model, NASNet) and loaded.model.genotype == cells


def test_temperature_and_hashes_are_kept(saved: Path, tmp_path: Path) -> None:
    loaded = bundle.load(saved)
    assert loaded.temperature == 1.0 and len(loaded.weights_sha256) == 64
    assert loaded.weights_sha256 == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    edit(saved, lambda d: d.update(temperature=2))
    assert bundle.load(saved).temperature == 2.0
    edit(saved, lambda d: [d.pop(key) for key in ("temperature", "weights_sha256")])
    older = bundle.load(saved)  # written before there were these keys
    assert (older.temperature, older.weights_sha256) == (1.0, loaded.weights_sha256)


def test_weights_that_are_not_the_bundles_are_refused(saved: Path) -> None:
    file = saved / "model.safetensors"
    weights = load_file(file)
    weights["classifier.bias"] += 1
    save_file(weights, file)
    with pytest.raises(BundleError, match="one of the two is damaged"):
        bundle.load(saved)


def test_the_identity_of_preprocessing_is_its_content() -> None:
    assert PREPROCESSING.identity == replace(PREPROCESSING).identity
    assert PREPROCESSING.identity != replace(PREPROCESSING, size=17).identity
