"""Replacements in transcripts that a caller asks for (Google's TranscriptNormalization)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

MAX_ENTRIES = 100  # of a request, and
MAX_LENGTH = 100  # characters, of what is searched for and of what it becomes: Google's limits
MAX_TEXT = 10_000  # characters of a transcript: each replacement may hold what the next one searches for, many times

_BAD = "Invalid recognition 'config': bad transcript_normalization."


@dataclass(frozen=True)
class Replacement:
    """Every `search` in a text becomes `replace`; as whole words only, so that "or" leaves "for" alone."""

    search: str
    replace: str
    case_sensitive: bool = False

    def __post_init__(self) -> None:
        if not self.search or max(len(self.search), len(self.replace)) > MAX_LENGTH:
            raise ValueError(
                f"{_BAD} An entry searches for {self.search[:MAX_LENGTH]!r} ({len(self.search)} characters) and puts "
                f"{len(self.replace)} characters there; 1 to {MAX_LENGTH}, and at most {MAX_LENGTH}, are allowed."
            )

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Kept here: of more patterns than `re` keeps for all callers, each result would compile its own again."""
        return re.compile(rf"(?<!\w){re.escape(self.search)}(?!\w)", 0 if self.case_sensitive else re.IGNORECASE)

    def __call__(self, text: str) -> str:
        return self._pattern.sub(lambda _: self.replace, text)


def checked(replacements: Iterable[Replacement]) -> tuple[Replacement, ...]:
    """ValueError for more than a request may have."""
    found = tuple(islice(replacements, MAX_ENTRIES + 1))
    if len(found) > MAX_ENTRIES:
        raise ValueError(f"{_BAD} There are more than {MAX_ENTRIES} entries.")
    return found


def normalise(text: str, replacements: Sequence[Replacement]) -> str:
    """The replacements one after the other. ValueError where they make a text of more than MAX_TEXT characters."""
    for replacement in replacements:
        text = replacement(text)
        if len(text) > MAX_TEXT:
            raise ValueError(f"{_BAD} Its entries make a transcript of more than {MAX_TEXT} characters.")
    return text
