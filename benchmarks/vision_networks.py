"""Two networks with the same weights: one of timm as its user makes it, and ours as a bundle that is served."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vision_zoo import bundle, zoo
from vision_zoo.bundle import VisionBundle
from vision_zoo.nasnet import LARGE, NASNet
from vision_zoo.transforms import Preprocessing, normalise
from vision_zoo.weight_import import fit_weights, read_weights

NASNET_LARGE = "nasnetalarge"  # the one network that timm and this package both have
CLASSES = 1000
CARD = "# Weights of timm\n\nMade by benchmarks.vision to be timed; random unless they were given.\n"


def create_theirs(name: str, weights: Path | None = None, filters: int = LARGE.filters) -> nn.Module:
    """timm.create_model(name).eval(), in fp32 and contiguous. ValueError for a name or a file that does not fit.

    weights: a state dict of it, with as many classes as there are in it; None: random ones. filters: of the last layer,
    for nasnetalarge only; fewer than the published 4032 make a small network of the same shape.
    """
    import timm  # takes seconds

    zoo.architecture(f"timm/{name}")  # names what is wrong
    if filters != LARGE.filters and name != NASNET_LARGE:
        raise ValueError(f"{filters} filters: only {NASNET_LARGE} can be made smaller, not {name}")
    settings: dict[str, Any] = {"num_features": filters} if name == NASNET_LARGE else {}
    given = None if weights is None else read_weights(weights)
    model: nn.Module = timm.create_model(
        name, num_classes=CLASSES if given is None else _classes(name, given), **settings
    )
    if given is not None:
        zoo.load_weights(model, given)
    return model.eval().requires_grad_(False)


def _classes(name: str, weights: dict[str, Tensor]) -> int:
    import timm

    settings = timm.get_pretrained_cfg(name)
    bias = f"{settings.classifier if settings else ''}.bias"
    if bias not in weights:
        raise ValueError(f"the weights hold no {bias}, so they are not those of timm's {name}")
    return len(weights[bias])


def create_ours(theirs: nn.Module, folder: Path, size: int | None = None) -> VisionBundle:
    """The bundle of the same network with the same weights, for images of `size` pixels (None: the published size)."""
    settings: Any = theirs
    name, classes = str(settings.pretrained_cfg["architecture"]), int(settings.num_classes)
    if name == NASNET_LARGE:
        # timm counts padding in the averages of its pools of stride 2, so these weights mean that here too
        config = replace(LARGE, filters=settings.num_features, num_classes=classes, padding="timm", auxiliary=False)
        architecture: zoo.Architecture = zoo.NASNetArchitecture(replace(config, input_size=size or LARGE.input_size))
    else:
        architecture = zoo.TimmArchitecture(name, classes)
    model, weights = zoo.build(architecture), theirs.state_dict()
    zoo.load_weights(model, fit_weights(model, weights) if isinstance(model, NASNet) else weights)
    preprocessing = zoo.preprocessing(architecture)
    return bundle.save(
        folder,
        name=name.replace("_", "-"),
        version="1",
        model=model,
        labels=tuple(str(label) for label in range(classes)),
        preprocessing=replace(preprocessing, size=size or preprocessing.size),
        card=CARD,
    )


@torch.no_grad()
def spread(model: nn.Module, pixels: Tensor, preprocessing: Preprocessing) -> None:
    """Random weights whose answers depend on the image, as fresh ones hardly do.

    Over these pixels, uint8 (B, 3, S, S), every batch norm then has mean 0 and variance 1, and so has every logit.
    """
    images = normalise(pixels, preprocessing)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.train().momentum = None  # the plain mean
    model(images)
    network: Any = model.eval()
    classifier, logits = network.get_classifier(), network(images)
    if isinstance(classifier, nn.Linear):
        gain = 1 / logits.std(dim=0).clamp(min=1e-6)
        classifier.weight.mul_(gain[:, None])
        classifier.bias.copy_((classifier.bias - logits.mean(dim=0)) * gain)
