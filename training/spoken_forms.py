"""Sentences that people say to machines and that no book has: spelled words, codes, numbers, dates and times.

python -m training.spoken_forms --words common.words --sentences 2400000 --out spoken-forms.txt
python -m training.compact_language_model --text books.txt spoken-forms.txt --size 40000000 --out lm.binary

To a language model of books "i" is a person and "a" an article: next to each other they are as good as forbidden, and a
search with that model leaves letters out. Sentences of letters and numbers, a fifth of all, teach it otherwise.
All are made up: the seed decides them, and nothing of a recording's transcript is in them.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
]
UNITS += ["seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
ORDINALS |= {"twelve": "twelfth"}


def cardinal(number: int) -> str:
    """0 to 999,999 in words, without "and"."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        tens = TENS[number // 10 - 2]
        return f"{tens} {UNITS[number % 10]}" if number % 10 else tens
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            head = f"{cardinal(number // size)} {name}"
            return f"{head} {cardinal(number % size)}" if number % size else head
    raise AssertionError(number)


def ordinal(number: int) -> str:
    """1 to 999,999 in words."""
    before, _, last = cardinal(number).rpartition(" ")
    last = ORDINALS.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return f"{before} {last}".lstrip()


def year(number: int) -> str:
    """1100 to 2099 as they are said."""
    century, rest = divmod(number, 100)
    if century == 20 and rest < 10:
        return cardinal(number)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {f'oh {UNITS[rest]}' if rest < 10 else cardinal(rest)}"


class SpokenForms:
    """An endless row of sentences. ValueError where no word can be spelled."""

    def __init__(self, words: Sequence[str], seed: int = 0) -> None:
        self._words = [word for word in words if len(word) > 1 and set(word) <= set(LETTERS)]
        if not self._words:
            raise ValueError(f"{len(words)} words, and none of two letters a to z or more: nothing to spell")
        self._draw = random.Random(seed)
        self._kinds: Sequence[Callable[[], str]] = (
            *(3 * [self.spelled]),
            *(2 * [self.digits]),
            self.code,
            self.number,
            self.date,
            self.time,
        )

    def __iter__(self) -> Iterator[str]:
        while True:
            yield self._draw.choice(self._kinds)()

    def spelled(self) -> str:
        """A word letter by letter, at times with the word before it; at times no word at all."""
        if self._draw.random() < 0.25:
            return " ".join(self._draw.choices(LETTERS, k=self._draw.randint(1, 8)))
        word = self._draw.choice(self._words)
        return f"{word} {' '.join(word)}" if self._draw.random() < 0.25 else " ".join(word)

    def digits(self) -> str:
        """As in telephone numbers and postal codes, with both names of nought."""
        nought = self._draw.choice(("oh", "zero"))
        digits = self._draw.choices(range(10), k=self._draw.randint(2, 10))
        return " ".join(UNITS[digit] if digit else nought for digit in digits)

    def code(self) -> str:
        """Letters and numbers in any order."""
        parts = (
            lambda: self._draw.choice(LETTERS),
            lambda: cardinal(self._draw.randrange(self._draw.choice((10, 100, 1000)))),
        )
        return " ".join(self._draw.choice(parts)() for _ in range(self._draw.randint(2, 8)))

    def number(self) -> str:
        return cardinal(self._draw.randrange(10 ** self._draw.randint(1, 6)))

    def date(self) -> str:
        day = self._draw.randint(1, 31)
        said = f"{self._draw.choice(MONTHS)} {self._draw.choice((ordinal, cardinal))(day)}"
        if self._draw.random() < 0.5:
            said += f" {year(self._draw.randint(1900, 2039))}"
        return f"{self._draw.choice(DAYS)} {said}" if self._draw.random() < 0.2 else said

    def time(self) -> str:
        minutes = self._draw.choice((0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55))
        past = "" if not minutes else f" oh {UNITS[minutes]}" if minutes < 10 else f" {cardinal(minutes)}"
        return f"{cardinal(self._draw.randint(1, 12))}{past}{self._draw.choice(('', ' a m', ' p m'))}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.spoken_forms",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--words", type=Path, required=True, metavar="FILE", help="words to spell, one a line: a model's .words")
    add("--sentences", type=int, default=300_000, metavar="N", help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--out", type=Path, required=True, metavar="FILE", help="text to write, a sentence a line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        if args.sentences < 1:
            raise ValueError(f"--sentences is {args.sentences}: at least 1")
        sentences = iter(SpokenForms(args.words.read_text(encoding="utf-8").split(), args.seed))
        with args.out.open("w", encoding="utf-8") as file:
            for _ in range(args.sentences):
                print(next(sentences), file=file)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{args.out}: {args.sentences:,} sentences")
    return 0


if __name__ == "__main__":
    sys.exit(main())
