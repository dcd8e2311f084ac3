"""What a text model (ARPA) may not do to the program that reads it.

KenLM's parser refuses what is not ARPA, but first reserves what the header announces, and it takes "nan" for a number.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

_HEADER = 1 << 16  # bytes that the header may take
_COUNTS = re.compile(rb"\A(?:[ \t\r]*\n|#[^\n]*\n)*\\data\\\r?\n((?:ngram [^\n]*\n)+)")
_COUNT = re.compile(rb"ngram +\d+=\s*(\d{1,18})\s*")
_SHORTEST = 4  # bytes of an n-gram: a digit, a tab, a letter, the end of the line
_NOT_A_NUMBER = re.compile(rb"(?i)(?:^|\t)[-+]?nan[ \t\r\n]", re.MULTILINE)


def check(path: Path) -> None:
    """ValueError says what is wrong with a file; it names no file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        found = _COUNTS.match(file.read(_HEADER))
        if found is None:
            raise ValueError(r"it begins with neither KenLM's header nor \data\ and the numbers of n-grams")
        counts = [_count(line) for line in found[1].splitlines()]
        if sum(counts) * _SHORTEST > size:
            raise ValueError(f"{counts} n-grams in {size} bytes")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            if wrong := _NOT_A_NUMBER.search(text):
                raise ValueError(f"byte {wrong.start()}: a probability is not a number")


def _count(line: bytes) -> int:
    found = _COUNT.fullmatch(line)
    if found is None:
        raise ValueError(f"{line[:40]!r} does not say how many n-grams there are")
    return int(found[1])
