"""Which part of an image speaks for a label.

cam         mean pooling and a linear head: the head's weights over the last feature map (Zhou et al. 2016, section 2).
            Exact: the mean of the map and the label's bias are the logit
grad-cam    any other head over a convolutional map: channels weighted by the logit's mean gradient (Selvaraju et al.
            2017, section 3)
occlusion   any other network: how far the logit falls when a patch is grey (Zeiler and Fergus 2014, section 4.2)

Dimension letters: B batch, C channels, H height, W width, S input side, K classes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vision_zoo.head import Cut, averaged_map, can_cut, cut

METHODS = ("cam", "grad-cam", "occlusion")
PATCHES = 7  # a side, of occlusion: 49 further passes in one batch


@dataclass(frozen=True)
class Attribution:
    """map: float32 (H, W), larger where more speaks for label `index`; in logits, for grad-cam to a positive factor."""

    logits: Tensor  # (K,)
    index: int
    map: Tensor
    method: str


def attribute(model: nn.Module, image: Tensor, index: int | None = None) -> Attribution:
    """One normalised image (3, S, S) -> what speaks for the label `index`; None: for the most probable one.

    Raises ValueError for an index that is no label's.
    """
    # Modes that the caller runs in must not reach the gradient of grad-cam, nor may inference tensors.
    with torch.inference_mode(False), torch.no_grad():
        x = image.detach().clone()[None]
        if not can_cut(model):
            return _occlusion(model, x, index)
        halves = cut(model)
        features: object = halves.trunk(x)
        if not isinstance(features, Tensor) or features.ndim != 4:  # several maps, or tokens
            return _occlusion(model, x, index)
        averaged = averaged_map(halves, features)
        if averaged is not None and isinstance(halves.head, nn.Linear):
            return _cam(halves.head, averaged, index)
        return _grad_cam(halves, features, index)


def _cam(head: nn.Linear, features: Tensor, index: int | None) -> Attribution:
    """features: (1, C, H, W), of which the head reads the mean."""
    logits = head(features.mean((2, 3)))[0]
    chosen = _choose(logits, index)
    return Attribution(logits, chosen, torch.einsum("c,chw->hw", head.weight[chosen], features[0]), "cam")


def _grad_cam(halves: Cut, features: Tensor, index: int | None) -> Attribution:
    with torch.enable_grad():
        features = features.detach().requires_grad_()
        logits = halves.head(halves.pool(features))[0]
        chosen = _choose(logits, index)
        (gradient,) = torch.autograd.grad(logits[chosen], features)
    weights = gradient.mean((2, 3), keepdim=True)
    found = F.relu((weights * features.detach()).sum(1))[0]
    return Attribution(logits.detach(), chosen, found, "grad-cam")


def _occlusion(model: nn.Module, x: Tensor, index: int | None) -> Attribution:
    """x: (1, 3, S, S). Grey is zero, the mean of normalised pixels."""
    side = x.shape[-1]
    count = min(PATCHES, side)
    edges = [round(place * side / count) for place in range(count + 1)]
    covered = x.repeat(count * count, 1, 1, 1)
    for row in range(count):
        for column in range(count):
            covered[row * count + column, :, edges[row] : edges[row + 1], edges[column] : edges[column + 1]] = 0
    logits = model(x)[0]
    chosen = _choose(logits, index)
    fall = logits[chosen] - model(covered)[:, chosen]
    return Attribution(logits, chosen, fall.view(count, count), "occlusion")


def _choose(logits: Tensor, index: int | None) -> int:
    if index is None:
        return int(logits.argmax())
    if not 0 <= index < len(logits):
        raise ValueError(f"label index {index} must be 0 to {len(logits) - 1}")
    return index


def overlay(pixels: Tensor, found: Tensor) -> bytes:
    """The network's input, uint8 (3, S, S), under the map (H, W) as a PNG: what speaks for the label turns red."""
    positive = found.float().clamp_min(0)
    scaled = positive / positive.max().clamp_min(1e-12)
    side = pixels.shape[1:]
    heat = F.interpolate(scaled[None, None], side, mode="bilinear", align_corners=False)[0]  # (1, S, S)
    red = torch.tensor([255.0, 0.0, 0.0]).view(3, 1, 1)
    mixed = pixels.float() * (1 - 0.6 * heat) + 0.6 * heat * red
    shown = mixed.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(shown)).save(buffer, "PNG")
    return buffer.getvalue()
