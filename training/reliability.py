"""How far confidences are from how often they are right, and how sure a manifest of this size makes us of that.

Expected calibration error: cases are put into bins by confidence; the gaps between a bin's mean confidence and its
share of right cases are averaged, each weighted by the bin's cases. Bins are of equal width (Guo et al.: On calibration
of modern neural networks, 2017) or of equal mass (Nguyen and O'Connor 2015). It is never negative, so that chance alone
makes it positive: `by_chance` says what perfect confidences would have got here (Broecker and Smith 2007).

Dimension letters: N cases.
"""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from training.calibration_fit import Array, Integers, negative_log_likelihood

Rights = NDArray[np.bool_]  # (N,)
DRAWS = 2000
INTERVAL = (0.025, 0.975)  # quantiles: the middle 95 %


@dataclass(frozen=True)
class Reliability:
    """Of N confidences. ece_*: expected calibration error, 0 to 1, with 10 or 15 bins; mass_*: of equal mass."""

    ece_10: float
    ece_15: float
    mass_10: float
    mass_15: float
    brier: float  # mean squared difference from 1 for right and 0 for wrong
    nll: float  # mean negative log likelihood


@dataclass(frozen=True)
class Bin:
    count: int
    confidence: float  # the mean
    right: float  # the share


def bins(confidence: Array, right: Rights, count: int, equal_mass: bool = False) -> list[Bin]:
    """Those that are not empty, by rising confidence. (N,), (N,)"""
    order = np.argsort(confidence, kind="stable")
    if equal_mass:
        parts = np.array_split(order, count)
    else:
        inner = np.arange(1, count) / count
        parts = np.split(order, np.searchsorted(confidence[order], inner, side="left"))
    return [Bin(len(part), float(confidence[part].mean()), float(right[part].mean())) for part in parts if len(part)]


def calibration_error(confidence: Array, right: Rights, count: int, equal_mass: bool = False) -> float:
    gaps = (each.count * abs(each.confidence - each.right) for each in bins(confidence, right, count, equal_mass))
    return float(sum(gaps) / max(1, len(right)))


def measure(confidence: Array, right: Rights) -> Reliability:
    """(N,) inside (0, 1), (N,)"""
    return Reliability(
        ece_10=calibration_error(confidence, right, 10),
        ece_15=calibration_error(confidence, right, 15),
        mass_10=calibration_error(confidence, right, 10, equal_mass=True),
        mass_15=calibration_error(confidence, right, 15, equal_mass=True),
        brier=float(((confidence - right) ** 2).mean()),
        nll=negative_log_likelihood(confidence, right),
    )


def intervals(columns: list[Array], right: Rights, group: Integers, seed: int = 0) -> list[dict[str, list[float]]]:
    """For each column of confidences (N,) and figure the bootstrap's 95 % interval; whole groups are drawn.

    The words of a speaker are right or wrong together, so that drawing words would promise too much. Behind those of
    the columns comes the interval of the last one's figures less the first one's, from the same draws.
    """
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(group == each) for each in np.unique(group)]
    found: list[list[list[float]]] = [[] for _ in range(len(columns) + 1)]
    for _ in range(DRAWS):
        chosen = np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        drawn = [_values(measure(column[chosen], right[chosen])) for column in columns]
        drawn.append([last - first for first, last in zip(drawn[0], drawn[-1], strict=True)])
        for sample, values in zip(found, drawn, strict=True):
            sample.append(values)
    names = list(Reliability.__dataclass_fields__)
    return [dict(zip(names, np.quantile(sample, INTERVAL, axis=0).T.tolist(), strict=True)) for sample in found]


def by_chance(confidence: Array, seed: int = 0) -> dict[str, list[float]]:
    """Mean and 95 % quantile of each figure if every one of these confidences (N,) were the true probability."""
    generator = np.random.default_rng(seed)
    drawn = [_values(measure(confidence, generator.random(len(confidence)) < confidence)) for _ in range(DRAWS // 4)]
    both = np.stack([np.mean(drawn, axis=0), np.quantile(drawn, 0.95, axis=0)], axis=1)
    return dict(zip(Reliability.__dataclass_fields__, both.tolist(), strict=True))


def _values(reliability: Reliability) -> list[float]:
    return list(asdict(reliability).values())
