"""The golden figures of NASNet-A: feature maps, parameters, multiply-adds; ScheduledDropPath; settings."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vision_zoo.cells import Cell, DropPath
from vision_zoo.nasnet import CIFAR, LARGE, MOBILE, NASNet, NASNetConfig

CONFIGS = {"cifar": CIFAR, "mobile": MOBILE, "large": LARGE}

# (side, channels) of: stem, cell 0, reduction 0, the next cell, reduction 1, the last cell
GOLDEN_MAPS = {
    "cifar": [(32, 96), (32, 192), (16, 256), (16, 384), (8, 512), (8, 768)],
    "mobile": [(28, 88), (28, 264), (14, 352), (14, 528), (7, 704), (7, 1056)],
    "large": [(42, 336), (42, 1008), (21, 1344), (21, 2016), (11, 2688), (11, 4032)],
}
# parameters without the auxiliary head, of the auxiliary head, 10^9 multiply-adds
GOLDEN_COUNTS = {
    "cifar": (3_346_538, 1_631_498, 0.544),
    "mobile": (5_289_978, 2_411_240, 0.564),
    "large": (88_753_150, 4_567_784, 23.78),
}


def on_meta(config: NASNetConfig) -> NASNet:
    """Shapes and counts without any arithmetic."""
    with torch.device("meta"):
        return NASNet(config).eval()


@cache
def measured(name: str) -> tuple[NASNet, list[torch.Tensor], int]:
    """-> the network, its feature maps for one image, and the multiply-adds up to the last of them."""
    config = CONFIGS[name]
    model = on_meta(config)
    images = torch.empty(1, 3, config.input_size, config.input_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        maps = list(model.feature_maps(images))
    return model, maps, counter.get_total_flops() // 2


@pytest.mark.parametrize("name", CONFIGS)
def test_feature_maps(name: str) -> None:
    config = CONFIGS[name]
    stem = 2 if config.stem == "imagenet" else 0  # two reduction cells belong to the ImageNet stem
    n = config.cells
    _, maps, _ = measured(name)
    assert len(maps) == 1 + stem + 3 * n + 2
    places = [0, 1, 1 + n, 2 + n, 2 + 2 * n, 2 + 3 * n]
    picked = [maps[stem + place] for place in places]
    assert [(x.shape[3], x.shape[1]) for x in picked] == GOLDEN_MAPS[name]
    assert all(x.shape[2] == x.shape[3] for x in maps)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters(name: str) -> None:
    model, _, _ = measured(name)
    assert model.auxiliary is not None
    auxiliary = sum(p.numel() for p in model.auxiliary.parameters())
    everything = sum(p.numel() for p in model.parameters())
    assert (everything - auxiliary, auxiliary) == GOLDEN_COUNTS[name][:2]


@pytest.mark.parametrize("name", CONFIGS)
def test_multiply_adds(name: str) -> None:
    model, _, cells = measured(name)
    everything = cells + model.num_features * CONFIGS[name].num_classes
    assert everything / 1e9 == pytest.approx(GOLDEN_COUNTS[name][2], rel=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_both_heads_fit_their_features(name: str) -> None:
    """The auxiliary head's full-spatial convolution leaves exactly one position."""
    config = CONFIGS[name]
    model, maps, _ = measured(name)
    assert model.auxiliary is not None
    before_second_reduction = maps[1 + 2 * config.cells + (2 if config.stem == "imagenet" else 0)]
    assert model.auxiliary(before_second_reduction).shape == (1, config.num_classes)
    assert model.classifier.in_features == maps[-1].shape[1]


TINY = NASNetConfig(cells=1, filters=48, num_classes=3, input_size=32)


def test_the_auxiliary_head_reads_the_layer_before_the_second_reduction() -> None:
    torch.manual_seed(0)
    model = NASNet(TINY).eval()
    images = torch.randn(2, 3, 32, 32)
    maps = list(model.feature_maps(images))  # stem, cell 0, reduction 0, cell 1, reduction 1, cell 2
    assert model.auxiliary is not None
    with torch.no_grad():
        _, auxiliary = model.forward_with_auxiliary(images)
        assert auxiliary is not None and torch.equal(auxiliary, model.auxiliary(maps[3]))


def test_logits_are_the_classifier_of_the_pooled_features() -> None:
    torch.manual_seed(0)
    model = NASNet(TINY).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.embed(images)
        last = list(model.feature_maps(images))[-1]
        assert torch.allclose(features, last.clamp_min(0).flatten(2).mean(2), atol=1e-6)
        assert torch.equal(model(images), model.classifier(features))
        assert features.shape == (2, model.num_features)


def test_without_auxiliary_head_there_are_no_weights_of_it() -> None:
    model = NASNet(replace(TINY, auxiliary=False))
    assert model.auxiliary is None
    assert not any("auxiliary" in name for name in model.state_dict())


def test_examples_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model = NASNet(TINY).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
        assert torch.allclose(model(images), alone, atol=1e-5)


def test_drop_path_schedule() -> None:
    """5 cells (3N + 2): cell i keeps 1 - progress * (i + 1) / 5 * (1 - 0.6)."""
    model = NASNet(TINY)
    paths = [module for module in model.modules() if isinstance(module, DropPath)]
    assert len(paths) == 5
    for progress in (0.0, 0.5, 1.0, 2.0):
        model.schedule_drop_path(progress)
        share = min(progress, 1.0)
        assert [path.keep for path in paths] == pytest.approx([1 - share * (i + 1) / 5 * 0.4 for i in range(5)])


def test_imagenet_counts_its_stem_cells() -> None:
    """3N + 4 cells; the first stem cell is number 0."""
    model = on_meta(replace(MOBILE, drop_path_keep=0.5))
    model.schedule_drop_path(1.0)
    keeps = [module.keep for module in model.modules() if isinstance(module, DropPath)]
    assert len(keeps) == 16
    assert keeps[0] == pytest.approx(1 - 0.5 / 16) and keeps[-1] == pytest.approx(0.5)


def test_drop_path_drops_whole_examples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    path = DropPath(depth=1.0, final_keep=0.6)
    path.schedule(1.0)
    x = torch.ones(20_000, 2, 2, 2)
    y = path.train()(x)
    examples = y.flatten(1)
    assert (examples == examples[:, :1]).all(), "an example is dropped as a whole"
    kept = examples[:, 0] > 0
    assert torch.allclose(examples[kept], torch.tensor(1 / 0.6))
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.015)
    assert torch.equal(path.eval()(x), x)


def test_drop_path_spares_identities() -> None:
    """With (nearly) every path dropped, a normal cell still passes on p and the identities of blocks 4 and 6."""
    torch.manual_seed(0)
    model = NASNet(TINY)
    cell, images = model.cells[-1].train(), torch.randn(4, 3, 32, 32)
    assert isinstance(cell, Cell)
    cell.drop_path.keep = 1e-9
    maps = list(model.feature_maps(images))
    f = 48 // 24 * 4  # two doublings
    states = cell(maps[-2], maps[-3]).split(f, dim=1)  # p, 2, 3, 4, 5, 6
    h = cell.squeeze(maps[-2])
    for index in (1, 2, 4):  # blocks 2, 3 and 5 have no identity
        assert torch.equal(states[index], torch.zeros_like(states[index]))
    assert torch.equal(states[3], states[0])
    assert torch.allclose(states[5], h, atol=1e-5)


def test_padding_mode_reaches_every_cell() -> None:
    """The modes differ only where a stride-2 average pool meets the border."""
    torch.manual_seed(0)
    exact = NASNet(TINY).eval()
    parity = NASNet(replace(TINY, padding="timm")).eval()
    parity.load_state_dict(exact.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = list(exact.feature_maps(images)), list(parity.feature_maps(images))
    assert torch.equal(ours[1], theirs[1])  # no reduction yet
    different = (ours[2] - theirs[2]).abs().amax((0, 1)) > 1e-6
    assert different[:, -1].any() and different[-1].any()
    assert not different[:-2, :-2].any()  # the stride-1 pool after it carries the border one pixel further


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"stem": "video"}, "stem 'video' is unknown; choose from .*cifar"),
        ({"filters": 100}, "filters 100 must be a positive multiple of 24"),
        ({"filters": 0}, "filters 0"),
        ({"cells": 0}, "cells 0 must be at least 1"),
        ({"stem": "imagenet", "filters": 1032}, "multiple of 96"),
        ({"stem_stride": 3}, "stem_stride 3"),
    ],
)
def test_wrong_settings_name_the_rule(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(CIFAR, **change)


def test_wrong_padding_and_too_small_an_image_name_the_rule() -> None:
    with pytest.raises(ValueError, match="padding 'valid' is unknown; choose from"):
        NASNet(replace(TINY, padding="valid"))
    with pytest.raises(ValueError, match="auxiliary head needs feature maps of at least 5"):
        NASNet(replace(TINY, input_size=8))
    assert isinstance(NASNet(replace(TINY, input_size=8, auxiliary=False)), nn.Module)
