"""Phrases that a caller expects, each with a boost: what the search adds to the score of a text that has them.

A phrase counts wherever it stands as whole words, once for each time, and may be outside the vocabulary. Its boost is a
natural logarithm: 3 makes a text that has it twenty times likelier. While a phrase is being spelled, the search credits
the share of the boost that has been spelled, so that it stays in the beam; the credit goes when the text turns
elsewhere, and the final score has whole phrases only. A negative boost holds a phrase back.

All phrases are one Aho-Corasick automaton over the text with a space on both sides, so thousands cost little more than
one.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from asr_server.alphabet import Alphabet
from asr_server.native import core

MOST = 100.0


@dataclass
class HotState:
    """A beginning of phrases, or the empty one: what leads on, and the longest shorter beginning that ends alike."""

    children: dict[int, "HotState"] = field(default_factory=dict)
    fallback: "HotState | None" = None
    gained: float = 0.0  # by the phrases that end here
    potential: float = 0.0  # the credit for the phrase being spelled


class HotWords:
    """The automaton; immutable, and shared by the streams it is given to.

    `boosts` maps phrases to boosts; `words` are those of the phrases with a positive one. ValueError for an empty
    phrase, a character outside the alphabet, a boost beyond `MOST`, or an alphabet without a space.
    """

    def __init__(self, boosts: Mapping[str, float], alphabet: Alphabet) -> None:
        if " " not in alphabet.labels:
            raise ValueError("the alphabet has no space, so it has no words: hot words need one")
        self.alphabet = alphabet
        self._space = alphabet.labels.index(" ")
        self._phrases = {" ".join(phrase.split()): boost for phrase, boost in boosts.items()}
        for phrase, boost in self._phrases.items():
            if not phrase:
                raise ValueError("a hot phrase is empty: it has at least one word")
            if not abs(boost) <= MOST:  # also refuses NaN
                raise ValueError(f"the boost of {phrase!r} is {boost}: from -{MOST:g} to {MOST:g}")
        self._encoded = [(alphabet.encode(phrase), boost) for phrase, boost in self._phrases.items()]
        wanted = (phrase for phrase, boost in self._phrases.items() if boost > 0)
        self.words = frozenset(word for phrase in wanted for word in phrase.split())

    def __len__(self) -> int:
        return len(self._phrases)

    @cached_property
    def native(self) -> Any:
        """The same automaton in the native core."""
        return core.HotWords(self._encoded, self._space, len(self.alphabet))

    @cached_property
    def beginnings(self) -> frozenset[str]:
        """Of all words, and the words themselves."""
        return frozenset(word[:end] for word in self.words for end in range(1, len(word) + 1))

    def begin(self) -> HotState:
        return self.step(self._root, self._space)

    def step(self, state: HotState, symbol: int) -> HotState:
        while symbol not in state.children:
            if state.fallback is None:
                return state
            state = state.fallback
        return state.children[symbol]

    def end(self, state: HotState) -> HotState:
        """Where a word, and with it perhaps a phrase, has ended."""
        return self.step(state, self._space)

    @cached_property
    def _root(self) -> HotState:
        root = HotState()
        for phrase, boost in self._encoded:
            state = root.children.setdefault(self._space, HotState())
            for spelled, symbol in enumerate(phrase, 1):
                state = state.children.setdefault(symbol, HotState())
                state.potential = max(state.potential, boost * spelled / (len(phrase) + 1))
            state.children.setdefault(self._space, HotState()).gained += boost
        queue = deque([root])
        while queue:  # breadth first, so that what a state falls back to is ready before it
            state = queue.popleft()
            for symbol, child in state.children.items():
                child.fallback = root if state.fallback is None else self.step(state.fallback, symbol)
                child.gained += child.fallback.gained
                child.potential = max(child.potential, child.fallback.potential)
                queue.append(child)
        return root
