"""Our NASNet-A large and timm's nasnetalarge give the same logits for the same (random) weights."""

from __future__ import annotations

import pytest
import torch
from timm.models.nasnet import NASNetALarge
from torch import Tensor, nn

from vision_zoo.nasnet import LARGE, NASNet, NASNetConfig

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
NORMAL_SEPARABLES = ("0_left", "0_right", "1_left", "1_right", "4_left")
REDUCTION_SEPARABLES = ("0_left", "0_right", "1_right", "2_right", "4_left")


def norm_names(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{field}": f"{theirs}.{field}" for field in BATCH_NORM}


def unit_names(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.pointwise.weight": f"{theirs}.conv.weight"} | norm_names(f"{ours}.norm", f"{theirs}.bn")


def separable_names(ours: str, theirs: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for index in (0, 1):
        for half in ("depthwise", "pointwise"):
            names[f"{ours}.{index}.{half}.weight"] = f"{theirs}.separable_{index + 1}.{half}_conv2d.weight"
        names |= norm_names(f"{ours}.{index}.norm", f"{theirs}.bn_sep_{index + 1}")
    return names


def cell_names(ours: str, theirs: str, reduction: bool, previous: str) -> dict[str, str]:
    """previous: how the cell adjusts its previous layer, "none", "halved" or "projected"."""
    names = unit_names(f"{ours}.squeeze", f"{theirs}.conv_1x1")
    if previous == "halved":
        names |= {f"{ours}.adjust.even.weight": f"{theirs}.path_1.conv.weight"}
        names |= {f"{ours}.adjust.odd.weight": f"{theirs}.path_2.conv.weight"}
        names |= norm_names(f"{ours}.adjust.norm", f"{theirs}.final_path_bn")
    elif previous == "projected":
        names |= unit_names(f"{ours}.adjust", f"{theirs}.conv_prev_1x1")
    for place in REDUCTION_SEPARABLES if reduction else NORMAL_SEPARABLES:
        operation = 2 * int(place[0]) + (place[2:] == "right")
        names |= separable_names(f"{ours}.operations.{operation}", f"{theirs}.comb_iter_{place}")
    return names


def timm_names(cells: int) -> dict[str, str]:
    """Our name -> timm's name, of every tensor."""
    names = {"stem.0.weight": "conv0.conv.weight"} | norm_names("stem.1", "conv0.bn")
    names |= {f"classifier.{field}": f"last_linear.{field}" for field in ("weight", "bias")}
    names |= cell_names("cells.0", "cell_stem_0", True, "none")
    names |= cell_names("cells.1", "cell_stem_1", True, "halved")
    index = 2
    for number in range(3 * cells):
        if number in (cells, 2 * cells):
            reduction = f"reduction_cell_{number // cells - 1}"
            names |= cell_names(f"cells.{index}", reduction, True, "projected")
            index += 1
        # The cell after a reduction, and after the stem, reads a previous layer of twice its resolution.
        previous = "halved" if number % cells == 0 else "projected"
        names |= cell_names(f"cells.{index}", f"cell_{number}", False, previous)
        index += 1
    return names


def random_timm(model: nn.Module) -> dict[str, Tensor]:
    """Weights of a sensible size, batch norms that do something."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(std=0.2)
            layer.running_var.uniform_(0.5, 2.0)
    state: dict[str, Tensor] = model.state_dict()
    return state


def compare(config: NASNetConfig, theirs: NASNetALarge, side: int) -> tuple[Tensor, Tensor]:
    state = random_timm(theirs)
    names = timm_names(config.cells)
    assert sorted(names.values()) == sorted(state), "every tensor of timm's is used once"
    ours = NASNet(config).eval()
    ours.load_state_dict({name: state[theirs_name] for name, theirs_name in names.items()})
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        return ours(images), theirs.eval()(images)


def small(padding: str) -> NASNetConfig:
    return NASNetConfig(
        cells=6,
        filters=192,
        num_classes=7,
        stem="imagenet",
        stem_filters=12,
        skip_reduction_input=True,
        auxiliary=False,
        batch_norm_eps=LARGE.batch_norm_eps,
        padding=padding,
    )


@pytest.mark.parametrize("side", [96, 107, 331])
def test_logits_equal_timms_at_a_small_width(side: int) -> None:
    """All 22 cells, an even and an odd chain of resolutions, and the published one; the width changes no wiring."""
    torch.manual_seed(side)
    ours, theirs = compare(small("timm"), NASNetALarge(7, stem_size=12, num_features=192), side)
    assert theirs.std() > 0.01
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_exact_padding_differs_from_timm() -> None:
    """The mode is needed: counting padding in stride-2 average pools changes the logits."""
    torch.manual_seed(0)
    ours, theirs = compare(small("same"), NASNetALarge(7, stem_size=12, num_features=192), 107)
    assert not torch.allclose(ours, theirs, rtol=1e-2)


def test_names_and_shapes_at_full_size() -> None:
    with torch.device("meta"):
        state = NASNetALarge().state_dict()
        own = NASNet(LARGE).state_dict()
    own = {name: tensor for name, tensor in own.items() if not name.startswith("auxiliary.")}
    names = timm_names(LARGE.cells)
    assert sorted(names) == sorted(own)
    assert all(own[ours].shape == state[theirs].shape for ours, theirs in names.items())
