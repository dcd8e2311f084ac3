"""The tensor names of timm's nasnetalarge and of Cadene's pretrainedmodels, for NASNet-A with the ImageNet stem.

Both have one layout; timm's comes from Cadene's. They differ in how the normal cells are numbered: the mobile network's
leave gaps (0-3, 6-9, 12-15), so the order counts.
Sources: timm/models/nasnet.py; pretrainedmodels/models/nasnet.py and nasnet_mobile.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torch import nn

from vision_zoo.cells import Cell, FactorisedReduction
from vision_zoo.nasnet import NASNet
from vision_zoo.operations import Unit

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_NORMAL = re.compile(r"cell_(\d+)\.")
_SEPARABLES = {  # by block and side
    False: ("0_left", "0_right", "1_left", "1_right", "4_left"),
    True: ("0_left", "0_right", "1_right", "2_right", "4_left"),
}


def torch_names(model: NASNet, given: Iterable[str]) -> dict[str, str]:
    """Our name -> theirs, of every tensor of `model` outside the auxiliary head; `given` are all names of theirs."""
    names = {"stem.0.weight": "conv0.conv.weight"} | _norm("stem.1", "conv0.bn")
    if model.num_classes:
        names |= {f"classifier.{field}": f"last_linear.{field}" for field in ("weight", "bias")}
    cells = zip(model.cells, _cell_names(model, given), strict=True)
    for index, (cell, theirs) in enumerate(cells):
        assert isinstance(cell, Cell)
        names |= _cell(f"cells.{index}", theirs, cell, cell.genotype == model.genotype.reduction)
    return names


def _cell_names(model: NASNet, given: Iterable[str]) -> Iterator[str]:
    numbers = sorted({int(match[1]) for name in given if (match := _NORMAL.match(name))})
    wanted, stages = 3 * model.config.cells, model.config.cells
    if len(numbers) != wanted:
        raise ValueError(f"weights hold {len(numbers)} normal cells; this network has {wanted}")
    yield from ("cell_stem_0", "cell_stem_1")
    for place, number in enumerate(numbers):
        if place in (stages, 2 * stages):
            yield f"reduction_cell_{place // stages - 1}"
        yield f"cell_{number}"


def _cell(ours: str, theirs: str, cell: Cell, reduction: bool) -> dict[str, str]:
    names = _unit(f"{ours}.squeeze", f"{theirs}.conv_1x1")
    if isinstance(cell.adjust, FactorisedReduction):
        names |= {f"{ours}.adjust.even.weight": f"{theirs}.path_1.conv.weight"}
        names |= {f"{ours}.adjust.odd.weight": f"{theirs}.path_2.conv.weight"}
        names |= _norm(f"{ours}.adjust.norm", f"{theirs}.final_path_bn")
    elif isinstance(cell.adjust, Unit):
        names |= _unit(f"{ours}.adjust", f"{theirs}.conv_prev_1x1")
    else:
        assert cell.adjust is None or isinstance(cell.adjust, nn.Identity)
    for place in _SEPARABLES[reduction]:
        operation = 2 * int(place[0]) + place.endswith("right")
        names |= _separable(f"{ours}.operations.{operation}", f"{theirs}.comb_iter_{place}")
    return names


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{field}": f"{theirs}.{field}" for field in BATCH_NORM}


def _unit(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.pointwise.weight": f"{theirs}.conv.weight"} | _norm(f"{ours}.norm", f"{theirs}.bn")


def _separable(ours: str, theirs: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for index in (0, 1):
        for half in ("depthwise", "pointwise"):
            names[f"{ours}.{index}.{half}.weight"] = f"{theirs}.separable_{index + 1}.{half}_conv2d.weight"
        names |= _norm(f"{ours}.{index}.norm", f"{theirs}.bn_sep_{index + 1}")
    return names
