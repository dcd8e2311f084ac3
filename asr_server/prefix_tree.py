"""The texts of a beam as a tree, one node a symbol, with what the words add to a prefix's rank.

Parents hold their children weakly and children their parents strongly: a node lives exactly as long as some prefix of
the beam goes through it. So equal texts always meet in one node, and a stream holds nothing but its beam.
"""

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace

from asr_server.alphabet import Alphabet
from asr_server.decoding import DecodingOptions
from asr_server.hot_words import HotState, HotWords
from asr_server.language_model import SPACE, LanguageModel, Lexicon, State


@dataclass(frozen=True, slots=True)
class Context:
    """The completed words of a prefix. Of a character model, its score and state are those of every character."""

    count: int
    letters: int  # in them
    lm_score: float
    state: State | None  # None without a language model


class Prefix:
    """A node: the text from the root to here. `letters` is its last word while that is not completed.

    The root stands behind a space that nobody heard, so that spaces at the beginning lead nowhere else.
    """

    __slots__ = (
        "__weakref__", "bonus", "boost", "children", "completed", "context", "hot", "kept", "letters", "live", "parent",
        "symbol",
    )  # fmt: skip

    def __init__(self, parent: "Prefix | None", symbol: int, letters: str, context: Context) -> None:
        self.parent = parent
        self.symbol = symbol
        self.letters = letters
        self.context = context
        self.completed: Context | None = None  # the context if the word ends here, once it was needed
        self.bonus = 0.0  # what the search adds to the acoustic score to rank it
        self.boost = 0.0  # of the hot words completed so far
        self.hot: HotState | None = None
        self.children: dict[int, weakref.ref[Prefix]] = {}
        self.live = 0  # 1 for being in the beam, and 1 for each child that is live
        self.kept = 1.0  # the share that was not lost to prefixes that branched off here and fell out of the beam

    def live_children(self) -> "list[Prefix]":
        children = (reference() for reference in self.children.values())
        return [child for child in children if child is not None and child.live]

    def line(self) -> "Iterator[Prefix]":
        """This prefix and those above it, up to the root."""
        node: Prefix | None = self
        while node is not None:
            yield node
            node = node.parent

    def enter(self) -> None:
        """It is in the beam from now on."""
        for node in self.line():
            node.live += 1
            if node.live > 1:
                break

    def leave(self) -> None:
        for node in self.line():
            node.live -= 1
            if node.live:
                break


class PrefixTree:
    """Grows prefixes symbol by symbol and scores their words. ValueError when a lexicon is asked for and not there."""

    def __init__(
        self,
        options: DecodingOptions,
        alphabet: Alphabet,
        language_model: LanguageModel | None,
        hot_words: HotWords | None,
    ) -> None:
        self._options = options
        self._labels = alphabet.labels
        self._model = language_model
        self._hot = hot_words
        self._characters = language_model is not None and language_model.unit == "character"
        self._lexicon = word_list(options, language_model)
        listed = language_model is not None and language_model.lexicon is not None and not self._characters
        self._lookahead = options.lookahead and listed and options.alpha > 0
        self.space = alphabet.labels.index(" ") if " " in alphabet.labels else -1
        start = Context(0, 0, 0.0, language_model.begin() if language_model else None)
        self.root = Prefix(None, self.space, "", start)
        if hot_words:
            self.root.hot = hot_words.begin()

    def known(self, prefix: Prefix, symbol: int) -> Prefix | None:
        """The prefix one symbol longer, if some text goes through it; itself for one more space."""
        if symbol == self.space == prefix.symbol:
            return prefix
        child = prefix.children.get(symbol)
        return child() if child else None

    def child(self, prefix: Prefix, symbol: int) -> Prefix | None:
        """The prefix one symbol longer; itself for one more space, None where the lexicon forbids it."""
        child = self.known(prefix, symbol)
        if child is None:
            child = self._after_space(prefix) if symbol == self.space else self._after_letter(prefix, symbol)
            if child is not None:
                prefix.children[symbol] = weakref.ref(child)
        return child

    def headroom(self, prefix: Prefix, symbol: int) -> float:
        """The most by which the bonus can rise with this symbol."""
        if self._hot is not None:
            return math.inf
        if symbol != self.space:
            return self._options.gamma
        return max(0.0, self._options.beta) - self._unfinished(prefix.letters)

    def may_end(self, prefix: Prefix) -> bool:
        """Whether a sentence can end here: always, except within a word of the lexicon."""
        word = prefix.letters
        return not word or self._lexicon is None or word in self._lexicon or self._is_hot(word)

    def complete(self, prefix: Prefix) -> Context:
        """The context with the last word completed, as if a space came next."""
        if not prefix.letters:
            return prefix.context
        if prefix.completed is None:
            prefix.completed = self._completed(prefix.context, prefix.letters)
        return prefix.completed

    def end(self, prefix: Prefix) -> tuple[Context, float]:
        """If the stream ends here: its words, with ln P_lm of the whole sentence, and the hot words' boost."""
        context = self.complete(prefix)
        if self._characters and prefix.letters:  # the last word is followed by </s>, not by a space
            context = replace(context, lm_score=prefix.context.lm_score, state=prefix.context.state)
        boost = prefix.boost
        if self._hot is not None and prefix.letters:
            assert prefix.hot is not None
            boost += self._hot.end(prefix.hot).gained
        if self._model is None:
            return context, boost
        return replace(context, lm_score=context.lm_score + self._model.score_end(context.state)), boost

    def rewards(self, context: Context) -> float:
        """For completed words and their letters."""
        return self._options.beta * context.count + self._options.gamma * context.letters

    def _after_letter(self, prefix: Prefix, symbol: int) -> Prefix | None:
        letters = prefix.letters + self._labels[symbol]
        if self._lexicon is not None and not self._lexicon.begins(letters) and not self._begins_hot(letters):
            return None
        context = prefix.context
        if self._characters:
            context = self._scored(context, self._labels[symbol], "")
        return self._ranked(Prefix(prefix, symbol, letters, context), prefix)

    def _after_space(self, prefix: Prefix) -> Prefix | None:
        if not self.may_end(prefix):
            return None
        return self._ranked(Prefix(prefix, self.space, "", self.complete(prefix)), prefix)

    def _ranked(self, child: Prefix, parent: Prefix) -> Prefix:
        child.bonus = self._options.alpha * child.context.lm_score + self.rewards(child.context)
        child.bonus += self._options.gamma * len(child.letters) + self._unfinished(child.letters)
        if self._hot is not None:
            assert parent.hot is not None
            child.hot = self._hot.step(parent.hot, child.symbol)
            child.boost = parent.boost + child.hot.gained
            child.bonus += child.boost + child.hot.potential
        return child

    def _unfinished(self, letters: str) -> float:
        """The most that a word which begins like this can add, by its probability without context."""
        if not self._lookahead or not letters:
            return 0.0
        assert self._model is not None
        unknown = self._model.score_alone("<unk>")
        if not self._begins_hot(letters):
            unknown += self._options.unknown_word_offset
        return self._options.alpha * max(unknown, self._model.best_alone(letters))

    def _completed(self, context: Context, word: str) -> Context:
        if self._characters:
            return self._scored(context, SPACE, word)
        if self._model is None:
            return self._scored(context, word, word)
        vocabulary = self._model.lexicon or self._model
        scored = self._scored(context, word if word in vocabulary else "<unk>", word)
        if word in vocabulary or self._is_hot(word):
            return scored
        return replace(scored, lm_score=scored.lm_score + self._options.unknown_word_offset)

    def _scored(self, context: Context, token: str, word: str) -> Context:
        """With one more token of the model, and the word that it completes, if any."""
        count, letters = context.count + bool(word), context.letters + len(word)
        if self._model is None:
            return Context(count, letters, 0.0, None)
        log_prob, state = self._model.score(context.state, token)
        return Context(count, letters, context.lm_score + log_prob, state)

    def _is_hot(self, word: str) -> bool:
        return self._hot is not None and word in self._hot.words

    def _begins_hot(self, letters: str) -> bool:
        return self._hot is not None and letters in self._hot.beginnings


def word_list(options: DecodingOptions, language_model: LanguageModel | None) -> Lexicon | None:
    """The words that may be completed; None for all. ValueError when the options ask for a list that is not there."""
    if not options.lexicon:
        return None
    if language_model is None:
        raise ValueError("lexicon is on, but there is no language model: add one or turn lexicon off")
    if language_model.unit == "character":
        raise ValueError("lexicon is on, but the language model spells characters: turn lexicon off")
    if language_model.lexicon is None:
        words = language_model.path.with_suffix(".words")
        raise ValueError(f"lexicon is on, but there is no word list {str(words)!r}: add it or turn lexicon off")
    return language_model.lexicon
