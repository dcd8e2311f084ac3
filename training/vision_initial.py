"""Weights to start from: a bundle, a checkpoint of training.fit vision, or a file of weights; with other labels the
classifier starts afresh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vision_zoo import bundle, zoo
from vision_zoo.nasnet import NASNet
from vision_zoo.transforms import Preprocessing

NETWORK = "network."  # where VisionModule keeps the plain network


@dataclass(frozen=True)
class Initial:
    """Weights, and what else their source knows: None where it is a file of weights alone."""

    source: str
    weights: dict[str, Tensor]
    architecture: zoo.Architecture | None = None
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None


def read_initial(source: str) -> Initial:
    """A bundle's folder, or a checkpoint or file of weights (only tensors and plain values are read). ValueError."""
    path = Path(source)
    if path.is_dir():
        found = bundle.load(path)
        return Initial(source, found.model.state_dict(), found.architecture, found.preprocessing, found.labels)
    if path.suffix == ".ckpt" and (checkpoint := _checkpoint(path)) is not None:
        return checkpoint
    return Initial(source, zoo.read_weights(path))


def load_initial(network: nn.Module, initial: Initial, labels: tuple[str, ...]) -> list[str]:
    """Copies what fits and returns the names that keep their fresh weights: of the heads only, else ValueError.

    Logits of the same number but of other labels, where the source names its own, are not taken over.
    """
    own, heads = network.state_dict(), head_names(network)
    others = initial.labels is not None and initial.labels != labels
    weights = {
        name: value
        for name, value in initial.weights.items()
        if not name.startswith(heads) or (not others and name in own and own[name].shape == value.shape)
    }
    afresh = sorted(own.keys() - weights.keys())
    # A head is one thing: half of an old one under new weights is worse than none.
    for head in heads:
        if any(name.startswith(head) for name in afresh):
            weights = {name: value for name, value in weights.items() if not name.startswith(head)}
    afresh = sorted(own.keys() - weights.keys())
    kept = {name: own[name] for name in afresh if name.startswith(heads)}
    try:
        zoo.load_weights(network, {**weights, **kept})
    except ValueError as error:
        raise ValueError(f"--initial {initial.source}: {error}") from None
    return sorted(kept)


def head_names(network: nn.Module) -> tuple[str, ...]:
    """Prefixes of the parameters whose shape depends on the classes."""
    if isinstance(network, NASNet):
        return ("classifier.", "auxiliary.")
    settings: Mapping[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    named = settings.get("classifier") or ()
    names = (named,) if isinstance(named, str) else tuple(named)
    if not names:
        raise ValueError(f"{type(network).__name__} does not say which of its layers is the classifier")
    return tuple(f"{name}." for name in names)


def _checkpoint(path: Path) -> Initial | None:
    """None where the file is no checkpoint of training.fit vision; zoo.read_weights then says what it is."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        described, state = content["hyper_parameters"], content["state_dict"]
        architecture = bundle.architecture_from_json(described["architecture"])
        preprocessing, labels = Preprocessing(**described["preprocessing"]), tuple(described["labels"])
    except Exception:  # whatever torch's unpickler raises
        return None
    weights = {name.removeprefix(NETWORK): value for name, value in state.items() if name.startswith(NETWORK)}
    return Initial(str(path), weights, architecture, preprocessing, labels)
