"""What a decoder is told and what it answers. All scores and thresholds are natural logarithms."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class DecodingOptions:
    """How to search; a bundle keeps the tuned values."""

    beam_width: int = 64  # prefixes kept after each frame
    alpha: float = 0.5  # weight of ln P_lm
    beta: float = 1.0  # reward for a word
    token_min_log_prob: float = -7.0  # symbols below it are passed over in a frame, except the likeliest and the blank
    beam_prune_log_prob: float = -16.0  # prefixes this far below the best one are dropped
    unknown_word_offset: float = -6.0  # added to ln P_lm for each word outside the vocabulary
    lexicon: bool = False  # only words of the language model's word list can be completed
    n_best: int = 1  # hypotheses to return; there are never more than beam_width

    def __post_init__(self) -> None:
        for name in ("beam_width", "n_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1")
        for name in ("token_min_log_prob", "beam_prune_log_prob", "unknown_word_offset"):
            if not getattr(self, name) <= 0:  # also refuses NaN
                raise ValueError(f"{name} is {getattr(self, name)}: a logarithm of at most 0")
        if not (0 <= self.alpha < math.inf and math.isfinite(self.beta)):
            raise ValueError(f"alpha is {self.alpha} and beta {self.beta}: both finite, alpha not negative")


@dataclass(frozen=True)
class Word:
    """A word, from the frame that emits its first letter to the frame after the one that emits its last.

    confidence: the share of the search's probability that has this word there, in [0, 1].
    """

    text: str
    start: int
    end: int
    confidence: float


@dataclass(frozen=True)
class Hypothesis:
    """A transcript. score = acoustic_score + alpha * lm_score + beta * word count.

    acoustic_score is ln P(c|x); lm_score is ln P_lm(c) with the offsets of unknown words; confidence is the
    hypothesis's share of the search's probability, in [0, 1].
    """

    text: str
    score: float
    acoustic_score: float
    lm_score: float
    words: tuple[Word, ...]
    confidence: float
