"""Feature maps at every stride, output strides, gradient checkpointing and heads, as users of timm expect them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.models.nasnet import NASNetALarge
from torch import Tensor, nn

from vision_zoo import zoo
from vision_zoo.feature_maps import FeatureMaps
from vision_zoo.nasnet import LARGE, NASNet, NASNetConfig
from vision_zoo.operations import OPERATIONS, CellOptions, Grid
from vision_zoo.weight_import import fit_weights

MOBILE = NASNetConfig(1, 96, 5, "imagenet", stem_filters=8, auxiliary=False, input_size=64, batch_norm_eps=1e-3)
CIFAR = NASNetConfig(1, 48, 3, drop_path_keep=0.5)


def network(config: NASNetConfig) -> NASNet:
    """Batch norms that do something."""
    torch.manual_seed(0)
    model = NASNet(config)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    return model.eval()


def maps_of(model: NASNet, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        maps = model.forward_intermediates(images, intermediates_only=True)
    assert isinstance(maps, list)
    return maps


@pytest.mark.parametrize("padding", ["same", "timm", "keras"])
@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_dense_operation_holds_the_strided_one(name: str, size: int, padding: str) -> None:
    torch.manual_seed(0)
    options = CellOptions(padding=padding)
    strided = OPERATIONS[name](4, 4, 2, options).eval()
    dense = OPERATIONS[name](4, 4, 2, replace(options, grid=Grid(1, dense=True))).eval()
    dense.load_state_dict(strided.state_dict())
    x = torch.randn(1, 4, size, size + 1)
    with torch.no_grad():
        assert dense(x).shape == x.shape
        assert torch.allclose(dense(x)[..., ::2, ::2], strided(x), atol=1e-5)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("side", [64, 67, 90])
def test_dense_maps_hold_the_strided_ones(side: int, output_stride: int) -> None:
    """Every second (fourth) pixel of a dense map is the strided network's, whatever the side, edges and all."""
    strided = network(MOBILE)
    dense = NASNet(replace(MOBILE, output_stride=output_stride)).eval()
    dense.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, side, side)
    for index, (ours, theirs) in enumerate(zip(maps_of(dense, images), maps_of(strided, images), strict=True)):
        step = max(1, 2 ** (index + 1) // output_stride)
        assert theirs.std() > 0.1
        assert torch.allclose(ours[..., ::step, ::step], theirs, rtol=1e-4, atol=1e-4)
        assert ours.shape[2] >= side / output_stride - 2
    assert [info["reduction"] for info in dense.feature_info] == [min(2**n, output_stride) for n in range(1, 6)]


def test_feature_maps_equal_timms() -> None:
    config = replace(LARGE, filters=96, num_classes=7, stem_filters=12, auxiliary=False, padding="timm")
    theirs: Any = NASNetALarge(7, stem_size=12, num_features=96).eval()
    ours = NASNet(config).eval()
    ours.load_state_dict(fit_weights(ours, theirs.state_dict()))
    images = torch.randn(1, 3, 75, 75)
    with torch.no_grad():
        expected = theirs.forward_intermediates(images, intermediates_only=True)
        final, some = ours.forward_intermediates(images, indices=[0, -1])
        assert torch.allclose(ours.forward_features(images), theirs.forward_features(images), atol=1e-5)
    found = maps_of(ours, images)
    assert len(found) == len(expected) == 5
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert torch.equal(some[0], found[0]) and torch.equal(some[1], found[4]) and torch.equal(final, found[4])


def test_feature_info_says_what_comes_out() -> None:
    images = torch.randn(1, 3, 64, 64)
    for config, count, reductions in ((MOBILE, 5, [2, 16]), (CIFAR, 3, [1, 2])):
        whole = network(config)
        expected = maps_of(whole, images)
        part = FeatureMaps(network(config), (-2, 0))
        with torch.no_grad():
            first, second = part(images)
        assert torch.equal(second, expected[-2]) and torch.equal(first, expected[0]) and len(expected) == count
        assert part.feature_info.channels() == [first.shape[1], second.shape[1]]
        assert part.feature_info.reduction() == reductions
        assert len(part.network.cells) < len(whole.cells), "what is not needed is dropped"


def test_features_by_name() -> None:
    dense = zoo.create_features("nasnet-a-1@96:mobile", (1, 4), output_stride=16)
    assert isinstance(dense, FeatureMaps) and dense.feature_info.reduction() == [4, 16]
    assert [x.shape[2] for x in dense.eval()(torch.randn(1, 3, 64, 64))] == [16, 4]
    theirs = zoo.create_features("timm/test_resnet", (0, 1)).eval()
    assert len(theirs(torch.randn(1, 3, 32, 32))) == 2


@pytest.mark.parametrize("indices", [(3,), (), (-4,), 4])
def test_unknown_maps_are_named(indices: int | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="there are 3, 0 to 2"):
        network(CIFAR).forward_intermediates(torch.randn(1, 3, 32, 32), indices)


def test_checkpointing_changes_nothing_but_memory() -> None:
    """Gradients, drawn paths and running statistics are those of the plain network."""
    outcomes: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    images = torch.randn(4, 3, 32, 32)
    for enable in (False, True):
        model = network(CIFAR).train()
        model.set_grad_checkpointing(enable)
        model.schedule_drop_path(1.0)
        torch.manual_seed(1)
        logits, auxiliary = model.forward_with_auxiliary(images)
        assert auxiliary is not None
        (logits.square().sum() + auxiliary.square().sum()).backward()
        outcomes.append(({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, model.state_dict()))
    (plain, plain_state), (again, again_state) = outcomes
    assert plain.keys() == again.keys() and len(plain) > 100
    assert all(torch.allclose(plain[name], again[name], rtol=1e-4, atol=1e-6) for name in plain)
    assert all(torch.equal(plain_state[name], again_state[name]) for name in plain_state)


def test_checkpointing_keeps_fewer_tensors() -> None:
    kept = []
    for enable in (False, True):
        model, count = network(CIFAR).train(), 0
        model.set_grad_checkpointing(enable)

        def pack(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 3, 32, 32)).sum()
        kept.append(count)
    assert kept[1] < kept[0] / 3


def test_heads_as_in_timm() -> None:
    model = network(replace(CIFAR, auxiliary=True))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.forward_features(images)
        pooled = model.forward_head(features, pre_logits=True)
        assert features.min() == 0
        assert torch.equal(pooled, model.embed(images)) and torch.equal(pooled, features.mean((2, 3)))
        assert torch.equal(model(images), model.get_classifier()(pooled))
        model.reset_classifier(7)
        assert model(images).shape == (2, 7) and model.config.num_classes == model.num_classes == 7
        auxiliary = model.forward_with_auxiliary(images)[1]
        assert auxiliary is not None and auxiliary.shape == (2, 7)
        model.reset_classifier(0)
        assert torch.equal(model(images), pooled) and model.auxiliary is None
        model.reset_classifier(0, "")
        assert torch.equal(model(images), features)
    with pytest.raises(ValueError, match="global_pool 'max' must be one of"):
        model.reset_classifier(3, "max")


def test_no_classes_are_embeddings() -> None:
    model = zoo.create("nasnet-a-1@48", num_classes=0).eval()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 48)
    assert zoo.create("timm/test_resnet", num_classes=0).eval()(torch.randn(1, 3, 32, 32)).ndim == 2


def test_timm_finds_our_networks() -> None:
    import vision_zoo.timm_models  # noqa: F401 - registers

    assert timm.list_models("earsight*") == [f"earsight_nasnet_a_{name}" for name in ("cifar", "large", "mobile")]
    with torch.device("meta"):
        maps: Any = timm.create_model("earsight_nasnet_a_mobile", features_only=True, output_stride=16)
        one: Any = timm.create_model("earsight_nasnet_a_cifar", num_classes=4, in_chans=1, drop_path_rate=0.1)
    assert maps.feature_info.channels() == [32, 44, 264, 528, 1056]
    assert maps.feature_info.reduction() == [2, 4, 8, 16, 16]
    assert one.config.num_classes == 4 and one.stem[0].weight.shape[1] == 1
    assert one.cells[-1].drop_path.keep == pytest.approx(0.9)


def test_wrong_output_strides_name_the_choices() -> None:
    with pytest.raises(ValueError, match=r"output_stride 12 is unknown; choose from \(8, 16, 32\)"):
        replace(MOBILE, output_stride=12)
