"""Which words were heard as which: the pairs behind an edit distance, and both texts in columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

NOTHING = "*"  # fills a column in which one side has no word

Cost: TypeAlias = tuple[int, int, int, int]  # errors, insertions, deletions, substitutions


@dataclass(frozen=True)
class Pair:
    """A word said and the word heard for it; None: deleted or inserted."""

    said: str | None
    heard: str | None

    @property
    def right(self) -> bool:
        return self.said == self.heard


def align(said: Sequence[str], heard: Sequence[str]) -> tuple[Pair, ...]:
    """One of the shortest ways from `said` to `heard`, with as many errors of each kind as error_rate.edits counts."""
    rows: list[list[Cost]] = [[(column, column, 0, 0) for column in range(len(heard) + 1)]]
    for count, item in enumerate(said, 1):
        row: list[Cost] = [(count, 0, count, 0)]
        for column, other in enumerate(heard):
            row.append(min(_ways(rows[-1][column], rows[-1][column + 1], row[-1], item != other)))
        rows.append(row)
    return tuple(reversed(_back(rows, said, heard)))


def _back(rows: Sequence[Sequence[Cost]], said: Sequence[str], heard: Sequence[str]) -> list[Pair]:
    """From the last pair to the first."""
    pairs: list[Pair] = []
    i, j = len(said), len(heard)
    while i and j:
        wrong = said[i - 1] != heard[j - 1]
        way = _ways(rows[i - 1][j - 1], rows[i - 1][j], rows[i][j - 1], wrong).index(rows[i][j])
        pairs.append(Pair(None if way == 2 else said[i - 1], None if way == 1 else heard[j - 1]))
        i, j = i - (way != 2), j - (way != 1)
    pairs += [Pair(word, None) for word in reversed(said[:i])]
    pairs += [Pair(None, word) for word in reversed(heard[:j])]
    return pairs


def _ways(diagonal: Cost, above: Cost, left: Cost, wrong: bool) -> tuple[Cost, Cost, Cost]:
    """A pair, a deletion, an insertion."""
    errors, insertions, deletions, substitutions = diagonal
    pair = (errors + wrong, insertions, deletions, substitutions + wrong)
    errors, insertions, deletions, substitutions = above
    deletion = (errors + 1, insertions, deletions + 1, substitutions)
    errors, insertions, deletions, substitutions = left
    return pair, deletion, (errors + 1, insertions + 1, deletions, substitutions)


def columns(pairs: Sequence[Pair]) -> tuple[str, str]:
    """What was said and what was heard, word under word; wrong words in capitals, stars where there is none."""
    lines: list[list[str]] = [[], []]
    for pair in pairs:
        width = max(len(pair.said or ""), len(pair.heard or ""))
        for line, word in zip(lines, (pair.said, pair.heard), strict=True):
            shown = NOTHING * width if word is None else word if pair.right else word.upper()
            line.append(shown.ljust(width))
    said, heard = (" ".join(line).rstrip() for line in lines)
    return said, heard


def wrapped(pairs: Sequence[Pair], width: int) -> Iterator[tuple[str, str]]:
    """`columns` in stretches that are at most `width` characters wide, where no word is wider."""
    stretch: list[Pair] = []
    for pair in pairs:
        if stretch and max(map(len, columns([*stretch, pair]))) > width:
            yield columns(stretch)
            stretch = []
        stretch.append(pair)
    yield columns(stretch)
