"""How sure a test set makes us of an error rate: the percentile bootstrap (Efron 1979; for WER Bisani and Ney 2004).

Test sets of the same size are drawn from this one with replacement, and the middle 95 % of their rates is the interval.
Whole speakers are drawn where there are enough of them: the utterances of one are well or badly heard together, so that
drawing utterances would promise too much.

Dimension letters: D draws, C clusters, which are drawn whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.error_rate import Edits
from training.speech_manifest import Utterance

DRAWS = 2000
MIDDLE = (0.025, 0.975)  # quantiles: 95 %
FEWEST_SPEAKERS = 5  # the rates of fewer say little about how speakers differ

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """95 % of the draws lie in it; per cent, or points for a difference."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.2f} to {self.high:.2f}"

    def as_json(self) -> list[float]:
        return [round(self.low, 4), round(self.high, 4)]


def drawn_by(utterances: Sequence[Utterance]) -> str:
    """ "speaker" where every utterance has one and they are enough, else "utterance"."""
    speakers = {each.speaker for each in utterances}
    return "speaker" if "" not in speakers and len(speakers) >= FEWEST_SPEAKERS else "utterance"


def clusters(utterances: Sequence[Utterance]) -> list[str]:
    """Of each utterance the name of what is drawn as a whole."""
    if drawn_by(utterances) == "speaker":
        return [each.speaker for each in utterances]
    return [str(number) for number in range(len(utterances))]


def interval(edits: Sequence[Edits], names: Sequence[str], seed: int = 0) -> Interval:
    """Of the error rate of utterances that belong to clusters `names`; the same seed gives the same interval."""
    members = sorted(set(names))
    return _middle(_rates(_weights(len(members), seed), _sums(edits, names, members)))


def difference(
    first: Sequence[Edits], second: Sequence[Edits], names: Sequence[str], others: Sequence[str], seed: int = 0
) -> Interval:
    """Of the second error rate less the first, in points. Clusters with the same name are drawn together, so that what
    makes a speaker hard in both does not count as doubt about the difference."""
    members = sorted({*names, *others})
    weights = _weights(len(members), seed)
    return _middle(_rates(weights, _sums(second, others, members)) - _rates(weights, _sums(first, names, members)))


def _weights(count: int, seed: int) -> Array:
    """How often each draw has each cluster, (D, C)."""
    shares = np.full(count, 1 / count)
    return np.random.default_rng(seed).multinomial(count, shares, size=DRAWS).astype(np.float64)


def _sums(edits: Sequence[Edits], names: Sequence[str], members: Sequence[str]) -> Array:
    """Errors and references of each cluster, (C, 2)."""
    places = {name: place for place, name in enumerate(members)}
    sums = np.zeros((len(members), 2))
    for each, name in zip(edits, names, strict=True):
        sums[places[name]] += (each.errors, each.reference)
    return sums


def _rates(weights: Array, sums: Array) -> Array:
    """Per cent, (D,); of a draw that has nothing said as in Edits.rate."""
    errors, references = (weights @ sums).T
    rates: Array = 100 * errors / np.maximum(1, references)
    return rates


def _middle(rates: Array) -> Interval:
    low, high = np.quantile(rates, MIDDLE)
    return Interval(float(low), float(high))
