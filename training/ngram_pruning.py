"""Which n-grams a model can do without, until it has the size that it may have.

Each n-gram has a price, the bits that it takes, and a worth: the relative entropy between the model with it and the
model without it, when the back-off of its prefix takes over what it had (Stolcke 1998, "Entropy-based pruning of
backoff language models"). How likely a prefix is comes from the counts, not from the model, whose lower orders
Kneser-Ney estimates for other ends (Chelba et al. 2010, "Study on interaction between entropy pruning and Kneser-Ney
smoothing"). The n-grams with the least worth for a bit go first. An n-gram is needed by all whose prefix or suffix it
is, so it is worth at least as much as the best of them.

What is left is estimated anew and judged again, in stages: the worth of an n-gram grows when those around it go.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.kneser_ney import Estimate, Values, estimate, keep
from training.ngram_counts import Mask, NgramCounts

_ROUNDS = 60  # of bisection


@dataclass(frozen=True)
class Storage:
    """How KenLM's binary trie holds a model, with a list of its words beside it."""

    probability_bits: int = 8
    back_off_bits: int = 8
    most_chopped: int = 22  # bits of a pointer that may be kept in a table of their own

    def __post_init__(self) -> None:
        for name, bits in (("probability_bits", self.probability_bits), ("back_off_bits", self.back_off_bits)):
            if not 1 <= bits <= 25:
                raise ValueError(f"{name} is {bits}: select from 1 to 25")

    def arguments(self) -> list[str]:
        """Of build_binary."""
        bits = ["-q", str(self.probability_bits), "-b", str(self.back_off_bits)]
        return ["-a", str(self.most_chopped), *bits]

    def record(self, ngrams: Sequence[int], n: int) -> int:
        """Bits of an n-gram of order n > 1, but for its pointer's table."""
        word = ngrams[0].bit_length()
        if n == len(ngrams):
            return word + self.probability_bits
        pointer = ngrams[n].bit_length() - self._chopped(ngrams[n - 1] + 1, ngrams[n])
        return word + self.probability_bits + self.back_off_bits + pointer

    def size(self, ngrams: Sequence[int], letters: int) -> int:
        """Bytes of the trie and of the list; `letters` is the bytes of the list. Within some bytes of alignment."""
        bins = 8 + 4 * ((len(ngrams) - 2) * ((1 << self.probability_bits) + (1 << self.back_off_bits)))
        bins += 4 << self.probability_bits
        header = _aligned(88 + 20 + 8 * len(ngrams)) + len("<unk>\0<s>\0</s>\0")
        total = header + bins + 8 * (ngrams[0] + 1) + 16 * (ngrams[0] + 2) + 2 * letters
        for n in range(2, len(ngrams) + 1):
            total += ((1 + ngrams[n - 1]) * self.record(ngrams, n) + 7) // 8 + 8
            if n < len(ngrams):
                chopped = self._chopped(ngrams[n - 1] + 1, ngrams[n])
                total += 8 * ((ngrams[n] >> (ngrams[n].bit_length() - chopped)) + 2) + 7
        return total

    def _chopped(self, entries: int, largest: int) -> int:
        """As ChopBits in KenLM's bhiksha.cc: a bit less in each record for a table twice as long."""
        required = largest.bit_length()
        cost = {c: (largest >> (required - c)) * 64 - entries * c for c in range(min(required, self.most_chopped) + 1)}
        return min(cost, key=cost.__getitem__)


def prune(counts: NgramCounts, storage: Storage, size: int, stages: int = 4) -> NgramCounts:
    """At most `size` bytes; ValueError when not even the words fit into it."""
    letters = sum(len(word.encode()) + 1 for word in counts.words[3:])
    whole = storage.size(_ngrams(counts), letters)
    smallest = storage.size([len(counts.words), *[0] * (len(counts.orders) - 1)], letters)
    if smallest > size:
        raise ValueError(
            f"size is {size}: {len(counts.words) - 3} words alone take {smallest} bytes; allow more, or fewer words"
        )
    for stage in range(1, stages + 1):
        if whole <= size:
            break
        goal = smallest + (whole - smallest) * ((size - smallest) / (whole - smallest)) ** (stage / stages)
        counts = keep(counts, _fitting(counts, storage, math.floor(goal), letters))
    return counts


def _fitting(counts: NgramCounts, storage: Storage, goal: int, letters: int) -> list[Mask]:
    """By order. The least threshold that leaves at most `goal` bytes."""
    ngrams = _ngrams(counts)
    worths = _worths(counts, estimate(counts), [max(1, storage.record(ngrams, n)) for n in range(2, len(ngrams) + 1)])
    ranked = [np.sort(worth) for worth in worths]
    low, high = 0.0, 1.0 + max(float(worth[-1]) for worth in ranked if len(worth))
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        left = [len(worth) - int(np.searchsorted(worth, middle, side="right")) for worth in ranked]
        fits = storage.size([ngrams[0], *left], letters) <= goal
        low, high = (low, middle) if fits else (middle, high)
    return [np.ones(ngrams[0], bool), *(worth > high for worth in worths)]


def _worths(counts: NgramCounts, model: Sequence[Estimate], prices: Sequence[int]) -> list[Values]:
    """For a bit, by order from 2 on; at least those of all that need the n-gram."""
    found: list[Values] = []
    for n in range(len(counts.orders), 1, -1):
        worth = losses(counts, model, n) / prices[n - 2]
        if found:
            above = counts.orders[n]
            np.maximum.at(worth, above.prefix, found[0])
            np.maximum.at(worth, above.suffix, found[0])
        found.insert(0, worth)
    return found


def losses(counts: NgramCounts, model: Sequence[Estimate], n: int) -> Values:
    """(K,) of order n: what the text would lose in log-likelihood, in nats, without each n-gram.

    Without hw, its prefix h backs off with the weight b' = b + own(hw), and
    loss = count(h) [P(w|h) ln(P(w|h) / (b' P(w|h'))) - b ln(b' / b)],
    where the second part is what all other words after h gain.
    """
    order, made, below = counts.orders[n - 1], model[n], model[n - 1]
    weight = below.back_off[order.prefix]
    more = np.minimum(weight + made.own, 1.0)
    instead = more * below.probability[order.suffix]
    loss = made.probability * np.log(made.probability / instead) - weight * np.log(more / weight)
    return counts.orders[n - 2].count[order.prefix] * loss


def _ngrams(counts: NgramCounts) -> list[int]:
    return [len(order) for order in counts.orders]


def _aligned(place: int) -> int:
    return math.ceil(place / 8) * 8
