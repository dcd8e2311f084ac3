"""Which parameters learn, when, and how fast: frozen backbones, layer-wise learning rates, frozen batch norms.

Source: gradual unfreezing and layer-wise rates, Howard and Ruder 2018, section 3.2; the decay by layer, Clark et al.
2020 (ELECTRA), appendix. B batch, S side, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.vision_initial import head_names
from vision_zoo.nasnet import NASNet

TUNES = ("full", "gradual", "head")


@dataclass(frozen=True)
class FinetuneOptions:
    """tune "head": a linear probe, nothing but the classifier learns; "gradual": so for the first `unfreeze_after`
    epochs, then everything; "full": everything. A layer learns at `layer_decay` times the rate of the next one."""

    tune: str = "full"
    unfreeze_after: int = 1
    layer_decay: float = 1.0
    freeze_batch_norm: bool = False

    def __post_init__(self) -> None:
        if self.tune not in TUNES:
            raise ValueError(f"tune {self.tune!r} is unknown; choose from {TUNES}")
        if self.unfreeze_after < 1:
            raise ValueError(f"unfreeze_after {self.unfreeze_after} must be at least 1 epoch")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay {self.layer_decay} must be above 0 and at most 1")

    def frozen(self, epoch: int) -> bool:
        """Whether the backbone rests in that epoch, counted from 0."""
        return self.tune == "head" or (self.tune == "gradual" and epoch < self.unfreeze_after)


def prepare_epoch(network: nn.Module, options: FinetuneOptions, epoch: int) -> None:
    """Sets which parameters learn and which modules are in training mode; a function of the epoch, so of no history.

    A frozen backbone is in evaluation mode: without dropout, and its batch norms use the statistics that they have.
    """
    frozen = options.frozen(epoch)
    network.train()
    if frozen:
        network.eval()
        for head in _head_modules(network):
            head.train()
    if options.tune != "full":
        heads = head_names(network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not frozen or name.startswith(heads))
    if options.freeze_batch_norm:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def parameter_groups(
    network: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """For an optimiser: those of the same rate and decay together. No weight decay on biases, norms and what a model of
    timm excludes itself."""
    depths = layer_depths(network) if layer_decay < 1 else {}
    deepest = max(depths.values(), default=0)
    excluded: Iterable[str] = getattr(network, "no_weight_decay", set)()
    groups: dict[tuple[bool, int], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and name not in excluded
        depth = depths.get(name, deepest)
        group = {
            "params": [],
            "weight_decay": weight_decay if decays else 0.0,
            "lr": learning_rate * layer_decay ** (deepest - depth),
        }
        groups.setdefault((not decays, depth), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_depths(network: nn.Module) -> dict[str, int]:
    """Of each parameter the layer that it is in, from 0 at the input; the heads are the last. Raises ValueError."""
    if isinstance(network, NASNet):
        return {name: _nasnet_depth(name, len(network.cells)) for name, _ in network.named_parameters()}
    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        raise ValueError(f"--layer-decay: {type(network).__name__} does not say how its layers follow one another")
    from timm.models import group_parameters  # seconds to import

    found = group_parameters(network, matcher(coarse=False), reverse=True)
    return {str(name): int(depth) for name, depth in found.items()}


def _nasnet_depth(name: str, cells: int) -> int:
    """stem 0, cell i at i + 1, the heads behind the last cell."""
    first, second, *_ = name.split(".")
    if first == "stem":
        return 0
    return int(second) + 1 if first == "cells" else cells + 1


def _head_modules(network: nn.Module) -> list[nn.Module]:
    named = [name.removesuffix(".") for name in head_names(network)]
    return [module for name, module in network.named_modules() if name in named]
