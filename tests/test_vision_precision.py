"""Compiled networks against those of torch, and what a machine without the instructions does."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.vision_fixtures import TINY, MeanColour, colour_bundle, encoded, noise
from vision_zoo import precision, zoo
from vision_zoo.attribution import attribute
from vision_zoo.batcher import BatchOptions
from vision_zoo.classifier import THREADS, Classifier
from vision_zoo.head import embed
from vision_zoo.nasnet import LARGE, NASNet
from vision_zoo.precision import Compiled, available, fastest, for_serving
from vision_zoo.transforms import Preprocessing

ROUNDING = 2**-8  # of bfloat16, relative
NETWORKS = {
    "cifar": replace(TINY, cells=2, filters=48),
    "large": replace(LARGE, cells=1, filters=192, stem_filters=8, num_classes=10, auxiliary=False),
    "dense": replace(LARGE, cells=1, filters=192, stem_filters=8, num_classes=10, auxiliary=False, output_stride=8),
}
NEAR = {"fp32": 1e-4, "bf16": 0.1}

compiled = pytest.mark.parametrize(
    "wanted",
    [
        "fp32",
        pytest.param(
            "bf16",
            marks=pytest.mark.skipif("bf16" not in available(), reason="this processor does not multiply bfloat16"),
        ),
    ],
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomised(model: nn.Module, images: Tensor) -> nn.Module:
    """Batch norms with the statistics of these images and affine parts that do something, as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        model.train()(images)
    return model.eval().requires_grad_(False)


def far(found: Tensor, expected: Tensor) -> float:
    """The distance, relative to the expected length."""
    return float((found - expected).norm() / expected.norm())


@compiled
@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_nasnet_is_the_network(name: str, wanted: str) -> None:
    images = torch.randn(8, 3, 48, 48)
    model = randomised(NASNet(NETWORKS[name]), images)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    served, became = for_serving(model, 48, wanted)
    assert became == wanted
    with torch.inference_mode():
        expected, found = model(images), served(images.contiguous(memory_format=torch.channels_last))
        assert far(embed(served, images), embed(model, images)) < NEAR[wanted]
        assert torch.equal(found, served(images)), "the answer of one call is not written over by the next"
        alone = torch.cat([served(image[None]) for image in images])
    assert found.dtype == torch.float32 and far(found - found.mean(0), expected - expected.mean(0)) < NEAR[wanted]
    assert far(alone, found) < NEAR[wanted]
    assert (found.argmax(1) == expected.argmax(1)).sum() >= 7
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@compiled
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_models_of_timm_are_compiled(name: str, wanted: str) -> None:
    side = 224 if "vit" in name else 64
    images = torch.randn(4, 3, side, side)
    model = zoo.create(f"timm/{name}", 10).eval()
    served, _ = for_serving(model, side, wanted)
    with torch.inference_mode():
        assert far(served(images), model(images)) < NEAR[wanted]


@compiled
def test_explanations_come_from_the_served_network(wanted: str) -> None:
    images = torch.randn(4, 3, 32, 32)
    model = randomised(NASNet(NETWORKS["cifar"]), images)
    found, expected = attribute(for_serving(model, 32, wanted)[0], images[0], 1), attribute(model, images[0], 1)
    assert (found.method, found.index) == (expected.method, 1) == ("cam", 1)
    assert far(found.map, expected.map) < NEAR[wanted]


@compiled
def test_a_classifier_serves_compiled_and_company_changes_only_roundings(wanted: str) -> None:
    model = randomised(NASNet(NETWORKS["cifar"]), torch.randn(16, 3, 32, 32))
    bundle = replace(colour_bundle(model=model), preprocessing=Preprocessing(size=32))
    files = [encoded(noise(20 + index, 30), "PNG") for index in range(7)]
    answers = []
    for chosen, size in (("eager", 8), (wanted, 1), (wanted, 8)):
        classifier = Classifier(bundle, BatchOptions(size, 0.5, adaptive=False), precision=chosen)
        assert classifier.precision == chosen
        answers.append([[each.probability for each in of] for of in classifier.classify(files)])
        classifier.close()
    exact, alone, together = (torch.tensor(each) for each in answers)
    assert far(alone, exact) < 0.02 and far(together, alone) < 0.005


def test_what_was_compiled_is_kept_for_the_same_network_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(NASNet(NETWORKS["cifar"]), torch.randn(2, 3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    first = for_serving(model, 32, "fp32")[0](images)
    kept = tmp_path / "cache" / "earsight" / "openvino"
    assert len([*kept.iterdir()]) == 1
    with monkeypatch.context() as again:
        again.setattr(precision, "_program", lambda *_: pytest.fail("this was compiled before"))
        assert torch.equal(for_serving(model, 32, "fp32")[0](images), first)
    other = NASNet(replace(NETWORKS["cifar"], padding="timm")).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert far(for_serving(other, 32, "fp32")[0](images), other(images)) < NEAR["fp32"], "of the same weights"
    assert len([*kept.iterdir()]) == 2


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert isinstance(for_serving(NASNet(TINY), 32, "fp32")[0], Compiled)


def test_where_the_disk_is_full_it_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Can't write to the file")

    monkeypatch.setattr(precision._openvino(), "save_model", full)
    assert isinstance(for_serving(NASNet(TINY), 32, "fp32")[0], Compiled)


@pytest.mark.parametrize("file", ["model.xml", "model.bin"])
def test_what_is_kept_and_damaged_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str) -> None:
    model, images = NASNet(TINY).eval(), torch.randn(2, 3, 32, 32)
    first = for_serving(model, 32, "fp32")[0](images)
    (kept,) = (tmp_path / "cache" / "earsight" / "openvino").iterdir()
    whole = (kept / file).read_bytes()
    (kept / file).write_bytes(whole[: len(whole) // 2])
    assert torch.equal(for_serving(model, 32, "fp32")[0](images), first)
    assert "is damaged and made again" in caplog.text
    caplog.clear()
    assert torch.equal(for_serving(model, 32, "fp32")[0](images), first) and "damaged" not in caplog.text


def test_a_network_of_several_maps_is_served_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    from timm.models.crossvit import CrossVit

    model = CrossVit(img_size=64, img_scale=(1.0, 1.0), patch_size=(16, 32), depth=((1, 1, 0),), num_classes=5).eval()
    image = torch.randn(3, 64, 64)
    served, became = for_serving(model, 64)
    assert (served, became) == (model, "eager") and "2 feature maps" in caplog.text
    with pytest.raises(ValueError, match="'fp32': CrossVit cannot be compiled: it has 2 feature maps"):
        for_serving(model, 64, "fp32")
    assert attribute(model, image).method == "occlusion"


def test_a_compiled_network_takes_the_threads_it_is_given(tmp_path: Path) -> None:
    """A thread that begins late may have one of torch's threads only; a model that is loaded then has all of them."""
    bundle = replace(colour_bundle(model=NASNet(TINY)), preprocessing=Preprocessing(size=32))
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS + 1)
    try:
        classifier = Classifier(bundle, precision="fp32")
    finally:
        torch.set_num_threads(threads)
    runner: Any = classifier._batcher._run
    assert runner._network._trunk.get_property("INFERENCE_NUM_THREADS") == THREADS
    classifier.close()


def test_compiling_reports_to_nobody() -> None:
    for_serving(NASNet(TINY), 32, "fp32")
    assert sys.modules["openvino_telemetry"] is None
    assert "stub" in sys.modules["openvino.tools.ovc.convert_impl"].tm.__name__


def test_small_and_foreign_networks_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = NASNet(TINY)
    assert fastest(tiny) == fastest(MeanColour()) == "eager"
    assert for_serving(tiny, 32)[0] is tiny
    monkeypatch.setattr(precision, "COMPILED_FROM", 0)
    assert fastest(tiny) == "fp32" and fastest(MeanColour()) == "eager"
    monkeypatch.setattr(precision, "ROUNDED_FROM", 0)
    assert fastest(tiny) == available()[-1]


def test_a_machine_without_the_runtime_serves_what_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(precision, "COMPILED_FROM", 0)
    tiny = NASNet(TINY)
    assert available() == ("eager",) and for_serving(tiny, 32) == (tiny, "eager")
    with pytest.raises(ValueError, match=r"precision 'bf16' is not one of this processor's. Select one of .*'eager'"):
        Classifier(colour_bundle(model=tiny), precision="bf16")


class Refusing(NASNet):
    def forward_features(self, images: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            raise RuntimeError("no graph of this")
        return super().forward_features(images)


def test_what_cannot_be_compiled_is_served_as_it_is_or_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Refusing(TINY)
    with pytest.raises(ValueError, match="precision 'fp32': Refusing cannot be compiled"):
        for_serving(refusing, 32, "fp32")
    monkeypatch.setattr(precision, "COMPILED_FROM", 0)
    assert for_serving(refusing, 32) == (refusing, "eager")
    assert "Refusing cannot be compiled and is served as it is" in caplog.text
    with pytest.raises(ValueError, match="MeanColour needs eager"):
        for_serving(MeanColour(), 32, "fp32")
    with pytest.raises(ValueError, match="'int3'"):
        for_serving(MeanColour(), 32, "int3")
