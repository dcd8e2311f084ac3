"""CTC prefix beam search with a language model and hot words: the decoder of streams and of whole recordings.

`BeamSearch` runs in the native core (native/, C++), or in the reference (reference_search.py), which says in Python
what both compute, where the core was not built.

Dimension letters: T frames, V symbols.
"""

import itertools
import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from numpy.typing import NDArray

from asr_server.alphabet import Alphabet
from asr_server.decoding import DecodingOptions, Hypothesis, Span, Word
from asr_server.hot_words import HotWords
from asr_server.language_model import LanguageModel
from asr_server.log_probs import as_matrix, checked
from asr_server.native import core
from asr_server.prefix_tree import word_list
from asr_server.reference_search import ReferenceSearch

__all__ = ["BeamSearch", "DecodingOptions", "HotWords", "Hypothesis", "Word", "advance_all", "decode_batch", "greedy"]

logger = logging.getLogger(__name__)


class BeamSearch:
    """The search of one stream: `advance` with every chunk, `best` for an interim text, `finish` for the result.

    Everything that steers it belongs to the stream; language models and hot words are shared and never change.
    ValueError when the options ask for a lexicon that the language model does not have, or the hot words are of
    another alphabet.
    """

    def __init__(
        self,
        options: DecodingOptions,
        alphabet: Alphabet,
        language_model: LanguageModel | None = None,
        hot_words: HotWords | None = None,
    ) -> None:
        self.options = options
        self.alphabet = alphabet
        self.language_model = language_model
        self.hot_words = hot_words
        _check(options, alphabet, language_model, hot_words)
        if core is None:
            self._reference = ReferenceSearch(options, alphabet, language_model, hot_words)
        else:
            self._core = core.Search(*_in_core(options, alphabet, language_model, hot_words))

    def advance(self, log_probs: NDArray[Any]) -> None:
        """Feed (T, V) natural-log probabilities; any cut into chunks gives the same result.

        A frame in which no prefix can go on (all -inf) says nothing and only time passes. ValueError for a wrong
        shape, NaN, values above 0 or rows that do not add up to 1; the search is then as it was before.
        """
        advance_all([self], [log_probs], threads=1)

    def best(self) -> Hypothesis:
        """The leading text so far; the language model has not scored its last word while that may go on."""
        return self._reference.best() if core is None else _hypothesis(self._core.best())

    def finish(self) -> list[Hypothesis]:
        """The n best texts, best first, if the stream ends here. Changes nothing."""
        return self._reference.finish() if core is None else _hypotheses(self._core.finish())

    def take_committed(self) -> tuple[Word, ...]:
        """The words that all prefixes of the beam share: nothing that follows can change them any more.

        They leave the search: `best` and `finish` go on with the words after them, and the memory that they took is
        free. A stream whose words are taken now and then can last for ever.
        """
        return self._reference.take_committed() if core is None else _words(self._core.take_committed())

    def decode(self, log_probs: NDArray[Any]) -> list[Hypothesis]:
        """The n best texts of a whole utterance (T, V), whatever this stream has heard."""
        (found,) = decode_batch(
            [log_probs], self.options, self.alphabet, self.language_model, self.hot_words, threads=1
        )
        return found

    @property
    def memory(self) -> int:
        """Bytes that the native core holds for this stream; 0 without the core."""
        return 0 if core is None else int(self._core.bytes())


def advance_all(searches: Sequence[BeamSearch], log_probs: Sequence[NDArray[Any]], threads: int | None = None) -> None:
    """`advance` of many streams at once, in `threads` threads (all cores), without the interpreter lock.

    ValueError as there, for the first of the wrong ones; the other streams have then advanced.
    """
    pairs = list(zip(searches, log_probs, strict=True))
    if core is None:
        for search, matrix in pairs:
            search._reference.advance(matrix)
        return
    matrices = [as_matrix(matrix, len(search.alphabet)) for search, matrix in pairs]
    core.advance_all([search._core for search in searches], matrices, _threads(threads))


def decode_batch(
    log_probs: Sequence[NDArray[Any]],
    options: DecodingOptions,
    alphabet: Alphabet,
    language_model: LanguageModel | None = None,
    hot_words: HotWords | None = None,
    threads: int | None = None,
) -> list[list[Hypothesis]]:
    """The n best texts of each whole utterance (T, V), in `threads` threads (all cores). ValueError as `BeamSearch`."""
    matrices = [as_matrix(matrix, len(alphabet)) for matrix in log_probs]
    _check(options, alphabet, language_model, hot_words)
    if core is not None:
        shared = _in_core(options, alphabet, language_model, hot_words)
        return [_hypotheses(found) for found in core.decode_all(*shared, matrices, _threads(threads))]
    found = []
    for matrix in matrices:
        search = ReferenceSearch(options, alphabet, language_model, hot_words)
        search.advance(matrix)
        found.append(search.finish())
    return found


def greedy(log_probs: NDArray[Any], alphabet: Alphabet) -> Hypothesis:
    """The likeliest symbol of each frame (T, V), collapsed. Scores and confidences are those of that one path."""
    log_probs = checked(log_probs, len(alphabet))
    path = log_probs.argmax(axis=1).tolist() if len(log_probs) else []
    best = log_probs.max(axis=1, initial=-math.inf).tolist()
    letters: list[tuple[str, Span]] = []
    for symbol, group in itertools.groupby(range(len(path)), key=path.__getitem__):
        run = list(group)
        letters.append((alphabet.labels[symbol], (run[0], run[-1] + 1)))
    words = []
    for is_space, pairs in itertools.groupby((pair for pair in letters if pair[0]), key=lambda pair: pair[0] == " "):
        if not is_space:
            emitted = list(pairs)
            start, end = emitted[0][1][0], emitted[-1][1][1]
            spans = tuple(span for _, span in emitted)
            words.append(Word("".join(text for text, _ in emitted), spans, math.exp(sum(best[start:end]))))
    score = float(sum(best))
    return Hypothesis(tuple(words), score, score, 0.0, 0.0, 0.0, math.exp(score), math.exp(score))


def _check(
    options: DecodingOptions, alphabet: Alphabet, language_model: LanguageModel | None, hot_words: HotWords | None
) -> None:
    word_list(options, language_model)
    if hot_words is not None and hot_words.alphabet != alphabet:
        raise ValueError("the hot words were made for another alphabet")
    if core is None:
        _warn()


@cache
def _warn() -> None:
    logger.warning(
        "the native core of the beam search was not built (it needs a C++17 compiler when earsight is installed): the "
        "reference search does the same, far slower"
    )


def _threads(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise ValueError(f"threads is {threads}: at least 1")
    return threads


def _in_core(
    options: DecodingOptions, alphabet: Alphabet, language_model: LanguageModel | None, hot_words: HotWords | None
) -> tuple[Any, ...]:
    """What the core needs to make a search."""
    native = core.Options()
    for field in fields(options):
        setattr(native, field.name, getattr(options, field.name))
    return (
        native,
        list(alphabet.labels),
        language_model and language_model.native(alphabet),
        hot_words and hot_words.native,
    )


def _words(words: Iterable[Any]) -> tuple[Word, ...]:
    return tuple(Word(word.text, tuple(word.letters), word.confidence) for word in words)


SCORES = ("score", "acoustic_score", "lm_score", "word_score", "boost_score", "confidence", "stability")


def _hypothesis(found: Any) -> Hypothesis:
    return Hypothesis(_words(found.words), *(getattr(found, name) for name in SCORES))


def _hypotheses(found: Iterable[Any]) -> list[Hypothesis]:
    return list(map(_hypothesis, found))
