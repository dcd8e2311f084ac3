"""One temperature that makes a classifier's probabilities honest.

Source: Guo et al.: On calibration of modern neural networks, 2017, section 4. N images, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Where all are right, or none, the likelihood has no maximum; few images must not make a network absolutely sure.
LOWEST, HIGHEST = 0.25, 20.0
STEPS = 60  # each keeps half of what is left


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The T with the least negative log likelihood of logits / T; logits (N, K), or log probabilities; targets (N,).

    Raises ValueError without images.
    """
    if not len(targets):
        raise ValueError("a temperature needs at least one labelled image")
    logits = logits.double()
    low, high = math.log(1 / HIGHEST), math.log(1 / LOWEST)
    # The likelihood is convex in the inverse temperature, so halving by the sign of its slope finds the least.
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if _slope(logits, targets, math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def negative_log_likelihood(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """The mean over the images, natural logarithm."""
    return float(F.cross_entropy(logits.double() / temperature, targets))


def _slope(logits: Tensor, targets: Tensor, inverse: float) -> float:
    """Of the mean negative log likelihood over the inverse temperature: expected logit less that of the target."""
    expected = ((logits * inverse).softmax(dim=1) * logits).sum(dim=1)
    return float((expected - logits.gather(1, targets[:, None])[:, 0]).mean())


def confidences(logits: Tensor, temperature: float) -> Tensor:
    """(N, K) -> the probability of each image's first choice, float64 (N,)."""
    return torch.softmax(logits.double() / temperature, dim=1).amax(dim=1)
