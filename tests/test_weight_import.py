"""Weights of other projects' layouts give their logits: timm's, Cadene's, and Keras' files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from timm.models import nasnet as timm_nasnet
from torch import Tensor, nn
from torch.nn import functional as F

from vision_zoo import zoo
from vision_zoo.cells import NASNET_A
from vision_zoo.genotypes import genotype_to_json, read_genotype
from vision_zoo.nasnet import LARGE, MOBILE, NASNet
from vision_zoo.nasnet_config import NASNetConfig
from vision_zoo.weight_download import PublishedWeights, download
from vision_zoo.weight_import import fit_weights, read_weights

SMALL = replace(MOBILE, cells=1, filters=96, num_classes=5, stem_filters=8, auxiliary=False)


class KerasNASNet:
    """The network of keras/applications/nasnet.py with N = 1, channels first; draws each variable once.

    skips: the cell after a reduction has the layer before the reduction's input as its previous one, as in the large
    network (`skip_reduction`), instead of that input, as in the mobile one.
    """

    def __init__(self, skips: bool = False) -> None:
        self.skips = skips
        self.variables: dict[str, np.ndarray] = {}
        self.draw = np.random.default_rng(0)

    def variable(self, name: str, shape: Sequence[int], low: float = -0.4, high: float = 0.4) -> Tensor:
        if name not in self.variables:
            self.variables[name] = self.draw.uniform(low, high, shape).astype(np.float32)
        return torch.from_numpy(self.variables[name])

    def norm(self, x: Tensor, name: str) -> Tensor:
        c = [x.shape[1]]
        gamma, beta = self.variable(f"{name}/gamma", c, 0.5, 1.5), self.variable(f"{name}/beta", c)
        mean, variance = self.variable(f"{name}/moving_mean", c), self.variable(f"{name}/moving_variance", c, 0.5, 2)
        return F.batch_norm(x, mean, variance, gamma, beta, eps=1e-3)

    def conv(self, x: Tensor, name: str, filters: int, side: int = 1, stride: int = 1) -> Tensor:
        kernel = self.variable(f"{name}/kernel", (side, side, x.shape[1], filters))
        return F.conv2d(x, kernel.permute(3, 2, 0, 1), stride=stride)

    def separable(self, x: Tensor, place: str, filters: int, side: int, stride: int = 1) -> Tensor:
        for index, step in ((1, stride), (2, 1)):
            name = f"separable_conv_{index}_{place}"
            depthwise = self.variable(f"{name}/depthwise_kernel", (side, side, x.shape[1], 1))
            pointwise = self.variable(f"{name}/pointwise_kernel", (1, 1, x.shape[1], filters))
            x = F.conv2d(same(F.relu(x), side, step), depthwise.permute(2, 3, 0, 1), stride=step, groups=x.shape[1])
            x = self.norm(F.conv2d(x, pointwise.permute(3, 2, 0, 1)), f"separable_conv_{index}_bn_{place}")
        return x

    def adjust(self, p: Tensor | None, x: Tensor, filters: int, block: str) -> Tensor:
        if p is None:
            return x
        if p.shape[1:3] == (filters, x.shape[2]):
            return p
        p = F.relu(p)
        if p.shape[2] != x.shape[2]:
            shifted = F.pad(p, (0, 1, 0, 1))[:, :, 1:, 1:]
            halves = [self.conv(q, f"adjust_conv_{i}_{block}", filters // 2, 1, 2) for i, q in ((1, p), (2, shifted))]
            return self.norm(torch.cat(halves, 1), f"adjust_bn_{block}")
        return self.norm(self.conv(p, f"adjust_conv_projection_{block}", filters), f"adjust_bn_{block}")

    def normal(self, x: Tensor, p: Tensor | None, f: int, block: str) -> Tensor:
        p = self.adjust(p, x, f, block)
        h = self.norm(self.conv(F.relu(x), f"normal_conv_1_{block}", f), f"normal_bn_1_{block}")
        x1 = self.separable(h, f"normal_left1_{block}", f, 5) + self.separable(p, f"normal_right1_{block}", f, 3)
        x2 = self.separable(p, f"normal_left2_{block}", f, 5) + self.separable(p, f"normal_right2_{block}", f, 3)
        x4 = mean(p) + mean(p)
        return torch.cat([p, x1, x2, mean(h) + p, x4, self.separable(h, f"normal_left5_{block}", f, 3) + h], 1)

    def reduction(self, x: Tensor, p: Tensor | None, f: int, block: str) -> Tensor:
        p = self.adjust(p, x, f, block)
        h = self.norm(self.conv(F.relu(x), f"reduction_conv_1_{block}", f), f"reduction_bn_1_{block}")
        maximum = F.max_pool2d(same(h, 3, 2), 3, 2)
        place = f"reduction_{{}}_{block}".format
        x1 = self.separable(h, place("left1"), f, 5, 2) + self.separable(p, place("right1"), f, 7, 2)
        x2 = maximum + self.separable(p, place("right2"), f, 7, 2)
        x3 = F.avg_pool2d(same(h, 3, 2), 3, 2) + self.separable(p, place("right3"), f, 5, 2)
        return torch.cat([x2, x3, x2 + mean(x1), self.separable(x1, place("left4"), f, 3) + maximum], 1)

    def __call__(self, images: Tensor, f: int = 4, classes: int = 5) -> Tensor:
        stem = self.norm(self.conv(images, "stem_conv1", 8, 3, 2), "stem_bn1")
        first = self.reduction(stem, None, f // 4, "stem_1")
        second = self.reduction(first, stem, f // 2, "stem_2")
        x, p = self.normal(second, first, f, "0"), second
        x, p = self.reduction(x, p, 2 * f, "reduce_1"), p if self.skips else x
        x, p = self.normal(x, p, 2 * f, "2"), x
        x, p = self.reduction(x, p, 4 * f, "reduce_2"), p if self.skips else x
        x = self.normal(x, p, 4 * f, "3")
        kernel = self.variable("predictions/kernel", (x.shape[1], classes))
        return F.relu(x).mean((2, 3)) @ kernel + self.variable("predictions/bias", (classes,))

    def save(self, file: Path, root: str = "", scope: str = "") -> Path:
        with h5py.File(file, "w") as content:
            for name, value in self.variables.items():
                layer, variable = name.split("/")
                content[f"{root}{layer}/{scope}{layer}/{variable}:0"] = value
        return file


def same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around x as TensorFlow's 'SAME' has them."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


@pytest.mark.parametrize(("root", "scope"), [("", ""), ("model_weights/", "reduction_A_block/block_1/")])
@pytest.mark.parametrize("side", [64, 75])
@pytest.mark.parametrize("kind", [MOBILE, LARGE], ids=["mobile", "large"])
def test_a_keras_file_gives_keras_logits(tmp_path: Path, kind: NASNetConfig, side: int, root: str, scope: str) -> None:
    torch.manual_seed(0)
    theirs, images = KerasNASNet(kind.skip_reduction_input), torch.randn(2, 3, side, side)
    expected = theirs(images)
    small = replace(SMALL, padding="keras", skip_reduction_input=kind.skip_reduction_input)
    ours = NASNet(small).eval()
    ours.load_state_dict(fit_weights(ours, read_weights(theirs.save(tmp_path / "nasnet.h5", root, scope))))
    with torch.no_grad():
        assert expected.std() > 0.1
        assert torch.allclose(ours(images), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


class CadeneMobile(nn.Module):
    """Cadene's mobile wiring with two normal cells a stage, numbered as there (0, 1, 6, 7, 12, 13), of timm's cells."""

    def __init__(self, f: int, stem: int, classes: int) -> None:
        super().__init__()
        first, normal = timm_nasnet.FirstCell, timm_nasnet.NormalCell
        pad = {"pad_type": "same"}
        self.conv0 = timm_nasnet.NASNetALarge(5, stem_size=stem, num_features=96).conv0
        self.cell_stem_0 = timm_nasnet.CellStem0(stem, f // 4, **pad)
        self.cell_stem_1 = timm_nasnet.CellStem1(stem, f // 2, **pad)
        self.cell_0, self.cell_1 = first(f, f // 2, 2 * f, f, **pad), normal(2 * f, f, 6 * f, f, **pad)
        self.reduction_cell_0 = timm_nasnet.ReductionCell0(6 * f, 2 * f, 6 * f, 2 * f, **pad)
        self.cell_6 = first(6 * f, f, 8 * f, 2 * f, **pad)
        self.cell_7 = normal(8 * f, 2 * f, 12 * f, 2 * f, **pad)
        self.reduction_cell_1 = timm_nasnet.ReductionCell1(12 * f, 4 * f, 12 * f, 4 * f, **pad)
        self.cell_12 = first(12 * f, 2 * f, 16 * f, 4 * f, **pad)
        self.cell_13 = normal(16 * f, 4 * f, 24 * f, 4 * f, **pad)
        self.last_linear = nn.Linear(24 * f, classes)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.conv0(images)
        p = self.cell_stem_0(stem)
        x = self.cell_stem_1(stem, p)
        names = ("cell_0", "cell_1", "reduction_cell_0", "cell_6", "cell_7", "reduction_cell_1", "cell_12", "cell_13")
        for name in names:
            x, p = getattr(self, name)(x, p), x
        logits: Tensor = self.last_linear(F.relu(x).mean((2, 3)))
        return logits


@pytest.mark.parametrize("old", [False, True], ids=["", "before batches were counted"])
def test_cadenes_mobile_layout(old: bool) -> None:
    torch.manual_seed(0)
    theirs = CadeneMobile(4, 8, 5).eval()
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    state = {name: value for name, value in theirs.state_dict().items() if not (old and "tracked" in name)}
    ours, images = NASNet(replace(SMALL, cells=2, padding="timm")).eval(), torch.randn(2, 3, 75, 75)
    ours.load_state_dict(fit_weights(ours, state))
    with torch.no_grad():
        expected = theirs(images)
        assert expected.std() > 0.1
        assert torch.allclose(ours(images), expected, rtol=1e-4, atol=1e-5)


def test_names_at_full_size() -> None:
    """timm's and Cadene's large; every tensor has its place."""
    with torch.device("meta"):
        theirs, ours = timm_nasnet.NASNetALarge().state_dict(), NASNet(LARGE)
        made = fit_weights(ours, theirs)
    assert made.keys() == ours.state_dict().keys()


def test_heads_are_forgiven_and_nothing_else() -> None:
    torch.manual_seed(0)
    source = NASNet(replace(SMALL, num_classes=1001)).state_dict()
    model = NASNet(replace(SMALL, num_classes=1000))
    made = fit_weights(model, source)
    assert torch.equal(made["classifier.bias"], source["classifier.bias"][1:])  # without the background
    assert torch.equal(made["classifier.weight"], source["classifier.weight"][1:])
    three = NASNet(replace(SMALL, num_classes=3, auxiliary=True))
    made = fit_weights(three, source)
    assert torch.equal(made["classifier.weight"], three.classifier.state_dict()["weight"])
    assert torch.equal(made["stem.0.weight"], source["stem.0.weight"])
    assert fit_weights(NASNet(replace(SMALL, num_classes=0)), source).keys() < source.keys()
    with pytest.raises(ValueError, match=r"missing none; unknown extra"):
        fit_weights(model, source | {"extra": torch.ones(1)})
    with pytest.raises(ValueError, match=r"missing stem\.0\.weight"):
        fit_weights(model, {name: value for name, value in source.items() if name != "stem.0.weight"})
    with pytest.raises(ValueError, match="of NASNet-A with the imagenet stem, not of a cifar network"):
        fit_weights(NASNet(zoo.NASNETS["nasnet-a-cifar"]), {"conv0.conv.weight": torch.ones(1)})


def test_files_that_are_no_keras_weights_are_named(tmp_path: Path) -> None:
    file = tmp_path / "other.h5"
    file.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"other\.h5 is not"):
        read_weights(file)
    with h5py.File(file, "w") as content:
        content["dense/kernel:0"] = np.zeros(1)
    with pytest.raises(ValueError, match="has no layer 'stem_conv1'"):
        read_weights(file)


def test_a_download_is_checked_and_kept(tmp_path: Path) -> None:
    source = tmp_path / "weights.h5"
    source.write_bytes(b"weights")
    right = PublishedWeights(source.as_uri(), hashlib.md5(b"weights").hexdigest())
    assert download(right, tmp_path / "cache").read_bytes() == b"weights"
    source.unlink()
    assert download(right, tmp_path / "cache").read_bytes() == b"weights", "the second time from the cache"
    with pytest.raises(ValueError, match="delete it and try again"):
        download(replace(right, md5="0"), tmp_path / "cache")
    with pytest.raises(ValueError, match="give a local file instead"):
        download(right, tmp_path / "empty")


def test_a_genotype_file_is_a_backbone(tmp_path: Path) -> None:
    file = tmp_path / "cells.json"
    raw = genotype_to_json(NASNET_A)
    raw["normal"]["output"] = [1, 2]
    file.write_text(json.dumps(raw))
    architecture = zoo.architecture(f"{file}:1@48", 3)
    model = zoo.build(architecture)
    assert isinstance(model, NASNet) and model.num_features == 2 * 8
    assert zoo.describe(model) == architecture
    assert zoo.NASNetArchitecture(model.config, zoo.genotype(genotype_to_json(read_genotype(file)))) == architecture
    raw["normal"]["blocks"][0]["operations"] = ["conv_9x9", "identity"]
    file.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"genotype\.normal: unknown operations \['conv_9x9'\] in block 2; choose"):
        read_genotype(file)
    file.write_text(json.dumps(raw | {"extra": 1}))
    with pytest.raises(ValueError, match=r"it takes \['normal', 'reduction'\]"):
        read_genotype(file)


def test_sizes_and_stems_by_name() -> None:
    assert zoo.architecture("nasnet-a-4@1056:mobile") == zoo.architecture("nasnet-a-mobile")
    assert zoo.architecture("nasnet-a-6@4032:large") == zoo.architecture("nasnet-a-large")
    with pytest.raises(ValueError, match=r"stem 'video' is unknown; choose from \['cifar', 'large', 'mobile'\]"):
        zoo.architecture("nasnet-a-4@1056:video")
