"""Weights to start from: a bundle, a checkpoint of training.fit vision, or a file of weights; with other labels the
classifier starts afresh."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vision_zoo import bundle, zoo
from vision_zoo.nasnet import NASNet
from vision_zoo.transforms import Preprocessing
from vision_zoo.weight_download import PUBLISHED, download
from vision_zoo.weight_import import fit_weights

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
    """A bundle's folder, or the name of a shipped one, or a checkpoint or file of weights (only tensors and plain
    values are read). ValueError."""
    path = Path(source)
    if (folder := bundle.locate(source)) is not None:
        found = bundle.load(folder)
        return Initial(source, found.model.state_dict(), found.architecture, found.preprocessing, found.labels)
    if path.suffix == ".ckpt" and (checkpoint := _checkpoint(path)) is not None:
        return checkpoint
    return Initial(source, zoo.read_weights(path))


def read_published(backbone: str) -> Initial:
    """What the authors of one of our NASNets have published, downloaded once. ValueError where there is nothing."""
    if backbone not in PUBLISHED:
        raise ValueError(f"{backbone} has no published weights; choose from {sorted(PUBLISHED)}, or give a file")
    return Initial(zoo.PRETRAINED, zoo.read_weights(download(PUBLISHED[backbone])))


def load_initial(network: nn.Module, initial: Initial, labels: tuple[str, ...]) -> list[str]:
    """Copies what fits and returns the names that keep their fresh weights: of the heads only, else ValueError.

    Logits of the same number but of other labels, where the source names its own, are not taken over. A NASNet takes
    every layout that vision_zoo.weight_import knows.
    """
    heads, weights = head_names(network), initial.weights
    if initial.labels not in (None, labels):
        weights = {name: value for name, value in weights.items() if not name.startswith(heads)}
    own = network.state_dict()
    try:
        fitted = fit_weights(network, weights) if isinstance(network, NASNet) else zoo.with_heads(own, weights, heads)
        zoo.load_weights(network, fitted)
    except ValueError as error:
        raise ValueError(f"--initial {initial.source}: {error}") from None
    # What was kept is the network's own memory, what was taken over is not.
    return sorted(name for name in own if name.startswith(heads) and fitted[name].data_ptr() == own[name].data_ptr())


def head_names(network: nn.Module) -> tuple[str, ...]:
    """Prefixes of the parameters whose shape depends on the classes."""
    if isinstance(network, NASNet):
        return ("classifier.", "auxiliary.")
    return zoo.timm_heads(network)


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
