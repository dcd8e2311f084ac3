"""Train an n-gram language model with KenLM.

python -m training.language_model --manifest an4-train.jsonl --out lm.binary
python -m training.language_model --text books.txt.gz news.txt --order 4 --prune 0 0 1 --out lm.binary

Writes the model (modified Kneser-Ney, a binary trie) and beside it its vocabulary, lm.words, which the lexicon mode of
the beam search needs; a bundle holds both. An --out that ends in .arpa stays text. One sentence a line; letters become
lower case and lose their accents, punctuation separates words, and lines with digits or letters outside the model's
alphabet are left out and counted: spell numbers out before.

KenLM's programs lmplz and build_binary are found in $EARSIGHT_KENLM_BIN, beside the Python interpreter or on the PATH;
`make kenlm` builds them. Temporary files go to $TMPDIR and take about ten times the size of the text.
"""

import argparse
import gzip
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from asr_server.alphabet import Alphabet
from asr_server.language_model import SPACE, UNITS

ORDERS = range(2, 7)  # a trie needs bigrams, the Python module is compiled for at most 6
BITS = range(26)


@dataclass(frozen=True)
class Recipe:
    """How to estimate and store the model."""

    order: int = 3
    prune: tuple[int, ...] = ()  # n-grams seen at most so often are dropped, from unigrams on; the last one goes on
    vocabulary: Path | None = None  # a file of words; every other word is unknown. None: every word of the text
    quantise: int = 8  # bits of a probability and of a back-off; 0 keeps them in single precision
    memory: str = "40%"  # for sorting, as lmplz reads it
    unit: str = UNITS[0]  # "character": the model spells, with | for the space

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order is {self.order}: select from {ORDERS.start} to {ORDERS.stop - 1}")
        if self.quantise not in BITS:
            raise ValueError(f"quantise is {self.quantise}: select from 0 to {BITS.stop - 1} bits")
        if list(self.prune) != sorted(self.prune) or any(self.prune[:1]) or len(self.prune) > self.order:
            raise ValueError(f"prune is {list(self.prune)}: at most {self.order} counts, 0 first, never falling")
        if self.unit not in UNITS:
            raise ValueError(f"unit is {self.unit!r}: select one of {UNITS}")
        if self.vocabulary is not None and not self.vocabulary.is_file():
            raise ValueError(f"vocabulary {str(self.vocabulary)!r} does not exist")


@dataclass(frozen=True)
class Report:
    """What went into the model and what came out."""

    sentences: int
    left_out: int  # lines that the alphabet cannot write
    ngrams: tuple[int, ...]  # by order
    size: int  # bytes


def train(sentences: Iterable[str], out: Path, recipe: Recipe, alphabet: Alphabet | None = None) -> Report:
    """Write `out` and its .words; ValueError says what is missing or what KenLM refuses. Whole or not at all."""
    lmplz, build_binary, beside = find_tool("lmplz"), find_tool("build_binary"), words_beside(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="earsight-lm-") as name,
        tempfile.TemporaryDirectory(dir=out.parent) as near,
    ):
        folder, made = Path(name), Path(near) / "model"
        text, arpa = folder / "text", folder / "arpa"
        count, left_out = _write(sentences, text, alphabet or Alphabet(), recipe.unit)
        run_tool(_estimation(lmplz, recipe, text, arpa, folder))
        ngrams, words = ngram_counts(arpa), _vocabulary(arpa)
        if out.suffix == ".arpa":
            shutil.copyfile(arpa, made)
        else:
            run_tool([build_binary, *_storage(recipe), "-T", f"{folder}/", "trie", str(arpa), str(made)])
        made.chmod(0o644)  # KenLM makes it executable, too
        size = made.stat().st_size
        made.replace(out)
    beside.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return Report(count, left_out, ngrams, size)


def words_beside(model: Path) -> Path:
    """Where a model's list of words is looked for; ValueError where a number in its name would be taken for the suffix,
    so that several models had one list."""
    if model.suffix[1:2].isdigit():
        beside, better = model.with_suffix(".words").name, f"{model.name}.binary"
        raise ValueError(f"{model}: its list of words would be {beside}, without {model.suffix}: name it {better}")
    return model.with_suffix(".words")


def normalise(line: str, alphabet: Alphabet) -> str | None:
    """A sentence in the alphabet's characters; None when a digit or a letter in it is not among them."""
    line = unicodedata.normalize("NFKD", line.replace("’", "'").lower())  # noqa: RUF001
    line = "".join(character for character in line if not unicodedata.combining(character))
    outside = {character for character in line if character not in alphabet.labels}
    if any(character.isalnum() for character in outside):
        return None
    return " ".join("".join(" " if character in outside else character for character in line).split())


def find_tool(name: str) -> str:
    """The path of one of KenLM's programs."""
    folders = [os.environ.get("EARSIGHT_KENLM_BIN", ""), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(folder for folder in folders if folder))
    if found is None:
        raise ValueError(
            f"KenLM's {name} is neither in $EARSIGHT_KENLM_BIN nor beside {sys.executable} nor on the PATH; "
            "'make kenlm' (scripts/build_kenlm.sh) builds it"
        )
    return found


def _write(sentences: Iterable[str], path: Path, alphabet: Alphabet, unit: str) -> tuple[int, int]:
    """How many sentences were written and how many left out."""
    count = left_out = 0
    with path.open("w", encoding="utf-8") as file:
        for line in sentences:
            sentence = normalise(line, alphabet)
            left_out += sentence is None
            if sentence:
                file.write(f"{sentence if unit == 'word' else ' '.join(sentence.replace(' ', SPACE))}\n")
                count += 1
    if not count:
        raise ValueError(f"the text has no sentence in the alphabet {''.join(alphabet.labels)!r} ({left_out} left out)")
    return count, left_out


def _estimation(lmplz: str, recipe: Recipe, text: Path, arpa: Path, folder: Path) -> list[str]:
    # Small texts lack the counts that the discounts are estimated from; without the fallback lmplz gives up on them.
    command = [lmplz, "--order", str(recipe.order), "--discount_fallback", "--memory", recipe.memory]
    command += ["--text", str(text), "--arpa", str(arpa), "--temp_prefix", f"{folder}/"]
    if recipe.prune:
        command += ["--prune", *map(str, recipe.prune)]
    if recipe.vocabulary:
        command += ["--limit_vocab_file", str(recipe.vocabulary)]
    return command


def _storage(recipe: Recipe) -> list[str]:
    if not recipe.quantise:
        return []
    return ["-a", "22", "-q", str(recipe.quantise), "-b", str(recipe.quantise)]  # -a: compressed pointers


def run_tool(command: Sequence[str]) -> None:
    """Run one of KenLM's programs. Its own progress goes to a terminal; ValueError with its last line if it fails."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        last: deque[str] = deque(maxlen=1)
        while line := process.stderr.readline():
            if sys.stderr.isatty():
                sys.stderr.write(line)
            if line.strip():
                last.append(line.strip())
    if process.returncode:
        reason = last[0] if last else "without a word"
        raise ValueError(f"{Path(command[0]).name} failed with status {process.returncode}: {reason}")


def ngram_counts(arpa: Path) -> tuple[int, ...]:
    """The number of n-grams by order."""
    with arpa.open(encoding="utf-8") as lines:
        header = itertools.takewhile(lambda line: not line.startswith("\\1-grams:"), lines)
        return tuple(int(counted[1]) for line in header if (counted := re.match(r"ngram \d+=\s*(\d+)", line)))


def _vocabulary(arpa: Path) -> list[str]:
    """Sorted, without <s>, </s> and <unk>."""
    with arpa.open(encoding="utf-8") as lines:
        unigrams = itertools.takewhile(lambda line: not line.startswith("\\2-grams:"), lines)
        rows = [line.split("\t") for line in unigrams]
    return sorted(row[1].strip() for row in rows if len(row) > 1 and not row[1].startswith("<"))


def sentences_of(texts: Sequence[Path], manifests: Sequence[Path]) -> Iterator[str]:
    """Lines of text files, plain or .gz, then the transcripts of manifests (their audio is not looked at).

    ValueError names a file that is missing or broken.
    """
    for path in (*texts, *manifests):
        if not path.is_file():
            raise ValueError(f"{str(path)!r} does not exist")
    for path in texts:
        yield from _lines(path)
    for path in manifests:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                yield _transcript(line, f"{path}, line {number}")


def _lines(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            yield from lines
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read to its end: {error}") from error


def _transcript(line: str, where: str) -> str:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    text = entry.get("text") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{where}: a line of a manifest is an object with a 'text'")
    return text


def build_parser() -> argparse.ArgumentParser:
    usual = Recipe()
    parser = argparse.ArgumentParser(
        prog="python -m training.language_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE", help="text files, also .gz")
    parser.add_argument("--manifest", type=Path, nargs="+", default=[], metavar="FILE", help="JSON lines with a text")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="model to write: lm.binary or lm.arpa")
    parser.add_argument("--order", type=int, default=usual.order, metavar="N", help="words of an n-gram (default 3)")
    parser.add_argument(
        "--prune",
        type=int,
        nargs="+",
        default=[],
        metavar="COUNT",
        help="drop n-grams seen at most COUNT times, by order: '0 0 1' drops single trigrams (default: none)",
    )
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="allowed words (default: all of the text)")
    parser.add_argument(
        "--quantise", type=int, default=usual.quantise, metavar="BITS", help="of each number, 0 for none (default 8)"
    )
    parser.add_argument("--unit", choices=UNITS, default=usual.unit, help="of an n-gram (default %(default)s)")
    parser.add_argument("--memory", default=usual.memory, help="for sorting, as '40%%' or '2G' (default 40%%)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    if not args.text and not args.manifest:
        parser.error("nothing to learn from: give --text or --manifest")
    try:
        recipe = Recipe(args.order, tuple(args.prune), args.vocabulary, args.quantise, args.memory, args.unit)
        lines = tqdm(sentences_of(args.text, args.manifest), "reading", unit=" lines", disable=None)
        report = train(lines, args.out, recipe)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; nothing was written\n")
    print(f"{args.out}: {report.size:,} bytes, order {recipe.order}, n-grams {' '.join(map(str, report.ngrams))}")
    print(f"from {report.sentences:,} sentences; {report.left_out:,} lines left out")
    if args.json:
        words = report.ngrams[0] - 3  # without <s>, </s> and <unk>
        figures = {"sentences": report.sentences, "left_out": report.left_out, "words": words, "bytes": report.size}
        print(json.dumps({**figures, "ngrams": report.ngrams}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
