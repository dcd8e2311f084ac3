"""Counting in arrays equals counting in dictionaries."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from training import ngram_counts
from training.ngram_counts import MARKS, NgramCounts, count

Ngram = tuple[str, ...]


def random_text(seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices("abcdef", [8, 5, 3, 2, 1, 1], k=draw.randrange(1, 9))) for _ in range(120)]


def by_dictionary(text: list[str], n: int, words: set[str]) -> Counter[Ngram]:
    """Of the n-grams whose words are all known."""
    sentences = [["<s>", *line.split(), "</s>"] for line in text]
    ngrams = [tuple(line[k : k + n]) for line in sentences for k in range(len(line) - n + 1)]
    return Counter(ngram for ngram in ngrams if set(ngram) <= words)


def spelled(counts: NgramCounts) -> list[list[Ngram]]:
    """By order, the words of each n-gram, through its prefixes."""
    rows: list[list[Ngram]] = [[()]]
    for order in counts.orders:
        rows.append([(*rows[-1][p], counts.words[w]) for p, w in zip(order.prefix, order.word, strict=True)])
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_dictionaries(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_counts, "_PIECE", 53)  # so that n-grams lie across pieces
    monkeypatch.setattr(ngram_counts, "_LINES", 7)
    text = random_text(seed)
    counts = count(text, 4, (1, 2, 3))
    frequent = [word for word, _ in Counter(" ".join(text).split()).most_common(4)]
    assert set(counts.words) == {*MARKS, *frequent} and counts.sentences == len(text)
    rows = spelled(counts)
    for n, least in ((2, 1), (3, 2), (4, 3)):
        every = by_dictionary(text, n, {"<s>", "</s>", *frequent})
        expected = {ngram: times for ngram, times in every.items() if times >= least}
        assert dict(zip(rows[n], counts.orders[n - 1].count.tolist(), strict=True)) == expected
        assert [rows[n - 1][row] for row in counts.orders[n - 1].suffix] == [ngram[1:] for ngram in rows[n]]
        if n < 4:  # no prefix was dropped that was seen more than once
            assert counts.rarities[n - 1] == tuple(sum(c == k for c in every.values()) for k in (1, 2, 3, 4))


def test_unigrams_of_a_text_by_hand() -> None:
    counts = count(["b a b", "b c"], 2, (1,))
    assert counts.words == (*MARKS, "b", "a")
    assert counts.orders[0].count.tolist() == [1, 2, 2, 3, 1]
    assert counts.tokens == 7  # four known words, one unknown, two ends


def test_those_with_one_prefix_stand_side_by_side() -> None:
    counts = count(random_text(9), 6, (1, 1))
    assert all(a <= b for order in counts.orders[1:] for a, b in pairwise(order.prefix.tolist()))


@pytest.mark.parametrize(
    ("text", "words", "least", "message"),
    [
        ([], 5, (1,), "no sentence"),
        (["a"], 5, (2, 1), r"least is \[2, 1\]"),
        (["a"], 5, (), r"least is \[\]"),
        (["a"], 0, (1,), "most_words is 0: select from 1"),
    ],
)
def test_errors(text: list[str], words: int, least: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count(text, words, least)
