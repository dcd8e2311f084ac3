"""Train an n-gram language model of a given size: the one that belongs into a bundle.

python -m training.compact_language_model --text books.txt --words 200000 --size 40000000 --out lm.binary
python -m training.compact_language_model --manifest an4-train.jsonl --size 20000 --least 1 1 --out lm.binary

The model and its list of words, lm.words, together take at most --size bytes. All n-grams seen often enough are
counted, those that matter least are dropped by relative entropy until the rest fits (ngram_pruning.py), and the rest is
estimated as a Kneser-Ney model of just those n-grams (kneser_ney.py). At equal size it predicts a text better than
dropping n-grams by their counts, which `python -m training.language_model --prune` does. Text is normalised as there.

KenLM's build_binary is needed (`make kenlm`). The text is read once and counted in memory, with about 18 bytes a word.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from asr_server.alphabet import Alphabet
from training.kneser_ney import estimate, write_arpa
from training.language_model import Report, find_tool, normalise, run_tool, sentences_of, words_beside
from training.ngram_counts import count
from training.ngram_pruning import Storage, prune

ORDERS = range(2, 7)


@dataclass(frozen=True)
class CompactRecipe:
    """What to count and how much may be left of it."""

    size: int  # bytes
    words: int = 200_000  # the most frequent ones; all others are unknown
    least: tuple[int, ...] = (2, 2, 3)  # how often an n-gram was seen to be considered, for orders 2 to N
    storage: Storage = field(default_factory=Storage)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size} bytes: at least 1")
        if len(self.least) + 1 not in ORDERS:
            raise ValueError(
                f"least is {list(self.least)}: one count for each order from 2 on, up to {ORDERS.stop - 1}"
            )


def train(sentences: Iterable[str], out: Path, recipe: CompactRecipe, alphabet: Alphabet | None = None) -> Report:
    """Write `out` and its .words; ValueError says what is missing or cannot be. Whole or not at all."""
    build_binary, beside = find_tool("build_binary"), words_beside(out)
    usable = _Usable(sentences, alphabet or Alphabet())
    counts = prune(count(usable, recipe.words, recipe.least), recipe.storage, recipe.size)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as near:
        arpa, made, words = Path(near) / "arpa", Path(near) / "model", Path(near) / "words"
        write_arpa(counts, estimate(counts), arpa)
        run_tool([build_binary, *recipe.storage.arguments(), "-T", f"{near}/", "trie", str(arpa), str(made)])
        words.write_text("".join(f"{word}\n" for word in sorted(counts.words[3:])), encoding="utf-8")
        made.chmod(0o644)  # KenLM makes it executable, too
        size = made.stat().st_size
        made.replace(out)
        words.replace(beside)
    return Report(counts.sentences, usable.left_out, tuple(len(order) for order in counts.orders), size)


class _Usable:
    """Sentences in the alphabet's characters, and how many were not."""

    def __init__(self, sentences: Iterable[str], alphabet: Alphabet) -> None:
        self.left_out = 0
        self._sentences = sentences
        self._alphabet = alphabet

    def __iter__(self) -> Iterator[str]:
        for line in self._sentences:
            sentence = normalise(line, self._alphabet)
            self.left_out += sentence is None
            if sentence:
                yield sentence


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.compact_language_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--text", type=Path, nargs="+", default=[], metavar="FILE", help="text files, also .gz")
    add("--manifest", type=Path, nargs="+", default=[], metavar="FILE", help="JSON lines with a text")
    add("--out", type=Path, required=True, metavar="FILE", help="model to write, as lm.binary")
    add("--size", type=int, required=True, metavar="BYTES", help="of the model and its list of words, at most")
    add("--words", type=int, default=200_000, metavar="N", help="only the most frequent ones (default %(default)s)")
    add(
        "--least",
        type=int,
        nargs="+",
        default=[2, 2, 3],
        metavar="COUNT",
        help="n-grams seen less often are not considered, by order from 2 on; how many there are says the model's "
        "order (default: 2 2 3, a 4-gram)",
    )
    add("--probability-bits", type=int, default=8, metavar="BITS", help="default %(default)s")
    add("--back-off-bits", type=int, default=8, metavar="BITS", help="default %(default)s")
    add("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser


def figures(report: Report, out: Path) -> dict[str, object]:
    return {
        "sentences": report.sentences,
        "left_out": report.left_out,
        "words": report.ngrams[0] - 3,  # without <s>, </s> and <unk>
        "bytes": report.size,
        "bytes_of_words": words_beside(out).stat().st_size,
        "ngrams": report.ngrams,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    if not args.text and not args.manifest:
        parser.error("nothing to learn from: give --text or --manifest")
    try:
        storage = Storage(args.probability_bits, args.back_off_bits)
        recipe = CompactRecipe(args.size, args.words, tuple(args.least), storage)
        lines = tqdm(sentences_of(args.text, args.manifest), "reading", unit=" lines", disable=None)
        report = train(lines, args.out, recipe)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; nothing was written\n")
    print(f"{args.out}: {report.size:,} bytes, n-grams {' '.join(map(str, report.ngrams))}")
    print(f"from {report.sentences:,} sentences; {report.left_out:,} lines left out")
    if args.json:
        print(json.dumps(figures(report, args.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
