"""How much of a test's transcripts stands in the text of a language model, and that text without it.

python -m training.text_overlap --text books.txt --test test-clean.jsonl
python -m training.text_overlap --text books.txt forms.txt --test test-clean.jsonl an4-test.jsonl --out clean --json

A language model that has read the test's own book hears it better than anything else, so the figure is not what a user
gets. A line of a text shares something with a transcript where both have the same --words words in a row, or where the
whole line is a transcript of at least 4 words: shorter ones are anybody's. --out gets the texts, by their names,
without these lines. Texts, plain or .gz, have a sentence a line; both sides are normalised as for a language model.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from asr_server.alphabet import Alphabet
from training.data_overlap import SHARED_WORDS
from training.language_model import normalise, sentences_of

WORDS = 8


@dataclass(frozen=True)
class Transcripts:
    """What to look for. passages: words in a row -> the utterances, by number, that have them; whole: likewise."""

    count: int
    words: int
    passages: dict[str, list[int]]
    whole: dict[str, list[int]]

    def shared(self, line: str) -> set[int]:
        """The utterances that a normalised line has something of."""
        found = set(self.whole.get(line, ()))
        if line.count(" ") + 1 >= self.words:
            for passage in _passages(line.split(), self.words):
                found.update(self.passages.get(passage, ()))
        return found


@dataclass
class Overlap:
    """Of one text: its lines, those that share something, and the utterances that they share it with."""

    lines: int = 0
    shared_lines: int = 0
    utterances: set[int] = field(default_factory=set)


def transcripts(texts: Iterable[str], words: int = WORDS, alphabet: Alphabet | None = None) -> Transcripts:
    """ValueError where words is not positive."""
    if words < 1:
        raise ValueError(f"words is {words}: at least 1")
    passages: dict[str, list[int]] = {}
    whole: dict[str, list[int]] = {}
    count = 0
    for count, text in enumerate(texts, 1):
        line = normalise(text, alphabet or Alphabet()) or ""
        if line.count(" ") + 1 >= SHARED_WORDS:
            whole.setdefault(line, []).append(count - 1)
        for passage in _passages(line.split(), words):
            passages.setdefault(passage, []).append(count - 1)
    return Transcripts(count, words, passages, whole)


def clean(lines: Iterable[str], of: Transcripts, into: Overlap, alphabet: Alphabet | None = None) -> Iterator[str]:
    """The lines that share nothing, as they are; `into` counts."""
    alphabet = alphabet or Alphabet()
    for line in lines:
        into.lines += 1
        if shared := of.shared(normalise(line, alphabet) or ""):
            into.shared_lines += 1
            into.utterances |= shared
        else:
            yield line


def _passages(words: Sequence[str], length: int) -> Iterator[str]:
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))


def _cleaned_names(texts: Sequence[Path], tests: Sequence[Path], out: Path) -> list[Path]:
    """Where the cleaned texts go; ValueError where one would be written over another or over what is read."""
    names = [text.name.removesuffix(".gz") for text in texts]
    if len({*names}) < len(names):
        raise ValueError(
            f"--out needs texts of different names, .gz apart, not {' '.join(text.name for text in texts)}"
        )
    read = {path.resolve(): path for path in (*texts, *tests)}
    for name in names:
        if (target := (out / name).resolve()) in read:
            raise ValueError(f"--out {out}: {name} would be written over {read[target]}, which is read: another folder")
    return [out / name for name in names]


def run(args: argparse.Namespace) -> None:
    cleaned = [] if args.out is None else _cleaned_names(args.text, args.test, args.out)
    of = transcripts(sentences_of([], args.test), args.words)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    found, all_utterances = {}, set()
    for place, text in enumerate(args.text):
        overlap = Overlap()
        kept = clean(tqdm(sentences_of([text], []), text.name, unit="line", disable=None), of, overlap)
        if args.out is None:
            for _ in kept:
                pass
        else:
            with cleaned[place].open("w", encoding="utf-8") as file:
                file.writelines(line if line.endswith("\n") else f"{line}\n" for line in kept)
        all_utterances |= overlap.utterances
        found[str(text)] = {
            "lines": overlap.lines,
            "shared_lines": overlap.shared_lines,
            "utterances": len(overlap.utterances),
        }
        print(
            f"{text}: {overlap.shared_lines:,} of {overlap.lines:,} lines share something with "
            f"{len(overlap.utterances):,} of {of.count:,} utterances"
        )
    if args.json:
        print(json.dumps({"utterances": of.count, "shared": len(all_utterances), "words": of.words, "texts": found}))


def build_parser() -> argparse.ArgumentParser:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m training.text_overlap", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--text", type=Path, nargs="+", required=True, metavar="FILE", help="of a language model, a sentence a line")
    add("--test", type=Path, nargs="+", required=True, metavar="MANIFEST", help="whose transcripts must not be in it")
    add("--words", type=int, default=WORDS, help="in a row that are a passage (default: %(default)s)")
    add("--out", type=Path, metavar="DIR", help="write the texts without the lines that share something")
    add("--json", action="store_true", help="the counts as one JSON object on the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        run(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
