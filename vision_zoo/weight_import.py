"""Weights that others have trained, in the networks of this package.

A NASNet takes its own state dict, those of timm's nasnetalarge and of Cadene's pretrainedmodels (one layout, see
`torch_names`), and the HDF5 files of keras.applications (see `keras_names`). The layout is told by the names.

Padding stays the network's setting. All published weights were trained with TensorFlow's, which `padding="same"` is;
at the published image sizes Cadene's code computes the same, timm's computes "timm", and Keras' computes "keras".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vision_zoo.cells import NASNET_A
from vision_zoo.keras_names import keras_names, read_keras
from vision_zoo.nasnet import NASNet
from vision_zoo.torch_names import torch_names

KERAS_ENDINGS = (".h5", ".hdf5")
_CLASSIFIER = ("classifier.weight", "classifier.bias")


def read_weights(file: Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors, Keras .h5 or torch file (tensors only: no code in it is ever run)."""
    try:
        if file.suffix in KERAS_ENDINGS:
            return read_keras(file)
        if file.suffix == ".safetensors":
            return load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"weights file {file} does not exist") from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is not a file of weights: {str(error).splitlines()[0]}") from error
    except Exception as error:  # torch.load passes on the unpickler's own errors
        raise ValueError(f"{file} holds more than tensors, which is refused: {str(error).splitlines()[0]}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file} holds no state dict (names to tensors)")
    return content


def fit_weights(model: NASNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of any known layout -> a state dict of `model` for load_state_dict.

    What transfer needs is forgiven: a classifier of another number of classes, or none, and an auxiliary head that the
    weights lack keep the model's own tensors; one that only the weights have is left out. Of 1001 classes for a model
    of 1000 the first, the background, is left out. Other missing, unknown and misshapen tensors raise ValueError.
    """
    given = _rename(model, weights)
    own = model.state_dict()
    for name in _CLASSIFIER:
        if name in given and name in own and len(given[name]) == 1001 and len(own[name]) == 1000:
            given[name] = given[name][1:]
    if any(name not in given or name not in own or given[name].shape != own[name].shape for name in _CLASSIFIER):
        given = {name: value for name, value in given.items() if name not in _CLASSIFIER}
    fresh = {name: value for name, value in own.items() if name in _CLASSIFIER or _is_auxiliary(name)}
    given = {name: value for name, value in given.items() if not _is_auxiliary(name) or _fits(value, own.get(name))}
    if any(name not in given for name in fresh if _is_auxiliary(name)):  # a head is taken whole or not at all
        given = {name: value for name, value in given.items() if not _is_auxiliary(name)}
    # Checkpoints from before torch counted batches have no counts, nor has Keras.
    counts = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    made = counts | fresh | given
    check_names_and_shapes(own, made)
    return made


def check_names_and_shapes(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """ValueError unless `given` has exactly the names and shapes of `own`."""
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unknown:
        raise ValueError(f"weights do not fit: missing {_some(missing)}; unknown {_some(unknown)}")
    for name, value in given.items():
        if value.shape != own[name].shape:
            raise ValueError(f"weights do not fit: {name} is {list(value.shape)}, expected {list(own[name].shape)}")


def _rename(model: NASNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of any layout, under our names; those that have none here keep theirs, to be reported."""
    keras, torch_layout = "stem_conv1/kernel" in weights, "conv0.conv.weight" in weights
    if not keras and not torch_layout:
        return dict(weights)
    if model.genotype != NASNET_A or model.config.stem != "imagenet":
        raise ValueError(f"these weights are of NASNet-A with the imagenet stem, not of a {model.config.stem} network")
    names = keras_names(model) if keras else torch_names(model, weights)
    theirs = {name: ours for ours, name in names.items()}
    classifiers = ("last_linear.", "predictions/")  # which a network without one has no name for
    return {theirs.get(name, name): value for name, value in weights.items() if _known(name, theirs, classifiers)}


def _known(name: str, theirs: Mapping[str, str], classifiers: tuple[str, ...]) -> bool:
    return name in theirs or not name.startswith(classifiers)


def _fits(value: Tensor, own: Tensor | None) -> bool:
    return own is not None and value.shape == own.shape


def _is_auxiliary(name: str) -> bool:
    return name.startswith("auxiliary.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
