"""A Kneser-Ney model of exactly the n-grams that are listed, whichever those are.

Dimension letter: K n-grams of one order. Order 0 has one n-gram, the empty one, and predicts all words alike.

Interpolated: P(w|h) = (a(hw) - D) / A(h) + back_off(h) P(w|h'), where h' is h without its first word. Kneser and Ney's
idea is that the lower order only speaks where the higher is silent, and should be estimated from what it is then asked.
Where n-grams are not listed, it is asked more often; so a(x) is how often x was seen, less what the listed n-grams that
end in x already explain: for each of them its count less its discount D. With all n-grams listed that is (but for D in
place of 1) the number of different words before x, the usual estimate; without this, pruning would spoil the lower
orders (Siivola, Hirsimaki, Virpioja 2007, "On growing and pruning Kneser-Ney smoothed n-gram models", section III).
The discounts are Chen and Goodman's three an order (1998, section 4.1.6 and equation 26).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.ngram_counts import BEGIN, UNKNOWN, Mask, NgramCounts, Order, Rows

Values = NDArray[np.float64]
_LEAST = -99.0  # log10 of what is impossible, as ARPA writes it


@dataclass(frozen=True)
class Estimate:
    """Of one order. All arrays are (K,)."""

    probability: Values  # of the last word after the prefix
    own: Values  # the part of it that does not come from the order below
    back_off: Values  # the share of the order below in what follows the n-gram; 1 in the highest order


def discounts(rarity: tuple[int, ...]) -> Values:
    """(4,) of n-grams seen 0, 1, 2 and more times. Small texts lack the counts for it and get 0.5, 1 and 1.5."""
    usual = np.array([0.0, 0.5, 1.0, 1.5])
    once, twice, thrice, four = rarity
    if not all(rarity):
        return usual
    share = once / (once + 2 * twice)
    found = np.array([0.0, 1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice, 3 - 4 * share * four / thrice])
    return found if (found[1:] > 0).all() and (found <= [0, 1, 2, 3]).all() else usual


def estimate(counts: NgramCounts) -> tuple[Estimate, ...]:
    """Of orders 0 to N."""
    own = _own(counts)
    size = len(counts.words) - 1  # nothing predicts BEGIN
    made = [Estimate(np.array([1 / size]), np.zeros(1), np.zeros(1))]
    for order, mine in zip(counts.orders, own, strict=True):
        below = made[-1]
        back_off = 1 - _sums(order.prefix, mine, len(below.probability))
        made[-1] = Estimate(below.probability, below.own, back_off)
        probability = mine + back_off[order.prefix] * below.probability[order.suffix]
        if len(made) == 1:
            probability[BEGIN] = 0.0
        made.append(Estimate(probability, mine, np.ones(len(order))))
    return tuple(made)


def _own(counts: NgramCounts) -> list[Values]:
    """By order from 1 on, (a(hw) - D) / A(h)."""
    explained: Values = np.zeros(len(counts.orders[-1]))  # by listed n-grams that end in this one
    own: list[Values] = []
    for n in range(len(counts.orders), 0, -1):
        order = counts.orders[n - 1]
        left = order.count - explained
        if n == 1:
            left[[UNKNOWN, BEGIN]] = 0.0  # unknown words only have what discounting leaves for the unseen
        kept = np.maximum(left - discounts(counts.rarities[n - 1])[np.ceil(left).clip(0, 3).astype(np.int8)], 0.0)
        history = _history(counts, n) - _sums(order.prefix, explained, _size(counts, n - 1))
        own.insert(0, kept / np.maximum(history, 1e-9)[order.prefix])
        explained = _sums(order.suffix, explained + kept, _size(counts, n - 1))
    return own


def _history(counts: NgramCounts, n: int) -> Values:
    """How often each n-gram of the order below had a word after it."""
    if n > 1:
        return counts.orders[n - 2].count
    return np.array([counts.tokens - counts.orders[0].count[UNKNOWN]])


def _size(counts: NgramCounts, n: int) -> int:
    return len(counts.orders[n - 1]) if n else 1


def _sums(rows: Rows, values: Values, size: int) -> Values:
    """(size,) of values by row."""
    return np.bincount(rows, values, size).astype(np.float64, copy=False)


def write_arpa(counts: NgramCounts, model: tuple[Estimate, ...], path: Path) -> None:
    """As text, with logarithms to base 10."""
    names = np.array(counts.words, object)
    spelled = np.array([""], object)
    with path.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {n}={len(order)}\n" for n, order in enumerate(counts.orders, 1)))
        for n, (order, made) in enumerate(zip(counts.orders, model[1:], strict=True), 1):
            file.write(f"\n\\{n}-grams:\n")
            spelled = names[order.word] if n == 1 else spelled[order.prefix] + " " + names[order.word]
            file.writelines(_lines(spelled, made, n == len(counts.orders)))
        file.write("\n\\end\\\n")


def _lines(spelled: NDArray[np.object_], made: Estimate, last: bool) -> list[str]:
    probability = np.where(made.probability > 0, np.log10(np.maximum(made.probability, 1e-90)), _LEAST)
    if last:
        return [f"{value:.6g}\t{words}\n" for value, words in zip(probability.tolist(), spelled, strict=True)]
    back_off = np.log10(made.back_off)
    rows = zip(probability.tolist(), spelled, back_off.tolist(), strict=True)
    return [f"{value:.6g}\t{words}\t{weight:.6g}\n" for value, words, weight in rows]


def keep(counts: NgramCounts, kept: Sequence[Mask]) -> NgramCounts:
    """Only those n-grams: a mask by order. Where an n-gram is kept its prefix and its suffix have to be."""
    orders: list[Order] = []
    rows: Rows = np.zeros(1, np.int32)  # from rows of the order below to those that are left of it
    for order, mask in zip(counts.orders, kept, strict=True):
        prefix, suffix = rows[order.prefix[mask]], rows[order.suffix[mask]]
        orders.append(Order(order.word[mask], prefix, suffix, order.count[mask]))
        rows = np.cumsum(mask, dtype=np.int32) - np.int32(1)
    return replace(counts, orders=tuple(orders))
