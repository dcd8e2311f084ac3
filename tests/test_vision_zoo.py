"""Names to networks, weights from files, and errors that help."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from vision_zoo import zoo
from vision_zoo.nasnet import CIFAR, LARGE, MOBILE
from vision_zoo.transforms import Preprocessing

SMALL = "nasnet-a-1@24"


def test_names_of_the_paper() -> None:
    assert zoo.architecture("nasnet-a-cifar") == zoo.NASNetArchitecture(CIFAR)
    assert zoo.architecture("nasnet-a-mobile") == zoo.NASNetArchitecture(MOBILE)
    assert zoo.architecture("nasnet-a-large") == zoo.NASNetArchitecture(LARGE)
    assert zoo.architecture("nasnet-a-6@768") == zoo.architecture("nasnet-a-cifar")
    sized = zoo.architecture("nasnet-a-2@192", num_classes=100)
    assert isinstance(sized, zoo.NASNetArchitecture)
    assert (sized.config.cells, sized.config.filters, sized.num_classes) == (2, 192, 100)


def test_published_parameters() -> None:
    assert zoo.count_parameters(zoo.architecture("nasnet-a-cifar")) == 3_346_538


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nasnet-a-cifer", "did you mean nasnet-a-cifar"),
        ("resnet50", r"backbone 'resnet50' is unknown; choose from .*timm/NAME"),
        ("nasnet-a-2@100", "filters 100 must be a positive multiple of 24"),
        ("nasnet-a-0@48", "cells 0 must be at least 1"),
        ("timm/resnet5o", "timm has no model 'resnet5o'; did you mean timm/resnet50"),
        ("timm/qqqqqqq", "timm has no model 'qqqqqqq'$"),
    ],
)
def test_unknown_names_list_close_ones(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        zoo.create(name)


def test_any_timm_model_is_a_backbone() -> None:
    model = zoo.create("timm/test_resnet", num_classes=7)
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    assert zoo.describe(model) == zoo.TimmArchitecture("test_resnet", 7)
    assert isinstance(zoo.build(zoo.describe(model)), type(model))
    assert zoo.architecture("timm/test_resnet").num_classes == 1000


def test_preprocessing_belongs_to_the_architecture() -> None:
    assert zoo.preprocessing(zoo.architecture("nasnet-a-cifar")) == Preprocessing(size=32)
    large = zoo.preprocessing(zoo.architecture("nasnet-a-large"))
    assert (large.size, large.normalisation, large.mean) == (331, "mean-std", (0.5, 0.5, 0.5))
    ours = zoo.preprocessing(zoo.architecture("timm/resnet18"))
    theirs = timm.get_pretrained_cfg("resnet18")
    assert theirs is not None
    assert (ours.size, ours.crop, ours.interpolation) == (theirs.input_size[-1], theirs.crop_pct, theirs.interpolation)
    assert (ours.mean, ours.std) == (theirs.mean, theirs.std)


@pytest.mark.parametrize("ending", ["safetensors", "pth", "nested.pth"])
def test_weights_come_from_a_local_file(tmp_path: Path, ending: str) -> None:
    torch.manual_seed(0)
    original = zoo.create(SMALL).eval()
    file = tmp_path / f"weights.{ending}"
    state = original.state_dict()
    if ending == "safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if "nested" in ending else state, file)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(zoo.create(SMALL, weights=file).eval()(x), original(x))


def test_timm_takes_local_weights_of_another_number_of_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = timm.create_model("test_resnet").eval()
    file = tmp_path / "weights.safetensors"
    save_file(original.state_dict(), file)
    model = zoo.create("timm/test_resnet", num_classes=3, weights=file).eval()
    assert torch.equal(model.state_dict()["conv1.0.weight"], original.state_dict()["conv1.0.weight"])
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_weights_that_do_not_fit_a_timm_model_are_refused(tmp_path: Path) -> None:
    """timm itself takes what fits, which may be nothing, where the number of classes is another."""
    file = tmp_path / "weights.safetensors"
    save_file({"nonsense": torch.zeros(3)}, file)
    for classes in (None, 5):
        with pytest.raises(ValueError, match=r"weights\.safetensors does not fit timm/test_resnet: .*nonsense"):
            zoo.create("timm/test_resnet", classes, file)
    tuned = timm.create_model("test_resnet", num_classes=5)
    save_file(tuned.state_dict(), file)
    model = zoo.create("timm/test_resnet", 5, file)
    assert torch.equal(model.state_dict()["fc.weight"], tuned.state_dict()["fc.weight"]), "its classifier fits too"
    maps = zoo.create_features("timm/test_resnet", weights=file)
    assert torch.equal(maps.state_dict()["conv1.0.weight"], tuned.state_dict()["conv1.0.weight"])


class Evil:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (str(self.path),))


@pytest.mark.parametrize("name", [SMALL, "timm/test_resnet"])
def test_code_in_a_weights_file_is_never_run(tmp_path: Path, name: str) -> None:
    file, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({"weight": Evil(trace)}, file)
    with pytest.raises(ValueError, match=r"evil\.pth holds more than tensors"):
        zoo.create(name, weights=file)
    file.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(ValueError, match=r"evil\.pth"):
        zoo.create(name, weights=file)
    assert not trace.exists()


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = zoo.create(SMALL)
    good = model.state_dict()
    with pytest.raises(ValueError, match=r"missing classifier\.bias; unknown extra"):
        zoo.load_weights(model, {k: v for k, v in good.items() if k != "classifier.bias"} | {"extra": torch.ones(1)})
    with pytest.raises(ValueError, match=r"classifier\.bias is \[1\], expected \[10\]"):
        zoo.load_weights(model, good | {"classifier.bias": torch.ones(1)})
    file = tmp_path / "list.pth"
    torch.save([torch.ones(1)], file)
    with pytest.raises(ValueError, match="holds no state dict"):
        zoo.create(SMALL, weights=file)
    with pytest.raises(ValueError, match=r"nothing\.pth does not exist"):
        zoo.create(SMALL, weights=tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="no published weights to download"):
        zoo.create(SMALL, weights="pretrained")


def test_weights_that_cannot_be_downloaded_name_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ValueError, match=r"cannot load weights of timm/resnet18: no route; give a local file instead"):
        zoo.create("timm/resnet18", weights="pretrained")
