"""The layer names of keras.applications' NASNetMobile and NASNetLarge, and how their files hold tensors.

Source: keras/applications/nasnet.py. A tensor's name here is `layer/variable`, for example `stem_conv1/kernel`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vision_zoo.cells import Cell, FactorisedReduction
from vision_zoo.nasnet import NASNet
from vision_zoo.operations import Unit

BATCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_SEPARABLES = {  # number of our operation -> the layers' place
    False: {0: "left1", 1: "right1", 2: "left2", 3: "right2", 8: "left5"},
    True: {0: "left1", 1: "right1", 3: "right2", 5: "right3", 8: "left4"},
}


def read_keras(file: Path) -> dict[str, Tensor]:
    """An HDF5 file of weights, or of a whole model -> `layer/variable` -> tensor in torch's order of axes.

    Raises ValueError.
    """
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError("Keras files need the package h5py: pip install h5py") from None
    try:
        with h5py.File(file, "r") as content:
            layers = content.get("model_weights", content)
            found = {f"{layer}/{_variable(name)}": value for layer in layers for name, value in _arrays(layers[layer])}
    except FileNotFoundError:
        raise ValueError(f"weights file {file} does not exist") from None
    except OSError as error:
        raise ValueError(f"{file} is not an HDF5 file: {str(error).splitlines()[0]}") from error
    if not any(name.startswith("stem_conv1/") for name in found):
        raise ValueError(f"{file} has no layer 'stem_conv1': it must be a file of NASNet weights that names its layers")
    return {name: _to_torch(name.rpartition("/")[2], value) for name, value in found.items()}


def keras_names(model: NASNet) -> dict[str, str]:
    """Our name -> theirs, of every tensor of `model` outside the auxiliary head, save the batch norms' counts."""
    names = {"stem.0.weight": "stem_conv1/kernel"} | _norm("stem.1", "stem_bn1")
    if model.num_classes:
        names |= {"classifier.weight": "predictions/kernel", "classifier.bias": "predictions/bias"}
    for index, (cell, block) in enumerate(zip(model.cells, _blocks(model.config.cells), strict=True)):
        assert isinstance(cell, Cell)
        names |= _cell(f"cells.{index}", block, cell, cell.genotype == model.genotype.reduction)
    return names


def _blocks(cells: int) -> Iterator[str]:
    """The names of the cells: the numbers of normal ones go on over a reduction, which takes one itself."""
    yield from ("stem_1", "stem_2")
    for stage in range(3):
        if stage:
            yield f"reduce_{stage * cells}"
        yield from (str(stage * cells + (stage > 0) + place) for place in range(cells))


def _cell(ours: str, block: str, cell: Cell, reduction: bool) -> dict[str, str]:
    kind = "reduction" if reduction else "normal"
    names = {f"{ours}.squeeze.pointwise.weight": f"{kind}_conv_1_{block}/kernel"}
    names |= _norm(f"{ours}.squeeze.norm", f"{kind}_bn_1_{block}")
    if isinstance(cell.adjust, FactorisedReduction):
        names |= {f"{ours}.adjust.even.weight": f"adjust_conv_1_{block}/kernel"}
        names |= {f"{ours}.adjust.odd.weight": f"adjust_conv_2_{block}/kernel"}
    elif isinstance(cell.adjust, Unit):
        names |= {f"{ours}.adjust.pointwise.weight": f"adjust_conv_projection_{block}/kernel"}
    if isinstance(cell.adjust, FactorisedReduction | Unit):
        names |= _norm(f"{ours}.adjust.norm", f"adjust_bn_{block}")
    for operation, place in _SEPARABLES[reduction].items():
        for index in (0, 1):
            unit, layer = f"{ours}.operations.{operation}.{index}", f"{kind}_{place}_{block}"
            for half in ("depthwise", "pointwise"):
                names[f"{unit}.{half}.weight"] = f"separable_conv_{index + 1}_{layer}/{half}_kernel"
            names |= _norm(f"{unit}.norm", f"separable_conv_{index + 1}_bn_{layer}")
    return names


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{field}": f"{theirs}/{variable}" for field, variable in BATCH_NORM.items()}


def _variable(name: str) -> str:
    """`scope/stem_conv1/kernel:0` -> `kernel`; the scopes before it differ between versions of Keras."""
    return name.rpartition("/")[2].partition(":")[0]


def _arrays(group: Any) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The arrays below an HDF5 group, wherever they lie in it."""
    found: list[tuple[str, np.ndarray[Any, Any]]] = []
    group.visititems(lambda name, item: found.append((name, item[()])) if hasattr(item, "dtype") else None)
    yield from found


def _to_torch(variable: str, value: np.ndarray[Any, Any]) -> Tensor:
    """(rows, columns, in, out) -> (out, in, rows, columns); depthwise (rows, columns, in, 1) -> (in, 1, rows, columns);
    dense (in, out) -> (out, in)."""
    tensor = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    if tensor.ndim == 4:
        order = (2, 3, 0, 1) if variable == "depthwise_kernel" else (3, 2, 0, 1)
        return tensor.permute(order).contiguous()
    return tensor.t().contiguous() if tensor.ndim == 2 else tensor
