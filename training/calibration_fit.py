"""Fit a map of confidences to what turned out right, and choose its form by cross-validation.

All forms are beta calibrations with fewer or more free parameters (asr_server/calibration.py), so that a fit is a
logistic regression of right or wrong on the evidence of a share. A weak Gaussian prior around the identity keeps the
parameters finite where everything is right, and gives back the identity where there is nothing to learn from.

Dimension letters: N cases, P free parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr_server.calibration import ConfidenceMap, evidence

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

IDENTITY = np.array([1.0, 1.0, 0.0])
PRECISION = 0.01  # of the prior: a standard deviation of 10
STEPS = 100  # of Newton's method, which needs about 8
DIGITS = 4  # of the parameters

# By name, the share of each free parameter in a, b and c: (3, P). The simplest first, which wins among equals.
FORMS: dict[str, Array] = {
    "temperature": np.array([[1.0], [1.0], [0.0]]),
    "Platt": np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
    "two exponents": np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]),
    "beta": np.eye(3),
}


@dataclass(frozen=True)
class Cases:
    """Raw confidences (N,), whether each was right (N,), and the speaker or recording each is from (N,), from 0."""

    confidence: Array
    right: NDArray[np.bool_]
    group: Integers

    def __len__(self) -> int:
        return len(self.confidence)

    def where(self, chosen: NDArray[np.bool_]) -> "Cases":
        return Cases(self.confidence[chosen], self.right[chosen], self.group[chosen])

    def apply(self, confidence_map: ConfidenceMap) -> Array:
        """(N,)"""
        return np.array([confidence_map(share) for share in self.confidence])


def fit(cases: Cases, form: Array) -> ConfidenceMap:
    """The likeliest map of a form (3, P) under the prior. No exponent is negative: such a one is left out instead."""
    found = form @ _regression(cases, form)
    negative = int(found[:2].argmin())
    if found[negative] < 0:
        return fit(cases, form[:, form[negative] == 0])
    a, b, c = (round(float(value), DIGITS) for value in found)
    return ConfidenceMap(a, b, c)


def _regression(cases: Cases, form: Array) -> Array:
    """Newton's method with halved steps -> (P,)."""
    inputs = np.array([(*evidence(share), 1.0) for share in cases.confidence]).reshape(-1, 3) @ form  # (N, P)
    usual = np.linalg.pinv(form) @ IDENTITY
    weights = usual

    def loss(weights: Array) -> float:
        log_odds = inputs @ weights
        likelihood = np.logaddexp(0, np.where(cases.right, -log_odds, log_odds)).sum()
        return float(likelihood + PRECISION * ((weights - usual) ** 2).sum() / 2)

    for _ in range(STEPS):
        probability = (1 + np.tanh(inputs @ weights / 2)) / 2
        gradient = inputs.T @ (probability - cases.right) + PRECISION * (weights - usual)
        curvature = (inputs.T * (probability * (1 - probability))) @ inputs + PRECISION * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        while np.abs(step).max(initial=0.0) > 1e-9 and loss(weights - step) > loss(weights):
            step = step / 2
        weights = weights - step
        if np.abs(step).max(initial=0.0) < 1e-9:
            break
    found: Array = weights
    return found


def folds(group: Integers, count: int) -> Integers:
    """Of each case the fold (N,): all of a group are in one, and groups take turns."""
    return group % count


def select(cases: Cases, count: int) -> tuple[str, dict[str, float]]:
    """The form whose held-out predictions have the lowest negative log likelihood; and that of every form."""
    losses = {name: negative_log_likelihood(held_out(cases, count, [name]), cases.right) for name in FORMS}
    return min(losses, key=losses.__getitem__), losses


def held_out(cases: Cases, count: int, names: Sequence[str] = tuple(FORMS)) -> Array:
    """What each case is given (N,) by a map that was fitted, and its form chosen, without the case's fold."""
    fold = folds(cases.group, count)
    predicted = np.zeros(len(cases))
    for number in set(fold.tolist()):
        rest, left_out = cases.where(fold != number), cases.where(fold == number)
        name = names[0] if len(names) == 1 else select(rest, count)[0]
        predicted[fold == number] = left_out.apply(fit(rest, FORMS[name]))
    return predicted


def negative_log_likelihood(predicted: Array, right: NDArray[np.bool_]) -> float:
    """The mean, in natural logarithms; predictions are inside (0, 1)."""
    return float(-np.log(np.where(right, predicted, 1 - predicted)).mean()) if len(right) else 0.0
