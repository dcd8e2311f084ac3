"""Labels of the acoustic model: which symbol each output of the softmax stands for."""

import itertools
import string
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

BLANK = 0
SYMBOLS = ("", " ", "'", *string.ascii_lowercase)  # the paper's 28 characters after the blank, "" is the blank


@dataclass(frozen=True)
class Alphabet:
    """Symbols by index; index 0 is the CTC blank. ValueError when the labels cannot serve as an alphabet."""

    labels: tuple[str, ...] = SYMBOLS

    def __post_init__(self) -> None:
        if not self.labels or self.labels[BLANK] != "":
            raise ValueError(f"label 0 is {self.labels[:1]!r}: an alphabet begins with the blank, written ''")
        wrong = [label for label in self.labels[1:] if len(label) != 1]
        if wrong or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels {self.labels!r}: after the blank every label is one character, each only once")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels) if index != BLANK}

    def encode(self, text: str) -> list[int]:
        """Symbol indices of `text`; ValueError names the first character outside the alphabet."""
        unknown = next((character for character in text if character not in self._index), None)
        if unknown is not None:
            choices = "".join(self.labels)
            raise ValueError(f"character {unknown!r} in {text!r} is not in the alphabet. Select from {choices!r}")
        return [self._index[character] for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of symbol indices one to one; the blank is the empty string."""
        return "".join(self.labels[index] for index in ids)

    def collapse(self, ids: Iterable[int]) -> str:
        """Text of a CTC path, one index per frame: repeats merge, then blanks drop out."""
        return self.decode(index for index, _ in itertools.groupby(ids))
