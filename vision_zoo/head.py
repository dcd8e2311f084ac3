"""A network cut in two before its pooling: the last feature map, and what makes logits of it.

Dimension letters: B batch, C channels, H height, W width, D embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Cut:
    """trunk: images (B, 3, S, S) -> features, (B, C, H, W) in convolutional networks. pool: features -> (B, D).

    head: (B, D) -> logits (B, K). head(pool(trunk(images))) is the network.
    """

    trunk: Callable[[Tensor], Tensor]
    pool: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]


def cut(model: nn.Module) -> Cut:
    """The two halves of a NASNet or a model of timm. Raises ValueError for other networks."""
    whole: Any = model
    if all(hasattr(model, name) for name in ("forward_features", "forward_head", "get_classifier")):
        return Cut(whole.forward_features, lambda x: whole.forward_head(x, pre_logits=True), whole.get_classifier())
    raise ValueError(f"{type(model).__name__} has no embeddings; choose a NASNet or a model of timm")


def can_cut(model: nn.Module) -> bool:
    try:
        cut(model)
    except ValueError:
        return False
    return True


def embed(model: nn.Module, images: Tensor) -> Tensor:
    """Normalised images (B, 3, S, S) -> pooled features (B, D). Raises ValueError."""
    halves = cut(model)
    return halves.pool(halves.trunk(images))


def averaged_map(halves: Cut, features: Tensor) -> Tensor | None:
    """The map (B, C, H, W) whose spatial mean is what the head reads; None where the pooling is no mean of one.

    Found by comparison, so that it holds for every network whose pooling is a mean, with or without a ReLU before it.
    """
    if features.ndim != 4:
        return None
    pooled = halves.pool(features)
    for each in (features, F.relu(features)):
        mean = each.mean((2, 3))
        if mean.shape == pooled.shape and torch.allclose(mean, pooled, rtol=1e-3, atol=1e-5):
            return each
    return None
