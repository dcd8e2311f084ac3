"""What a confidence is worth: from the beam's shares to how often such words, and such texts, turn out right.

The search divides the probability of its beam. What fell out of the beam, and all that network and language model are
wrong about together, is in none of the shares, so they promise too much. The maps here are fitted on speakers that the
network has not heard (training/calibrate.py) and travel in the bundle.

A map is a beta calibration: odds = e^c s^a / (1 - s)^b for a share s (Kull, Silva Filho, Flach: Beyond sigmoids,
Electronic Journal of Statistics 11, 2017). It holds the identity (1, 1, 0), temperature scaling (a = b, c = 0; Guo et
al. 2017) and Platt's sigmoid of the logit (a = b), and it never falls, so the order of confidences stays.
"""

import math
from dataclasses import dataclass

EDGE = 1e-7  # shares and answers keep so far from 0 and 1: about what a 32-bit float, the wire's type, has beside 1
LIMIT = 100.0  # of the parameters' sizes


@dataclass(frozen=True)
class ConfidenceMap:
    """The odds of being right are e^c s^a / (1 - s)^b for a share s of the beam; the identity unless fitted."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0

    def __post_init__(self) -> None:
        for name, lowest in (("a", 0.0), ("b", 0.0), ("c", -LIMIT)):
            value = getattr(self, name)
            if not lowest <= value <= LIMIT:  # also refuses NaN
                raise ValueError(f"{name} of a confidence map is {value}: from {lowest:g} to {LIMIT:g}")

    def __call__(self, share: float) -> float:
        """[0, 1] -> [EDGE, 1 - EDGE]: never 0, which on the wire means that there is no confidence."""
        right, wrong = evidence(share)
        log_odds = self.a * right + self.b * wrong + self.c
        return _within_edges((1 + math.tanh(log_odds / 2)) / 2)  # the logistic function, without its overflow


@dataclass(frozen=True)
class Calibration:
    """One map for words and one for whole utterances, which are wrong as soon as one of their words is."""

    words: ConfidenceMap = ConfidenceMap()
    utterances: ConfidenceMap = ConfidenceMap()

    def word(self, confidence: float) -> float:
        """The probability that a word of this raw confidence was said there."""
        return self.words(confidence)

    def utterance(self, confidence: float) -> float:
        """The probability that every word of a final text of this raw confidence is right and none is missing."""
        return self.utterances(confidence)


def evidence(share: float) -> tuple[float, float]:
    """ln s and -ln(1 - s), which a map weighs."""
    share = _within_edges(share)
    return math.log(share), -math.log1p(-share)


def _within_edges(value: float) -> float:
    return min(max(value, EDGE), 1 - EDGE)
