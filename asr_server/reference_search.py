"""CTC prefix beam search with a language model, in plain Python: what the native core is tested against.

It looks for the text c with the largest Q(c) = ln P(c|x) + alpha ln P_lm(c) + beta word_count(c) (Hannun et al. 2014,
section 2.2; alpha weighs natural logarithms), plus gamma for each of its letters and the boosts of its hot words.
P(c|x) is the sum over every CTC path that collapses to c. Runs of spaces and spaces at the ends do not count: a text is
its words. P_lm includes the end of the sentence.

For each prefix in the beam the search keeps two sums, over its paths that end in a blank and over those that end in
its last symbol, because the same symbol means another thing after each. Beside a sum stands the best single path in
it; where that path emits letters gives the times.

    prefix "a", next frame:  blank -> "a"     from both sums
                             "a"   -> "a"     from the sum that ends in "a": the symbol goes on
                             "a"   -> "aa"    from the sum that ends in a blank: a new symbol
                             "b"   -> "ab"    from both sums

Dimension letters: T frames, V symbols.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from asr_server.alphabet import BLANK, Alphabet
from asr_server.decoding import DecodingOptions, Hypothesis, Span, Word
from asr_server.hot_words import HotWords
from asr_server.language_model import LanguageModel
from asr_server.log_probs import checked
from asr_server.prefix_tree import Context, Prefix, PrefixTree

IMPOSSIBLE = -math.inf

# Where a path emits the letters, last one first: (the letters before, first frame, the frame after the last).
Spans: TypeAlias = "tuple[Spans, int, int] | None"


class Paths:
    """All paths of a prefix: the log sums by how they end, and of each its best path's score and letter times."""

    __slots__ = ("best_blank", "best_label", "blank", "blank_spans", "label", "label_spans")

    def __init__(self) -> None:
        self.blank = self.label = self.best_blank = self.best_label = IMPOSSIBLE
        self.blank_spans: Spans = None
        self.label_spans: Spans = None

    @property
    def total(self) -> float:
        return log_add(self.blank, self.label)

    @property
    def best(self) -> tuple[float, Spans]:
        if self.best_blank >= self.best_label:
            return self.best_blank, self.blank_spans
        return self.best_label, self.label_spans

    def add_blank(self, log_sum: float, best: float, spans: Spans) -> None:
        self.blank = log_add(self.blank, log_sum)
        if best > self.best_blank:
            self.best_blank, self.blank_spans = best, spans

    def add_label(self, log_sum: float, best: float, spans: Spans) -> None:
        self.label = log_add(self.label, log_sum)
        if best > self.best_label:
            self.best_label, self.label_spans = best, spans

    def add(self, other: "Paths") -> None:
        self.add_blank(other.blank, other.best_blank, other.blank_spans)
        self.add_label(other.label, other.best_label, other.label_spans)


Beam: TypeAlias = dict[Prefix, Paths]


@dataclass(frozen=True)
class _Ending:
    """A hypothesis before it is compared with the others. Its words' confidences are what they have kept so far."""

    words: tuple[Word, ...]
    weight: float  # ln of its share, up to a constant
    scores: tuple[float, float, float, float, float]  # as in Hypothesis
    kept: float

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


class ReferenceSearch:
    """The search of one stream, with the methods of `beam_search.BeamSearch`, which documents them."""

    def __init__(
        self,
        options: DecodingOptions,
        alphabet: Alphabet,
        language_model: LanguageModel | None = None,
        hot_words: HotWords | None = None,
    ) -> None:
        self.options = options
        self._symbols = len(alphabet)
        self._tree = PrefixTree(options, alphabet, language_model, hot_words)
        self._root = self._tree.root
        self._root.enter()
        silence = Paths()
        silence.blank = silence.best_blank = 0.0
        self._beam: Beam = {self._root: silence}
        self._floor = IMPOSSIBLE  # the lowest rank in the beam, when it is full, or the lowest it would keep
        self._frame = 0
        self._committed_kept = 1.0

    def advance(self, log_probs: NDArray[Any]) -> None:
        log_probs = checked(log_probs, self._symbols)
        for row in log_probs:
            likely = (row >= self.options.token_min_log_prob) | (row == row.max())
            symbols = [symbol for symbol in np.flatnonzero(likely).tolist() if symbol != BLANK]
            self._beam = self._prune(self._extend(row.tolist(), symbols)) or self._beam
            self._frame += 1

    def best(self) -> Hypothesis:
        endings = []
        for prefix, paths in self._beam.items():
            context, acoustic = prefix.context, paths.total
            endings.append(self._ending(prefix, paths, acoustic, context, prefix.boost, acoustic + prefix.bonus))
        return _hypotheses(endings, 1)[0]

    def finish(self) -> list[Hypothesis]:
        merged: Beam = {}
        for prefix, paths in self._beam.items():
            # A text with a space after it is the same text.
            text = prefix.parent if prefix.parent and prefix.symbol == self._tree.space else prefix
            merged.setdefault(text, Paths()).add(paths)
        ended = {prefix: paths for prefix, paths in merged.items() if self._tree.may_end(prefix)} or merged
        endings = []
        for prefix, paths in ended.items():
            endings.append(self._ending(prefix, paths, paths.total, *self._tree.end(prefix)))
        return _hypotheses(endings, self.options.n_best)

    def take_committed(self) -> tuple[Word, ...]:
        leader = max(self._beam, key=lambda prefix: self._beam[prefix].total + prefix.bonus)
        self._give_up_rivals(leader)
        node = last = self._root
        while node not in self._beam and len(children := node.live_children()) == 1:
            node = children[0]
            last = last if node.letters else node
        if last is self._root:
            return ()
        line = list(last.line())
        count = sum(not prefix.letters for prefix in line) - 1
        words = self._words(leader, self._beam[leader].best[1])[:count]
        for prefix in line[1:]:
            self._committed_kept *= prefix.kept
        self._root, last.parent = last, None
        for paths in self._beam.values():
            letters = sum(bool(prefix.letters) for prefix in line)
            paths.blank_spans = _without(paths.blank_spans, letters)
            paths.label_spans = _without(paths.label_spans, letters)
        return words

    def _give_up_rivals(self, leader: Prefix) -> None:
        """Keep only what agrees with the leader up to its last `horizon` words.

        What follows is worth the same to two texts that differ only so far back, so a rival that is behind stays
        behind; but an ambiguous word would hold both in the beam for ever.
        """
        boundaries = [prefix for prefix in leader.line() if not prefix.letters]
        if len(boundaries) <= self.options.horizon:
            return
        decided = boundaries[self.options.horizon]
        new = {prefix: paths for prefix, paths in self._beam.items() if decided in prefix.line()}
        if len(new) < len(self._beam):
            ranks = {prefix: paths.total + prefix.bonus for prefix, paths in self._beam.items()}
            self._account(new, ranks)
            self._beam = new
            self._floor = max(ranks.values()) + self.options.beam_prune_log_prob

    def _extend(self, row: list[float], symbols: Sequence[int]) -> Beam:
        """All prefixes after one more frame, and the sums of their paths.

        Every prefix of the beam can stay what it is by a blank, so `floor` is a rank that the next beam is sure to
        reach; a new prefix that does not reach it is not worth a node.
        """
        beam: Beam = {prefix: Paths() for prefix in self._beam}
        tree, frame = self._tree, self._frame
        floor = self._floor + row[BLANK]
        for prefix, paths in self._beam.items():
            total, (best, spans) = paths.total, paths.best
            beam[prefix].add_blank(total + row[BLANK], best + row[BLANK], spans)
            for symbol in symbols:
                log_prob = row[symbol]
                if symbol != prefix.symbol:
                    log_sum, log_best, before = total + log_prob, best + log_prob, spans
                else:
                    again = _longer(paths.label_spans, frame) if prefix.letters else paths.label_spans
                    beam[prefix].add_label(paths.label + log_prob, paths.best_label + log_prob, again)
                    log_sum, log_best, before = paths.blank + log_prob, paths.best_blank + log_prob, paths.blank_spans
                if (
                    tree.known(prefix, symbol) not in self._beam
                    and log_sum + prefix.bonus + tree.headroom(prefix, symbol) < floor
                ):
                    continue
                child = tree.child(prefix, symbol) if log_sum > IMPOSSIBLE else None
                if child is not None:
                    grown = before if symbol == tree.space else (before, frame, frame + 1)
                    beam.setdefault(child, Paths()).add_label(log_sum, log_best, grown)
        return beam

    def _prune(self, beam: Beam) -> Beam:
        """The best `beam_width` prefixes that have any probability and are not too far behind the best one."""
        ranks = {prefix: paths.total + prefix.bonus for prefix, paths in beam.items()}
        highest = max(ranks.values())
        if highest == IMPOSSIBLE:
            return {}
        floor = highest + self.options.beam_prune_log_prob
        kept = [prefix for prefix, rank in ranks.items() if rank >= floor and rank > IMPOSSIBLE]
        if len(kept) >= self.options.beam_width:
            kept = heapq.nlargest(self.options.beam_width, kept, key=ranks.__getitem__)
            floor = ranks[kept[-1]]
        self._floor = floor
        new = {prefix: beam[prefix] for prefix in kept}
        self._account(new, ranks)
        return new

    def _account(self, new: Beam, ranks: dict[Prefix, float]) -> None:
        """Note what was lost with the prefixes that fall out of the beam.

        Each takes its share of the probability from the texts that go on without it: the node where it branched off
        from those keeps that much less. That is what a confidence is later made of.
        """
        dropped = [prefix for prefix in self._beam if prefix not in new]
        for prefix in new:
            if prefix not in self._beam:
                prefix.enter()
        for prefix in dropped:
            prefix.leave()
        highest = max(ranks.values())
        mass = math.fsum(math.exp(ranks[prefix] - highest) for prefix in (*new, *dropped))
        for prefix in dropped:
            if prefix.live:  # longer texts go on from it: they agree with it
                continue
            branch = next(node for node in prefix.line() if node.live)
            branch.kept *= 1 - math.exp(ranks[prefix] - highest) / mass

    def _ending(
        self,
        prefix: Prefix,
        paths: Paths,
        acoustic: float,
        context: Context,
        boost: float,
        weight: float | None = None,
    ) -> _Ending:
        lm_score, word_score = context.lm_score, self._tree.rewards(context)
        score = acoustic + self.options.alpha * lm_score + word_score + boost
        kept = math.prod((node.kept for node in prefix.line()), start=self._committed_kept)
        words = self._words(prefix, paths.best[1])
        return _Ending(words, score if weight is None else weight, (score, acoustic, lm_score, word_score, boost), kept)

    def _words(self, prefix: Prefix, spans: Spans) -> tuple[Word, ...]:
        """From the root to the prefix, timed by a path; confident as far as their letters and the place before kept."""
        words: list[Word] = []
        times = _unrolled(spans)
        line = list(prefix.line())[::-1]
        for place, node in enumerate(line):
            size = len(node.letters)
            if size and (node is prefix or not line[place + 1].letters):
                kept = math.prod(each.kept for each in line[place - size : place + 1])
                words.append(Word(node.letters, tuple(times[:size]), kept))
                times = times[size:]
        return tuple(words)


def log_add(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b == IMPOSSIBLE else a + math.log1p(math.exp(b - a))


def _longer(spans: Spans, frame: int) -> Spans:
    """The last letter goes on in this frame."""
    if spans is None:
        return None
    before, start, _ = spans
    return before, start, frame + 1


def _unrolled(spans: Spans) -> list[Span]:
    """(start, end) of each letter, first one first."""
    letters = []
    while spans is not None:
        spans, start, end = spans
        letters.append((start, end))
    return letters[::-1]


def _without(spans: Spans, count: int) -> Spans:
    """Without the first `count` letters."""
    rest: Spans = None
    for start, end in _unrolled(spans)[count:]:
        rest = (rest, start, end)
    return rest


def _hypotheses(endings: list[_Ending], count: int) -> list[Hypothesis]:
    """The best `count`, with confidences: how the probability divides among all of them."""
    endings = sorted(endings, key=lambda ending: -ending.weight)
    weights = [math.exp(ending.weight - endings[0].weight) for ending in endings]
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]

    def agreeing(word: Word) -> float:
        """The share of those that have the word at an overlapping time."""
        return math.fsum(
            share
            for share, other in zip(shares, endings, strict=True)
            if any(w.text == word.text and w.start < word.end and word.start < w.end for w in other.words)
        )

    def having(text: str, whole: bool) -> float:
        """The share of those whose text is this one, or begins with it."""
        texts = [ending.text for ending in endings]
        return math.fsum(
            share
            for share, other in zip(shares, texts, strict=True)
            if (other == text if whole else other.startswith(text))
        )

    return [
        Hypothesis(
            tuple(Word(word.text, word.letters, word.confidence * min(1.0, agreeing(word))) for word in ending.words),
            *ending.scores,
            confidence=ending.kept * min(1.0, having(ending.text, whole=True)),
            stability=min(1.0, having(ending.text, whole=False)),
        )
        for ending in endings[:count]
    ]
