"""CTC prefix beam search with a word language model: the reference that a native core is tested against.

It looks for the text c with the largest Q(c) = ln P(c|x) + alpha ln P_lm(c) + beta word_count(c) (Hannun et al. 2014,
section 2.2; alpha weighs natural logarithms). P(c|x) is the sum over every CTC path that collapses to c. Runs of
spaces and spaces at the ends do not count: a text is its words. P_lm includes the end of the sentence.

For each prefix in the beam the search keeps two sums, over its paths that end in a blank and over those that end in
its last symbol, because the same symbol means another thing after each. Beside a sum stands the best single path in
it; where that path emits letters gives the word times.

    prefix "a", next frame:  blank -> "a"     from both sums
                             "a"   -> "a"     from the sum that ends in "a": the symbol goes on
                             "a"   -> "aa"    from the sum that ends in a blank: a new symbol
                             "b"   -> "ab"    from both sums

Dimension letters: T frames, V symbols.
"""

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from asr_server.alphabet import BLANK, Alphabet
from asr_server.decoding import DecodingOptions, Hypothesis, Word
from asr_server.language_model import LanguageModel
from asr_server.prefix_tree import Context, Prefix, PrefixTree

__all__ = ["BeamSearch", "DecodingOptions", "Hypothesis", "Word", "greedy"]

IMPOSSIBLE = -math.inf
ROUNDING = 1e-3  # how far above 0 a log probability may be: a softmax in half precision rounds

# Where a path emits the words, last word first: (the words before, first frame, the frame after the last letter).
Spans: TypeAlias = "tuple[Spans, int, int] | None"


class Paths:
    """All paths of a prefix: the log sums by how they end, and of each its best path's score and word times."""

    __slots__ = ("best_blank", "best_label", "blank", "blank_spans", "label", "label_spans")

    def __init__(self) -> None:
        self.blank = self.label = self.best_blank = self.best_label = IMPOSSIBLE
        self.blank_spans: Spans = None
        self.label_spans: Spans = None

    @property
    def total(self) -> float:
        return _log_add(self.blank, self.label)

    @property
    def best(self) -> tuple[float, Spans]:
        if self.best_blank >= self.best_label:
            return self.best_blank, self.blank_spans
        return self.best_label, self.label_spans

    def add_blank(self, log_sum: float, best: float, spans: Spans) -> None:
        self.blank = _log_add(self.blank, log_sum)
        if best > self.best_blank:
            self.best_blank, self.blank_spans = best, spans

    def add_label(self, log_sum: float, best: float, spans: Spans) -> None:
        self.label = _log_add(self.label, log_sum)
        if best > self.best_label:
            self.best_label, self.label_spans = best, spans


Beam: TypeAlias = dict[Prefix, Paths]


@dataclass(frozen=True)
class _Candidate:
    """A hypothesis before it is compared with the others."""

    words: tuple[tuple[str, int, int], ...]  # text, start, end
    score: float
    acoustic_score: float
    lm_score: float

    @property
    def text(self) -> str:
        return " ".join(word for word, _, _ in self.words)


class BeamSearch:
    """The search of one stream: `advance` with every chunk, `best` for an interim text, `finish` for the result."""

    def __init__(self, options: DecodingOptions, alphabet: Alphabet, language_model: LanguageModel | None) -> None:
        self.options = options
        self.alphabet = alphabet
        self.language_model = language_model
        self._tree = PrefixTree(options, alphabet, language_model)
        silence = Paths()
        silence.blank = silence.best_blank = 0.0
        self._beam: Beam = {self._tree.root: silence}
        self._floor = IMPOSSIBLE  # the lowest rank in the beam, when it is full, or the lowest it would keep
        self._frame = 0

    def advance(self, log_probs: NDArray[Any]) -> None:
        """Feed (T, V) natural-log probabilities; any cut into chunks gives the same result.

        A frame in which no prefix can go on (all -inf) says nothing and only time passes. ValueError for a wrong
        shape, NaN or values above 0; the search is then as it was before.
        """
        log_probs = _checked(log_probs, len(self.alphabet))
        for row, symbols in zip(log_probs.tolist(), self._likely(log_probs), strict=True):
            self._beam = self._prune(self._extend(row, symbols)) or self._beam
            self._frame += 1

    def best(self) -> Hypothesis:
        """The leading text so far; the language model has not scored its last word while that may go on."""
        candidates = [
            self._candidate(prefix, prefix.context, prefix.context.lm_score, paths)
            for prefix, paths in self._beam.items()
        ]
        return _hypotheses(candidates, 1)[0]

    def finish(self) -> list[Hypothesis]:
        """The n best texts, best first, if the stream ends here. Reads the search and changes nothing."""
        merged: Beam = {}
        for prefix, paths in self._beam.items():
            # A text with a space after it is the same text.
            text = prefix.parent if prefix.parent and prefix.symbol == self._tree.space else prefix
            total = merged.setdefault(text, Paths())
            total.add_blank(paths.blank, paths.best_blank, paths.blank_spans)
            total.add_label(paths.label, paths.best_label, paths.label_spans)
        ended = {prefix: paths for prefix, paths in merged.items() if self._tree.may_end(prefix)} or merged
        candidates = [self._candidate(prefix, *self._tree.end(prefix), paths) for prefix, paths in ended.items()]
        return _hypotheses(candidates, self.options.n_best)

    def decode(self, log_probs: NDArray[Any]) -> list[Hypothesis]:
        """The n best texts of a whole utterance (T, V), whatever this stream has heard."""
        search = BeamSearch(self.options, self.alphabet, self.language_model)
        search.advance(log_probs)
        return search.finish()

    def _likely(self, log_probs: NDArray[np.float64]) -> Iterable[list[int]]:
        """Of each frame the symbols worth following, besides the blank."""
        worth = log_probs >= self.options.token_min_log_prob
        if log_probs.size:
            worth[np.arange(len(worth)), log_probs.argmax(axis=1)] = True
        worth[:, BLANK] = False
        return (np.flatnonzero(symbols).tolist() for symbols in worth)

    def _extend(self, row: list[float], symbols: Sequence[int]) -> Beam:
        """All prefixes after one more frame, and the sums of their paths.

        Every prefix of the beam can stay what it is by a blank, so `floor` is a rank that the next beam is sure to
        reach; what does not reach it is not worth a node. A space may add to the rank, but never more than beta.
        """
        beam: Beam = {}
        tree, frame = self._tree, self._frame
        floor = self._floor + row[BLANK]
        space_floor = floor - max(0.0, self.options.beta)
        for prefix, paths in self._beam.items():
            total, (best, spans) = paths.total, paths.best
            _paths(beam, prefix).add_blank(total + row[BLANK], best + row[BLANK], spans)
            for symbol in symbols:
                log_prob = row[symbol]
                if symbol != prefix.symbol:
                    log_sum, log_best, before = total + log_prob, best + log_prob, spans
                else:
                    beam[prefix].add_label(paths.label + log_prob, paths.best_label + log_prob, paths.label_spans)
                    log_sum, log_best, before = paths.blank + log_prob, paths.best_blank + log_prob, paths.blank_spans
                if log_sum + prefix.bonus < (space_floor if symbol == tree.space else floor) or log_sum == IMPOSSIBLE:
                    continue
                child = tree.child(prefix, symbol)
                if child is not None:
                    if symbol != tree.space:
                        before = _continued(before, frame) if prefix.letters else (before, frame, frame + 1)
                    _paths(beam, child).add_label(log_sum, log_best, before)
        return beam

    def _prune(self, beam: Beam) -> Beam:
        """The best `beam_width` prefixes that have any probability and are not too far behind the best one."""
        ranks = {prefix: paths.total + prefix.bonus for prefix, paths in beam.items()}
        floor = max(ranks.values()) + self.options.beam_prune_log_prob
        kept = [prefix for prefix, rank in ranks.items() if rank >= floor and rank > IMPOSSIBLE]
        if len(kept) >= self.options.beam_width:
            kept = heapq.nlargest(self.options.beam_width, kept, key=ranks.__getitem__)
            floor = ranks[kept[-1]]
        if kept:
            self._floor = floor
        return {prefix: beam[prefix] for prefix in kept}

    def _candidate(self, prefix: Prefix, context: Context, lm_score: float, paths: Paths) -> _Candidate:
        texts = context.words()
        if len(texts) < prefix.context.count + bool(prefix.letters):
            texts.append(prefix.letters)
        spans = _unrolled(paths.best[1])
        words = tuple((text, start, end) for text, (start, end) in zip(texts, spans, strict=True))
        score = paths.total + self._tree.bonus(lm_score, context.count)
        return _Candidate(words, score, paths.total, lm_score)


def greedy(log_probs: NDArray[Any], alphabet: Alphabet) -> Hypothesis:
    """The likeliest symbol of each frame (T, V), collapsed. Scores and confidences are those of that one path."""
    log_probs = _checked(log_probs, len(alphabet))
    path = log_probs.argmax(axis=1).tolist() if len(log_probs) else []
    best = log_probs.max(axis=1, initial=IMPOSSIBLE).tolist()
    letters: list[tuple[str, int]] = []  # with the frame that emits them
    for symbol, run in itertools.groupby(range(len(path)), key=path.__getitem__):
        letters.append((alphabet.labels[symbol], next(run)))
    words = []
    for is_space, group in itertools.groupby((pair for pair in letters if pair[0]), key=lambda pair: pair[0] == " "):
        if not is_space:
            emitted = list(group)
            start, end = emitted[0][1], emitted[-1][1] + 1
            words.append(Word("".join(text for text, _ in emitted), start, end, math.exp(sum(best[start:end]))))
    score = float(sum(best))
    return Hypothesis(" ".join(word.text for word in words), score, score, 0.0, tuple(words), math.exp(score))


def _checked(log_probs: NDArray[Any], symbols: int) -> NDArray[np.float64]:
    """(T, V) in double precision."""
    array = np.asarray(log_probs, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != symbols:
        raise ValueError(f"log probabilities have shape {array.shape}: (frames, {symbols}) fits the alphabet")
    if np.isnan(array).any():
        raise ValueError(f"log probabilities hold NaN, first in frame {int(np.isnan(array).any(axis=1).argmax())}")
    if array.max(initial=IMPOSSIBLE) > ROUNDING:
        raise ValueError(f"log probabilities reach {array.max():g}: they are natural logarithms, at most 0")
    return array


def _log_add(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b == IMPOSSIBLE else a + math.log1p(math.exp(b - a))


def _paths(beam: Beam, prefix: Prefix) -> Paths:
    paths = beam.get(prefix)
    if paths is None:
        paths = beam[prefix] = Paths()
    return paths


def _continued(spans: Spans, frame: int) -> Spans:
    """The last word has one more letter."""
    assert spans is not None
    before, start, _ = spans
    return before, start, frame + 1


def _unrolled(spans: Spans) -> list[tuple[int, int]]:
    """(start, end) of each word, first word first."""
    words = []
    while spans is not None:
        spans, start, end = spans
        words.append((start, end))
    return words[::-1]


def _hypotheses(candidates: list[_Candidate], count: int) -> list[Hypothesis]:
    """The best `count`, with confidences: how the probability divides among all candidates."""
    candidates = sorted(candidates, key=lambda candidate: -candidate.score)
    weights = [math.exp(candidate.score - candidates[0].score) for candidate in candidates]
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    texts: dict[str, float] = {}  # interim candidates may have equal texts
    heard: dict[str, list[tuple[int, int, int]]] = {}  # word -> where and by which candidate
    for index, candidate in enumerate(candidates):
        texts[candidate.text] = texts.get(candidate.text, 0.0) + shares[index]
        for text, start, end in candidate.words:
            heard.setdefault(text, []).append((start, end, index))

    def confidence(word: str, start: int, end: int) -> float:
        """The share of the candidates that have the word at an overlapping time."""
        agreeing = {index for other, until, index in heard[word] if other < end and start < until}
        return min(1.0, math.fsum(shares[index] for index in agreeing))

    return [
        Hypothesis(
            candidate.text,
            candidate.score,
            candidate.acoustic_score,
            candidate.lm_score,
            tuple(Word(*word, confidence(*word)) for word in candidate.words),
            min(1.0, texts[candidate.text]),
        )
        for candidate in candidates[:count]
    ]
