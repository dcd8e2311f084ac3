"""Edit distances: the errors of a transcript by kind, and the rates of a whole test set."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Edits:
    """The fewest changes that make what was heard out of what was said. They add up over utterances."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference: int = 0  # words or characters that were said

    def __add__(self, other: "Edits") -> "Edits":
        return Edits(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference + other.reference,
        )

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per hundred of the reference; where nothing was said each insertion counts as a hundred."""
        return 100.0 * self.errors / max(1, self.reference)


def edits(said: Sequence[str], heard: Sequence[str]) -> Edits:
    """Levenshtein distance by kinds. Of equally short ways the one with most substitutions, then most deletions."""
    # One row per item said: for each number of items heard (errors, insertions, deletions, substitutions).
    row = [(column, column, 0, 0) for column in range(len(heard) + 1)]
    for count, item in enumerate(said, 1):
        above, row = row, [(count, 0, count, 0)]
        for column, other in enumerate(heard):
            errors, insertions, deletions, substitutions = above[column]
            wrong = item != other
            diagonal = (errors + wrong, insertions, deletions, substitutions + wrong)
            errors, insertions, deletions, substitutions = above[column + 1]
            deletion = (errors + 1, insertions, deletions + 1, substitutions)
            errors, insertions, deletions, substitutions = row[column]
            insertion = (errors + 1, insertions + 1, deletions, substitutions)
            row.append(min(diagonal, deletion, insertion))
    _, insertions, deletions, substitutions = row[-1]
    return Edits(substitutions, deletions, insertions, len(said))


def word_edits(said: str, heard: str) -> Edits:
    """Of the words between spaces: WER is the sum's rate."""
    return edits(said.split(), heard.split())


def character_edits(said: str, heard: str) -> Edits:
    """Of the characters with single spaces between words: CER is the sum's rate."""
    return edits(" ".join(said.split()), " ".join(heard.split()))
