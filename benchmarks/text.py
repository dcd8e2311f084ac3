"""Text to make a language model from and sentences to be recognised, in the alphabet's characters."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from asr_server.alphabet import Alphabet
from training.language_model import normalise

LENGTHS = range(40, 141)  # characters of a test sentence
SENTENCE_END = re.compile(r"\n\s*\n|[.;:!?](?=\s)")
UNWRITTEN = re.compile(r"<\w+>|\S*\d\S*")  # WikiText's <unk>, and numbers, which nobody has spelled out
CLITIC = re.compile(r"\s+'\s*(?=(?:s|t|re|ve|ll|d|m)\b)")  # WikiText's tokens: poet 's, don 't
QUOTE = re.compile(r"(?<![a-z])'|'(?![a-z])")


@dataclass(frozen=True)
class Text:
    name: str
    model: tuple[str, ...]  # what the language model is made from
    test: tuple[str, ...]  # sentences, none of them in `model`

    def __post_init__(self) -> None:
        if not self.model or not self.test:
            choices = f"{len(self.model)} for the language model and {len(self.test)} for the test"
            raise ValueError(f"text {self.name!r} has too few sentences, {choices}: at least one of each")


def wikitext(folder: Path) -> Text:
    """WikiText-2 as pytorch/examples has it: the language model is made from valid.txt, the test is of test.txt."""
    for name in ("valid.txt", "test.txt"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{str(folder / name)!r} does not exist: --wikitext is a folder with valid.txt and test.txt"
            )
    valid, test = ((folder / name).read_text(encoding="utf-8") for name in ("valid.txt", "test.txt"))
    return _text("wikitext-2", [valid], [test])


def standard_library() -> Text:
    """What every CPython carries: the topics of `help()`, of which every fourth is for the test."""
    names = sorted(topics)
    return _text(
        "pydoc topics", [topics[name] for i, name in enumerate(names) if i % 4], [topics[name] for name in names[::4]]
    )


def pieces(sentence: str) -> list[str]:
    """What the alphabet can write of it, cut where something cannot be written: no n-gram spans a gap."""
    return [piece for part in UNWRITTEN.split(sentence) if (piece := _normalised(part))]


def sentences(text: str) -> Iterator[str]:
    return (sentence for sentence in SENTENCE_END.split(text) if sentence.strip())


def _text(name: str, model: Iterable[str], test: Iterable[str]) -> Text:
    learned = [piece for text in model for sentence in sentences(text) for piece in pieces(sentence)]
    whole = [_normalised(s) for text in test for s in sentences(text) if not UNWRITTEN.search(s)]
    seen = set(learned)
    fresh = dict.fromkeys(s for s in whole if s and len(s) in LENGTHS and s not in seen)  # each once, in order
    return Text(name, tuple(learned), tuple(fresh))


def _normalised(text: str) -> str:
    written = normalise(CLITIC.sub("'", text.lower()), Alphabet())
    return " ".join(QUOTE.sub(" ", written or "").split())
