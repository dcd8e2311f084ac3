"""Networks in bf16 against the same in fp32, and what a machine without the instructions does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.vision_fixtures import TINY, MeanColour, colour_bundle, encoded, noise
from vision_zoo import precision, zoo
from vision_zoo.attribution import attribute
from vision_zoo.batcher import BatchOptions
from vision_zoo.classifier import Classifier
from vision_zoo.head import embed
from vision_zoo.nasnet import LARGE, NASNet
from vision_zoo.operations import CellOptions, SameConv2d, Unit
from vision_zoo.precision import PackedConv2d, PackedUnit, Rounded, available, fastest, for_serving
from vision_zoo.transforms import Preprocessing

ROUNDING = 2**-8  # of bfloat16, relative
NETWORKS = {
    "cifar": replace(TINY, cells=2, filters=48),
    "large": replace(LARGE, cells=1, filters=192, stem_filters=8, num_classes=10, auxiliary=False),
    "dense": replace(LARGE, cells=1, filters=192, stem_filters=8, num_classes=10, auxiliary=False, output_stride=8),
}

bf16 = pytest.mark.skipif("bf16" not in available(), reason="this processor does not multiply bfloat16")


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


@bf16
@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(1, 1, 9), (3, 1, 9), (5, 2, 10), (7, 2, 9), (3, 2, 10), (1, 2, 9)]
)
def test_a_packed_convolution_is_the_convolution(kernel: int, stride: int, size: int) -> None:
    groups = 16 if kernel > 1 else 1
    convolution = SameConv2d(16, 16, kernel, stride, groups=groups)
    x, bias = torch.randn(3, 16, size, size).bfloat16(), torch.randn(16).bfloat16().float()
    packed = PackedConv2d(convolution, convolution.weight.detach(), bias)
    with torch.no_grad():
        convolution.weight.copy_(convolution.weight.bfloat16())
        expected = convolution(x.float()) + bias[:, None, None]
    found = packed(x.contiguous(memory_format=torch.channels_last))
    assert found.dtype == torch.bfloat16 and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.float(), expected, rtol=ROUNDING, atol=1e-3)


@bf16
@pytest.mark.parametrize("kernel", [0, 5])
def test_a_packed_unit_is_the_unit(kernel: int) -> None:
    x = torch.randn(4, 16, 9, 9)
    unit = randomised(Unit(16, 24, kernel, 2, CellOptions()), x)
    assert isinstance(unit, Unit)
    found = PackedUnit(unit)(x.to(torch.bfloat16, memory_format=torch.channels_last))
    assert far(found.float(), unit(x)) < 2 * ROUNDING


@bf16
@pytest.mark.parametrize("name", NETWORKS)
def test_a_rounded_nasnet_is_near_the_exact_one(name: str) -> None:
    images = torch.randn(8, 3, 48, 48)
    model = randomised(NASNet(NETWORKS[name]), images)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rounded, became = for_serving(model, "bf16")
    assert became == "bf16"
    with torch.inference_mode():
        expected, found = model(images), rounded(images)
        assert far(embed(rounded, images), embed(model, images)) < 0.05
    assert found.dtype == torch.float32 and far(found - found.mean(0), expected - expected.mean(0)) < 0.1
    assert (found.argmax(1) == expected.argmax(1)).sum() >= 7
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the network stays exact"
    packed = sum(isinstance(module, PackedUnit) for module in rounded.modules())
    assert packed if name != "dense" else any(isinstance(module, Unit) for module in rounded.modules())


@bf16
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_timm_models_are_rounded_as_they_are(name: str) -> None:
    images = torch.randn(4, 3, 224 if "vit" in name else 64, 224 if "vit" in name else 64)
    model = zoo.create(f"timm/{name}", 10).eval()
    rounded, _ = for_serving(model, "bf16")
    with torch.inference_mode():
        assert far(rounded(images), model(images)) < 0.05


@bf16
def test_explanations_come_from_the_served_network() -> None:
    images = torch.randn(4, 3, 32, 32)
    model = randomised(NASNet(NETWORKS["cifar"]), images)
    found, expected = attribute(for_serving(model, "bf16")[0], images[0], 1), attribute(model, images[0], 1)
    assert (found.method, found.index) == (expected.method, 1) == ("cam", 1)
    assert far(found.map, expected.map) < 0.1


@bf16
def test_a_classifier_serves_in_bf16_and_company_changes_only_roundings() -> None:
    model = randomised(NASNet(NETWORKS["cifar"]), torch.randn(16, 3, 32, 32))
    bundle = replace(colour_bundle(model=model), preprocessing=Preprocessing(size=32))
    files = [encoded(noise(20 + index, 30), "PNG") for index in range(7)]
    answers = []
    for wanted, size in (("fp32", 8), ("bf16", 1), ("bf16", 8)):
        classifier = Classifier(bundle, BatchOptions(size, 0.5, adaptive=False), precision=wanted)
        assert classifier.precision == wanted
        answers.append([[each.probability for each in of] for of in classifier.classify(files)])
        classifier.close()
    exact, alone, together = (torch.tensor(each) for each in answers)
    assert far(alone, exact) < 0.02 and far(together, alone) < 0.005


def test_small_and_foreign_networks_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = NASNet(TINY)
    assert fastest(tiny) == fastest(MeanColour()) == "fp32"
    assert for_serving(tiny)[0] is tiny
    monkeypatch.setattr(precision, "SMALL", 0)
    assert fastest(tiny) == available()[-1] and fastest(MeanColour()) == "fp32"


def test_a_machine_without_the_instructions_serves_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_capabilities", dict)
    monkeypatch.setattr(precision, "SMALL", 0)
    tiny = NASNet(TINY)
    assert available() == ("fp32",) and for_serving(tiny) == (tiny, "fp32")
    with pytest.raises(ValueError, match=r"precision 'bf16' is not one of this processor's. Select one of .*'fp32'"):
        Classifier(colour_bundle(model=tiny), precision="bf16")


@bf16
def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(ValueError, match="MeanColour needs fp32"):
        for_serving(MeanColour(), "bf16")
    with pytest.raises(ValueError, match="'int3'"):
        for_serving(MeanColour(), "int3")
    assert isinstance(for_serving(NASNet(TINY), "bf16")[0], Rounded)
