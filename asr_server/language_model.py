"""N-gram models: KenLM scores with an explicit state, in natural logarithms.

A model is a KenLM binary (or ARPA) file over words or, to spell words that it has never seen, over characters, with
`|` for the space. A file of the same name with the suffix `.words` beside it, one word a line, is its vocabulary: the
search uses it to see early which beginnings lead to no word.

A file is copied into memory once and checked there (sealed_file.py, kenlm_binary.py, arpa.py): what happens to it
afterwards does not reach a running server, and a damaged one is an error here, not a crash in KenLM.
"""

import bisect
import math
from collections.abc import Hashable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import kenlm

from asr_server import arpa, kenlm_binary
from asr_server.alphabet import Alphabet
from asr_server.native import core
from asr_server.sealed_file import SealedFile

UNITS = ("word", "character")
SPACE = "|"  # in a character model
MAX_WORD = 1000  # characters
LN_10 = math.log(10.0)  # KenLM gives logarithms to base 10
State: TypeAlias = Hashable  # a kenlm.State, the last words as KenLM needs them; equal where no later score can differ


class Lexicon:
    """The words that may be completed, sorted, so that the beginnings of words are found by bisection."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = sorted(set(words))

    def __len__(self) -> int:
        return len(self._words)

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __contains__(self, word: str) -> bool:
        place = bisect.bisect_left(self._words, word)
        return place < len(self._words) and self._words[place] == word

    def begins(self, letters: str) -> bool:
        """Whether a word begins with `letters` (or is them)."""
        place = bisect.bisect_left(self._words, letters)
        return place < len(self._words) and self._words[place].startswith(letters)

    def beginning_with(self, letters: str) -> slice:
        """Where the words that begin with `letters` stand."""
        first = bisect.bisect_left(self._words, letters)
        return slice(first, bisect.bisect_right(self._words, letters, first, key=lambda word: word[: len(letters)]))


class LanguageModel:
    """Immutable and shared by all streams; the state of a stream is in the `State` objects it carries.

    `unit` says what the model's tokens are, "word" or "character". ValueError names the file when it is missing, is not
    a model that KenLM can read, or is no model of characters where one was announced.
    """

    def __init__(self, path: Path, unit: str = "word") -> None:
        if unit not in UNITS:
            raise ValueError(f"unit is {unit!r}. Select one of {UNITS}")
        if not path.is_file():
            raise ValueError(f"language model {str(path)!r} does not exist; training.language_model makes one")
        try:
            self._file = SealedFile(path)
            (kenlm_binary if kenlm_binary.is_binary(self._file.path) else arpa).check(self._file.path)
            self._model = kenlm.Model(str(self._file.path))
        except (OSError, RuntimeError, MemoryError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [repr(error)])[-1]
            raise ValueError(f"{str(path)!r} is not a KenLM binary or ARPA file: {reason}") from error
        if unit == "character" and SPACE not in self._model:
            raise ValueError(f"{str(path)!r} has no {SPACE!r}, a character model's space: it is no model of characters")
        self.path = path
        self.unit = unit
        self.order = int(self._model.order)
        words = path.with_suffix(".words")
        self.lexicon = _read_lexicon(words) if words.is_file() else None

    def __contains__(self, word: str) -> bool:
        return word in self._model

    @cached_property
    def _natives(self) -> dict[Alphabet, Any]:
        return {}

    def native(self, alphabet: Alphabet) -> Any:
        """The same model in the native core, its words spelled in `alphabet`; loaded once."""
        if alphabet not in self._natives:
            words = [] if self.lexicon is None or self.unit == "character" else list(self.lexicon)
            labels = list(alphabet.labels)
            self._natives[alphabet] = core.LanguageModel(str(self._file.path), words, labels, self.unit == "character")
        return self._natives[alphabet]

    def score_alone(self, word: str) -> float:
        """ln P(word) without context."""
        state = kenlm.State()
        self._model.NullContextWrite(state)
        return self.score(state, word)[0]

    @cached_property
    def _scores_alone(self) -> list[float]:
        """Of the word list."""
        return [self.score_alone(word) for word in self.lexicon or ()]

    def best_alone(self, letters: str) -> float:
        """The highest ln P without context of the listed words that begin with `letters`; -inf where there are none."""
        assert self.lexicon is not None
        return max(self._scores_alone[self.lexicon.beginning_with(letters)], default=-math.inf)

    def begin(self) -> State:
        """The state at the beginning of a sentence, after <s>."""
        state: State = kenlm.State()
        self._model.BeginSentenceWrite(state)
        return state

    def score(self, state: State, word: str) -> tuple[float, State]:
        """ln P(word | state) and the state after the word. A word outside the vocabulary scores as <unk>."""
        after: State = kenlm.State()
        return self._model.BaseScore(state, word, after) * LN_10, after

    def score_end(self, state: State) -> float:
        """ln P(</s> | state)."""
        return float(self._model.BaseScore(state, "</s>", kenlm.State())) * LN_10


def _read_lexicon(path: Path) -> Lexicon:
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not a list of words in UTF-8: {error}") from error
    if not words:
        raise ValueError(f"{str(path)!r} is empty: it lists the words of the model beside it, or is not there")
    if longest := next((word for word in words if len(word) > MAX_WORD), None):
        raise ValueError(f"{str(path)!r}: {longest[:20]!r}... has {len(longest)} characters: at most {MAX_WORD}")
    return Lexicon(words)


def load(path: Path) -> LanguageModel:
    """A model that says itself what its units are: one that knows `|` and has no word list spells."""
    model = LanguageModel(path)
    return LanguageModel(path, "character") if model.lexicon is None and SPACE in model else model
