"""How often each n-gram was seen in a text, in arrays that a book collection of 150 million words fits into.

Dimension letters: T tokens of the text, K n-grams of one order.

An n-gram is its prefix (all words but the last, a row of the order below) and its last word, so a row is one integer of
64 bits whatever the order. Counting an order is then one sort; rows stand in the order of these integers.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

UNKNOWN, BEGIN, END = 0, 1, 2
MARKS = ("<unk>", "<s>", "</s>")
MOST_WORDS = 1 << 24
_WORD = np.uint64(24)  # bits
_LINES, _PIECE = 200_000, 1 << 24  # sentences, tokens that are looked at together

Rows = NDArray[np.int32]
Counts = NDArray[np.float64]
Keys = NDArray[np.uint64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Order:
    """The n-grams of one order, those with the same prefix side by side. All arrays are (K,)."""

    word: Rows  # the last one
    prefix: Rows  # all words but the last, as a row of the order below
    suffix: Rows  # all words but the first, likewise
    count: Counts

    def __len__(self) -> int:
        return len(self.word)


@dataclass(frozen=True)
class NgramCounts:
    """Orders 1 to N. Each n-gram's prefix and suffix are there, too.

    rarities: by order, how many n-grams of the text were seen once, twice, three and four times, dropped ones included.
    """

    words: tuple[str, ...]  # MARKS first, then by falling frequency
    orders: tuple[Order, ...]
    rarities: tuple[tuple[int, ...], ...]
    sentences: int

    @property
    def tokens(self) -> float:
        """What a unigram model predicts: words and ends of sentences."""
        return float(self.orders[0].count.sum() - self.orders[0].count[BEGIN])


class _Numbers(dict[str, int]):
    """Words by when they were first seen."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


def count(sentences: Iterable[str], most_words: int, least: Sequence[int]) -> NgramCounts:
    """Of the `most_words` most frequent words, and of n-grams seen at least `least` times (orders 2 to N).

    An n-gram with any other word is not listed. ValueError when there is no text, or when `least` falls: then prefixes
    would be missing. Memory: about 18 bytes a token; the text itself waits in a file of 4 bytes a token in $TMPDIR.
    """
    if not least or list(least) != sorted(least) or least[0] < 1:
        raise ValueError(f"least is {list(least)}: a count for each order from 2 on, at least 1, never falling")
    if not 1 <= most_words < MOST_WORDS - len(MARKS):
        raise ValueError(f"most_words is {most_words}: select from 1 to {MOST_WORDS - len(MARKS) - 1}")
    with tempfile.TemporaryFile(prefix="earsight-ngrams-") as file:
        numbers = _Numbers((mark, place) for place, mark in enumerate(MARKS))
        lines = 0
        for piece in _numbered(sentences, numbers):
            lines += int((piece == BEGIN).sum())
            file.write(piece.tobytes())
        if not lines:
            raise ValueError("the text has no sentence")
        file.flush()
        tokens = np.memmap(file, np.int32, "r+")
        words, unigrams, rarity = _rank(tokens, numbers, most_words)
        orders, rarities = [unigrams], [rarity]
        for order, rarity in _higher(tokens, unigrams, least):
            orders.append(order)
            rarities.append(rarity)
    return NgramCounts(words, tuple(orders), tuple(rarities), lines)


def _numbered(sentences: Iterable[str], numbers: _Numbers) -> Iterator[Rows]:
    lines = iter(sentences)
    while some := list(islice(lines, _LINES)):
        text = " </s> <s> ".join(some)
        yield np.fromiter((numbers[word] for word in f"<s> {text} </s>".split()), np.int32)


def _rank(tokens: Rows, numbers: _Numbers, most: int) -> tuple[tuple[str, ...], Order, tuple[int, ...]]:
    """Number the words anew, by falling frequency, in place; those that are too rare become UNKNOWN."""
    seen = sum(np.bincount(piece, minlength=len(numbers)) for piece in _pieces(tokens))
    assert isinstance(seen, np.ndarray)
    ranked = len(MARKS) + np.argsort(-seen[len(MARKS) :], kind="stable")[:most]
    kept = np.concatenate([np.arange(len(MARKS)), ranked])
    anew = np.full(len(numbers), UNKNOWN, np.int32)
    anew[kept] = np.arange(len(kept))
    for piece in _pieces(tokens):
        piece[:] = anew[piece]
    names, count = list(numbers), seen[kept].astype(np.float64)
    count[UNKNOWN] = seen.sum() - count[1:].sum()
    root = np.zeros(len(kept), np.int32)
    unigrams = Order(np.arange(len(kept), dtype=np.int32), root, root, count)
    return tuple(names[place] for place in kept), unigrams, _rarity(seen[len(MARKS) :])


def _higher(tokens: Rows, unigrams: Order, least: Sequence[int]) -> Iterator[tuple[Order, tuple[int, ...]]]:
    below, rows = unigrams, tokens  # rows: (T,) the row in `below` of the n-gram that begins at each token, or -1
    keys_below: Keys = np.arange(len(unigrams), dtype=np.uint64)
    for n, fewest in enumerate(least, 2):
        keys = _keys(rows, tokens, n)
        dropped = _valid(tokens, n) - len(keys)
        found, count, rarity = _unique(keys, fewest)
        del keys
        word = (found & np.uint64((1 << int(_WORD)) - 1)).astype(np.int32)
        prefix = (found >> _WORD).astype(np.int32)
        last = below.suffix[prefix].astype(np.uint64) << _WORD | word.astype(np.uint64)
        suffix = word if n == 2 else np.searchsorted(keys_below, last).astype(np.int32)
        below = Order(word, prefix, suffix, count)
        # What a rare prefix goes before is as rare: with single prefixes dropped, each was one n-gram seen once.
        yield below, (rarity[0] + dropped, *rarity[1:])
        if n <= len(least):
            rows, keys_below = _places(rows, tokens, n, found), found


def _keys(rows: Rows, tokens: Rows, n: int) -> Keys:
    """Of all n-grams whose prefix is listed: none crosses the end of a sentence, none has an unknown word."""
    keys: Keys = np.empty(sum(int(usable.sum()) for _, usable in _windows(rows, tokens, n)), np.uint64)
    end = 0
    for key, usable in _windows(rows, tokens, n):  # once more: two copies of the keys would double the memory
        begin, end = end, end + int(usable.sum())
        keys[begin:end] = key[usable]
    return keys


def _windows(rows: Rows, tokens: Rows, n: int) -> Iterator[tuple[Keys, Mask]]:
    for first in range(0, len(tokens) - n + 1, _PIECE):
        last = tokens[first + n - 1 : first + n - 1 + _PIECE]
        prefix = rows[first : first + len(last)]
        usable = (prefix >= 0) & (last != UNKNOWN) & (last != BEGIN)  # a sentence begins after an END
        if n == 2:
            usable &= (prefix != UNKNOWN) & (prefix != END)
        yield prefix.astype(np.uint64) << _WORD | last.astype(np.uint64), usable


def _valid(tokens: Rows, n: int) -> int:
    """How many n-grams without unknown words the text has."""
    total = 0
    for first in range(0, len(tokens) - n + 1, _PIECE):
        part = tokens[first : first + _PIECE + n - 1]
        size = len(part) - n + 1
        usable = part[n - 1 :] != UNKNOWN
        for k in range(n - 1):
            word = part[k : k + size]
            usable &= (word != UNKNOWN) & (word != END)
        total += int(usable.sum())
    return total


def _unique(keys: Keys, fewest: int) -> tuple[Keys, Counts, tuple[int, ...]]:
    keys.sort()
    edges = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=edges[1:])
    first = np.flatnonzero(edges)
    count = np.diff(first, append=len(keys))
    enough = count >= fewest
    return keys[first[enough]], count[enough].astype(np.float64), _rarity(count)


def _rarity(count: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int((count == times).sum()) for times in (1, 2, 3, 4))


def _places(rows: Rows, tokens: Rows, n: int, found: Keys) -> Rows:
    """(T,) rows of the n-grams in `found`. Sorted queries walk through the table instead of jumping about in it."""
    places = np.full(len(tokens), -1, np.int32)
    for number, (key, usable) in enumerate(_windows(rows, tokens, n)):
        at = np.flatnonzero(usable)
        at = at[np.argsort(key[at])]
        row = np.searchsorted(found, key[at]).clip(max=len(found) - 1)
        hit = found[row] == key[at] if len(found) else np.zeros(len(at), bool)
        places[number * _PIECE + at[hit]] = row[hit]
    return places


def _pieces(tokens: Rows) -> Iterator[Rows]:
    for first in range(0, len(tokens), _PIECE):
        yield tokens[first : first + _PIECE]
