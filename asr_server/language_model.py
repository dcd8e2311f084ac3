"""Word n-gram models: KenLM scores with an explicit state, in natural logarithms.

A model is a KenLM binary (or ARPA) file. A file of the same name with the suffix `.words` beside it, one word a line,
is its vocabulary: KenLM's files keep only hashes of the words, and a search that may complete no other word needs them.
"""

import bisect
import math
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TypeAlias

import kenlm

LN_10 = math.log(10.0)  # KenLM gives logarithms to base 10
State: TypeAlias = Hashable  # a kenlm.State, the last words as KenLM needs them; equal where no later score can differ


class Lexicon:
    """The words that may be completed, sorted, so that the beginnings of words are found by bisection."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = sorted(set(words))

    def __len__(self) -> int:
        return len(self._words)

    def __contains__(self, word: str) -> bool:
        place = bisect.bisect_left(self._words, word)
        return place < len(self._words) and self._words[place] == word

    def begins(self, letters: str) -> bool:
        """Whether a word begins with `letters` (or is them)."""
        place = bisect.bisect_left(self._words, letters)
        return place < len(self._words) and self._words[place].startswith(letters)


class LanguageModel:
    """Immutable and shared by all streams; the state of a stream is in the `State` objects it carries.

    ValueError names the file when it is missing or is not a model that KenLM can read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"language model {str(path)!r} does not exist; training.language_model makes one")
        try:
            self._model = kenlm.Model(str(path))
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"{str(path)!r} is not a KenLM binary or ARPA file: {reason}") from error
        self.path = path
        self.order = int(self._model.order)
        words = path.with_suffix(".words")
        self.lexicon = Lexicon(words.read_text(encoding="utf-8").split()) if words.is_file() else None

    def __contains__(self, word: str) -> bool:
        return word in self._model

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
