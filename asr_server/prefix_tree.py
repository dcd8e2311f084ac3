"""The texts of a beam as a tree, one node a symbol, with the language model's score of the completed words.

Parents hold their children weakly and children their parents strongly: a node lives exactly as long as some prefix of
the beam goes through it. So equal texts always meet in one node, and a stream holds nothing but its beam.
"""

import weakref
from dataclasses import dataclass

from asr_server.alphabet import Alphabet
from asr_server.decoding import DecodingOptions
from asr_server.language_model import LanguageModel, Lexicon, State


@dataclass(frozen=True, slots=True)
class Context:
    """The completed words of a prefix, last word first, and their score."""

    before: "Context | None"
    word: str
    count: int
    lm_score: float
    state: State | None  # None without a language model

    def words(self) -> list[str]:
        words = []
        context: Context | None = self
        while context and context.count:
            words.append(context.word)
            context = context.before
        return words[::-1]


class Prefix:
    """A node: the text from the root to here. `letters` is its last word while that is not completed.

    The root stands behind a space that nobody heard, so that spaces at the beginning lead nowhere else.
    """

    __slots__ = ("__weakref__", "bonus", "children", "completed", "context", "letters", "parent", "symbol")

    def __init__(self, parent: "Prefix | None", symbol: int, letters: str, context: Context, bonus: float) -> None:
        self.parent = parent
        self.symbol = symbol
        self.letters = letters
        self.context = context
        self.bonus = bonus  # alpha * lm_score + beta * count of the context
        self.completed: Context | None = None  # the context if the word ends here, once it was needed
        self.children: dict[int, weakref.ref[Prefix]] = {}


class PrefixTree:
    """Grows prefixes symbol by symbol and scores their words. ValueError when a lexicon is asked for and not there."""

    def __init__(self, options: DecodingOptions, alphabet: Alphabet, language_model: LanguageModel | None) -> None:
        self._options = options
        self._labels = alphabet.labels
        self._model = language_model
        self._lexicon = _lexicon(language_model) if options.lexicon else None
        self.space = alphabet.labels.index(" ") if " " in alphabet.labels else -1
        start = Context(None, "", 0, 0.0, language_model.begin() if language_model else None)
        self.root = Prefix(None, self.space, "", start, 0.0)

    def child(self, prefix: Prefix, symbol: int) -> Prefix | None:
        """The prefix one symbol longer; itself for one more space, None where the lexicon forbids it."""
        known = prefix.children.get(symbol)
        child = known() if known else None
        if child is None:
            if symbol == self.space:
                child = self._after_space(prefix)
            else:
                letters = prefix.letters + self._labels[symbol]
                if self._lexicon is None or self._lexicon.begins(letters):
                    child = Prefix(prefix, symbol, letters, prefix.context, prefix.bonus)
            if child is not None and child is not prefix:
                prefix.children[symbol] = weakref.ref(child)
        return child

    def may_end(self, prefix: Prefix) -> bool:
        """Whether a sentence can end here: always, except within a word of the lexicon."""
        return not prefix.letters or self._lexicon is None or prefix.letters in self._lexicon

    def complete(self, prefix: Prefix) -> Context:
        """The context with the last word completed."""
        if not prefix.letters:
            return prefix.context
        if prefix.completed is None:
            prefix.completed = self._extend(prefix.context, prefix.letters)
        return prefix.completed

    def end(self, prefix: Prefix) -> tuple[Context, float]:
        """The completed context and ln P_lm of the whole sentence."""
        context = self.complete(prefix)
        if self._model is None:
            return context, 0.0
        return context, context.lm_score + self._model.score_end(context.state)

    def bonus(self, lm_score: float, words: int) -> float:
        """What the language model and the words add to the acoustic score."""
        return self._options.alpha * lm_score + self._options.beta * words

    def _after_space(self, prefix: Prefix) -> Prefix | None:
        if prefix.symbol == self.space:
            return prefix
        if not self.may_end(prefix):
            return None
        context = self.complete(prefix)
        return Prefix(prefix, self.space, "", context, self.bonus(context.lm_score, context.count))

    def _extend(self, context: Context, word: str) -> Context:
        if self._model is None:
            return Context(context, word, context.count + 1, 0.0, None)
        log_prob, state = self._model.score(context.state, word)
        if word not in self._model:
            log_prob += self._options.unknown_word_offset
        return Context(context, word, context.count + 1, context.lm_score + log_prob, state)


def _lexicon(language_model: LanguageModel | None) -> Lexicon:
    if language_model is None:
        raise ValueError("lexicon is on, but there is no language model: add one or turn lexicon off")
    if language_model.lexicon is None:
        words = language_model.path.with_suffix(".words")
        raise ValueError(f"lexicon is on, but there is no word list {str(words)!r}: add it or turn lexicon off")
    return language_model.lexicon
