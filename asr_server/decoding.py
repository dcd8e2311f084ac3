"""What a decoder is told and what it answers. All scores and thresholds are natural logarithms."""

import math
from dataclasses import dataclass
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]  # frames: the first one, and the one after the last


@dataclass(frozen=True)
class DecodingOptions:
    """How to search; a bundle keeps the tuned values."""

    beam_width: int = 64  # prefixes kept after each frame
    alpha: float = 0.5  # weight of ln P_lm
    beta: float = 1.0  # reward for a word
    gamma: float = 0.0  # reward for a letter
    token_min_log_prob: float = -7.0  # symbols below it are passed over in a frame, except the likeliest and the blank
    beam_prune_log_prob: float = -16.0  # prefixes this far below the best one are dropped
    unknown_word_offset: float = -23.0  # added to ln P_lm for each word outside the vocabulary that is no hot word
    lexicon: bool = False  # only words of the language model's word list, and hot words, can be completed
    lookahead: bool = True  # rank unfinished words by their likeliest ending, where there is a word list
    n_best: int = 1  # hypotheses to return; there are never more than beam_width
    horizon: int = 20  # words: what differs from the leading text further back is given up when words are committed

    def __post_init__(self) -> None:
        for name in ("beam_width", "n_best", "horizon"):
            if not isinstance(getattr(self, name), int) or not 1 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} is {getattr(self, name)}: a whole number, at least 1")
        for name in ("token_min_log_prob", "beam_prune_log_prob", "unknown_word_offset"):
            if not getattr(self, name) <= 0:  # also refuses NaN
                raise ValueError(f"{name} is {getattr(self, name)}: a logarithm of at most 0")
        if self.unknown_word_offset == -math.inf:
            raise ValueError("unknown_word_offset is -inf: a finite one; lexicon forbids unknown words")
        if not (0 <= self.alpha <= 100 and -100 <= self.beta <= 100):
            raise ValueError(f"alpha is {self.alpha} and beta {self.beta}: alpha from 0 to 100, beta from -100 to 100")
        if not -10 <= self.gamma <= 10:
            raise ValueError(f"gamma is {self.gamma}: from -10 to 10")


@dataclass(frozen=True)
class Word:
    """A word, and where the likeliest path of its text emits each letter; it lasts from the first to the last.

    confidence: the share of the search's probability that has this word there, in [0, 1].
    """

    text: str
    letters: tuple[Span, ...]
    confidence: float

    @property
    def start(self) -> int:
        return self.letters[0][0]

    @property
    def end(self) -> int:
        return self.letters[-1][1]


@dataclass(frozen=True)
class Hypothesis:
    """A transcript. score = acoustic_score + alpha * lm_score + word_score + boost_score.

    The scores are those of everything the search has heard, also of words that were committed and are not in `words`
    any more. acoustic_score is ln P(c|x); lm_score is ln P_lm(c) with the offsets of unknown words; word_score is beta
    times the number of words and gamma times that of their letters; boost_score is what the hot words add.
    """

    words: tuple[Word, ...]
    score: float
    acoustic_score: float
    lm_score: float
    word_score: float
    boost_score: float
    confidence: float  # the share of the search's probability that has this text, in [0, 1]
    stability: float  # the share that has a text which begins with this one, in [0, 1]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)
