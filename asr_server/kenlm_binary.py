"""KenLM's binary format, version 5, read far enough to know that no lookup in a file can leave it.

KenLM checks the header and the size. The pointers, hash tables and bit counts inside it believes, so a damaged file
crashes the process or makes it loop. `check` follows every pointer once instead: what it lets through may hold wrong
numbers, but each of them lies where KenLM will look for it. Layout: lm/binary_format.cc, vocab.cc, search_trie.cc,
trie.cc, bhiksha.cc, quantize.hh and search_hashed.hh of github.com/kpu/kenlm.

    header      88 bytes with fixed values, 20 of parameters, 8 for the number of n-grams of each order, up to 8
    vocabulary  hashes of the words: sorted (trie), or as keys of a table with the word's number (probing)
    search      trie:    [bins of quantised values] unigrams, then an array of bit-packed records for each order;
                         a record holds its last word, its values and where its continuations begin in the next array
                probing: unigrams, then a hash table for each order
    words       where there are any, the words in order, ended by zeros; "<unk>" is first
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Data: TypeAlias = NDArray[np.uint8]
Numbers: TypeAlias = NDArray[np.uint64]

MAGIC = b"mmap lm http://kheafield.com/code format version "
_SANITY = struct.pack("<52s4x3f3IQ", MAGIC + b"5\n", 0.0, 1.0, -0.5, 1, 2**32 - 1, 0, 1)
_FIXED = struct.Struct("<B3xfIB3xI")  # order, probing multiplier, type, whether there are words, version of the search
_PROBING, _TRIE, _QUANT, _ARRAY = 0, 2, 1, 2  # a trie's type is _TRIE + its options
_MOST_BITS = 25  # of a quantised value
_PIECE = 1 << 20  # records looked at together


@dataclass(frozen=True)
class _Header:
    kind: int
    multiplier: float
    has_words: bool
    counts: tuple[int, ...]  # n-grams of order 1, 2, ...
    size: int  # bytes


def is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def check(path: Path) -> None:
    """ValueError says what is wrong with a file; it names no file."""
    if path.stat().st_size < len(_SANITY) + _FIXED.size:
        raise ValueError("cut off in its header")
    data = np.memmap(path, np.uint8, "r")
    header = _header(data)
    end = (_check_probing if header.kind == _PROBING else _check_trie)(data, header)
    if header.has_words and bytes(data[end : end + 6]) != b"<unk>\0":
        raise ValueError("the words are not where its header says")


def _header(data: Data) -> _Header:
    if bytes(data[: len(_SANITY)]) != _SANITY:
        version = bytes(data[len(MAGIC) : len(MAGIC) + 8]).split(b"\n")[0].decode("ascii", "replace")
        raise ValueError(f"format version {version!r}, or made on another kind of machine; this reads version 5")
    order, multiplier, kind, has_words, search = _FIXED.unpack(bytes(data[len(_SANITY) :][: _FIXED.size]))
    if kind not in (_PROBING, *range(_TRIE, _TRIE + _QUANT + _ARRAY + 1)):
        raise ValueError(f"type {kind}: select one of probing (0) and trie (2 to 5)")
    if search != (0 if kind == _PROBING else 1):
        raise ValueError(f"version {search} of its search structure is not known")
    if not 1.0 <= multiplier <= 1000:  # also refuses NaN
        raise ValueError(f"probing multiplier {multiplier}: at least 1")
    if has_words > 1 or not 2 <= order <= 16:
        raise ValueError(f"order {order}: at least 2, and at most what KenLM was compiled for")
    begin = len(_SANITY) + _FIXED.size
    counts = struct.unpack(f"<{order}Q", bytes(data[begin : begin + 8 * order]).ljust(8 * order, b"\xff"))
    if sum(counts) > 8 * len(data) or not counts[0]:  # before any arithmetic with them: an n-gram takes some bits
        raise ValueError(f"{counts} n-grams in {len(data)} bytes")
    return _Header(kind, multiplier, bool(has_words), counts, _aligned(begin + 8 * order))


class _Reader:
    """Goes through a file from its header on. ValueError where it ends too early."""

    def __init__(self, data: Data, place: int) -> None:
        self.data = data
        self.place = place

    def skip(self, size: int) -> int:
        """Where the next `size` bytes begin."""
        begin = self.place
        self.place += size
        if self.place > len(self.data):
            raise ValueError(f"has {len(self.data)} bytes, its header promises at least {self.place}")
        return begin

    def array(self, dtype: Any, count: int) -> NDArray[Any]:
        size = np.dtype(dtype).itemsize * count
        begin = self.skip(size)
        return self.data[begin : begin + size].view(dtype)

    def bits(self, base: int, first: Numbers, size: int) -> Numbers:
        """Integers of `size` bits at the bits `first` after the byte `base`."""
        words: Numbers = np.ndarray(len(self.data) - 7, "<u8", self.data, strides=(1,))
        found: Numbers = words[base + (first >> np.uint64(3)).astype(np.int64)] >> (first & np.uint64(7))
        found &= np.uint64((1 << size) - 1)
        return found


def _check_probing(data: Data, header: _Header) -> int:
    reader = _Reader(data, header.size)
    reader.skip(8)
    words = reader.array([("key", "<u8"), ("value", "<u4")], _buckets(header, 0))
    _has_room(words["key"])
    if int(words["value"].max()) > header.counts[0]:
        raise ValueError("a word has a number outside of the unigrams")
    _are_numbers(reader.array("<f4", 2 * (header.counts[0] + 1)))
    for n in range(1, len(header.counts)):
        values = 2 if n + 1 < len(header.counts) else 1
        table = reader.array([("key", "<u8"), ("values", "<f4", (values,))], _buckets(header, n))
        _has_room(table["key"])
        _are_numbers(table["values"][table["key"] != 0])
    return reader.place


def _buckets(header: _Header, n: int) -> int:
    entries = header.counts[n]
    return max(entries + 1, int(np.float32(header.multiplier) * np.float32(entries)))


def _has_room(keys: NDArray[Any]) -> None:
    """A table without an empty place is searched for ever for a key that it does not have."""
    if not len(keys) or bool(keys.all()):
        raise ValueError("a hash table is full")


def _check_trie(data: Data, header: _Header) -> int:
    reader, counts, order = _Reader(data, header.size), header.counts, len(header.counts)
    options = header.kind - _TRIE
    (known,) = reader.array("<u8", 1)
    hashes = reader.array("<u8", counts[0])
    if int(known) > counts[0] or not _rises(hashes[: int(known)]):
        raise ValueError("the vocabulary is longer than its place, or not sorted")
    middle_bits, longest_bits = 63, 31  # a probability has no sign
    if options & _QUANT:
        middle_bits, longest_bits = _bins(reader, order)
    unigrams = reader.array([("values", "<f4", (2,)), ("next", "<u8")], counts[0] + 2)
    used = unigrams[: int(known) + 2]
    _are_numbers(used["values"][:-1])
    _lead_into(used["next"], counts[1])
    chop = None
    for n in range(1, order - 1):
        if options & _ARRAY and chop is None:
            version, chop = (int(value) for value in reader.data[reader.place :][:2])
            if version != 0:
                raise ValueError(f"version {version} of its compressed pointers is not known")
        _check_middle(reader, counts, n, middle_bits, chop, bool(options & _QUANT))
    begin, record = _records(reader, counts[-1], counts[0], longest_bits)
    if not options & _QUANT:
        for first in _pieces(counts[-1]):
            _are_finite_bits(reader.bits(begin, first * np.uint64(record) + np.uint64(record - 31), 31))
    return reader.place


def _bins(reader: _Reader, order: int) -> tuple[int, int]:
    """The tables that quantised values stand for. Bits of a record's values, in the middle orders and in the last."""
    version, probability, backoff = (int(value) for value in reader.array("u1", 8)[:3])
    if version != 2 or not (1 <= probability <= _MOST_BITS and 1 <= backoff <= _MOST_BITS):
        raise ValueError(f"quantisation {version} with {probability} and {backoff} bits: 2, with 1 to {_MOST_BITS}")
    for bits in [*([probability, backoff] * (order - 2)), probability]:
        _are_numbers(reader.array("<f4", 1 << bits))
    return probability + backoff, probability


def _check_middle(
    reader: _Reader, counts: tuple[int, ...], n: int, value_bits: int, chop: int | None, quantised: bool
) -> None:
    """Order n + 1. Each record's continuations lie between its pointer and that of the record after it."""
    entries, after = counts[n], counts[n + 1]
    pointer_bits, offsets = after.bit_length(), None
    if chop is not None:
        pointer_bits -= _chopped(entries + 1, after, chop)
        length = (after >> pointer_bits) + 1
        place = reader.skip(8 * (length + 1) + 7)
        offsets = reader.data[_aligned(place) + 8 :][: 8 * length].view("<u8")
        if offsets[0] != 0 or not _rises(offsets):
            raise ValueError("the compressed pointers are not sorted")
    begin, record = _records(reader, entries, counts[0], value_bits + pointer_bits)
    last = 0
    for index in _pieces(entries + 1):
        ends = (index + np.uint64(1)) * np.uint64(record)
        pointers = reader.bits(begin, ends - np.uint64(pointer_bits), pointer_bits)
        if offsets is not None:
            high = (np.searchsorted(offsets, index, side="right") - 1).astype(np.uint64)
            pointers = (high << np.uint64(pointer_bits)) | pointers
        _lead_into(np.concatenate([np.array([last], np.uint64), pointers]), after)
        last = int(pointers[-1])
        if not quantised:
            values = ends - np.uint64(pointer_bits + 63)
            used = index < np.uint64(entries)
            _are_finite_bits(reader.bits(begin, values[used], 31))
            _are_finite_bits(reader.bits(begin, (values + np.uint64(31))[used], 32))


def _records(reader: _Reader, entries: int, words: int, rest: int) -> tuple[int, int]:
    """Where an array of one record more than entries begins, and the bits of a record."""
    record = words.bit_length() + rest
    return reader.skip(((1 + entries) * record + 7) // 8 + 8), record


def _chopped(entries: int, largest: int, most: int) -> int:
    """How many high bits of a pointer are kept in a table, as ChopBits in bhiksha.cc chooses."""
    required = largest.bit_length()
    cost = {chop: (largest >> (required - chop)) * 64 - entries * chop for chop in range(min(required, most) + 1)}
    return min(cost, key=cost.__getitem__)


def _pieces(count: int) -> Iterator[Numbers]:
    for begin in range(0, count, _PIECE):
        yield np.arange(begin, min(begin + _PIECE, count), dtype=np.uint64)


def _lead_into(pointers: NDArray[Any], count: int) -> None:
    if not _rises(pointers) or int(pointers[-1]) > count:
        raise ValueError("a pointer leads out of the n-grams of the next order")


def _rises(values: NDArray[Any]) -> bool:
    return bool((values[1:] >= values[:-1]).all())


def _are_numbers(values: NDArray[Any]) -> None:
    if bool(np.isnan(values).any()):
        raise ValueError("a probability is not a number")


def _are_finite_bits(values: Numbers) -> None:
    """Floats as bits, where infinity's exponent with a fraction is no number."""
    if bool(((values & np.uint64(0x7FFFFFFF)) > np.uint64(0x7F800000)).any()):
        raise ValueError("a probability is not a number")


def _aligned(place: int) -> int:
    return math.ceil(place / 8) * 8
