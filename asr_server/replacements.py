"""Replacements in transcripts that a caller asks for (Google's TranscriptNormalization)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_LENGTH = 100  # characters, of what is searched for and of what it becomes: Google's limit


@dataclass(frozen=True)
class Replacement:
    """Every `search` in a text becomes `replace`; as whole words only, so that "or" leaves "for" alone."""

    search: str
    replace: str
    case_sensitive: bool = False

    def __post_init__(self) -> None:
        if not self.search or max(len(self.search), len(self.replace)) > MAX_LENGTH:
            raise ValueError(
                "Invalid recognition 'config': bad transcript_normalization. An entry searches for "
                f"{self.search!r}; it must have 1 to {MAX_LENGTH} characters, its replacement at most {MAX_LENGTH}."
            )

    def __call__(self, text: str) -> str:
        pattern = rf"(?<!\w){re.escape(self.search)}(?!\w)"
        return re.sub(pattern, lambda _: self.replace, text, flags=0 if self.case_sensitive else re.IGNORECASE)


def normalise(text: str, replacements: Sequence[Replacement]) -> str:
    """The replacements one after the other."""
    for replacement in replacements:
        text = replacement(text)
    return text
