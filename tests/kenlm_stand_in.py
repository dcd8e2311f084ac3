"""Stand-ins for KenLM's lmplz and build_binary, for machines where those are not built.

`lmplz` estimates unigrams, adds a few higher n-grams (orders 2 and 3) and notes its arguments beside itself in
`called`; `build_binary` keeps the text form, which KenLM reads as well.
"""

import argparse
import math
import shutil
import sys
from collections import Counter
from pathlib import Path


def write(folder: Path) -> Path:
    """Both programs in `folder`."""
    for name in ("lmplz", "build_binary"):
        program = folder / name
        program.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"import {Path(__file__).stem} as stand_in\nstand_in.{name}(sys.argv)\n"
        )
        program.chmod(0o755)
    return folder


def lmplz(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--order", type=int)
    for option in ("--text", "--arpa", "--limit_vocab_file"):
        parser.add_argument(option, type=Path)
    options, _ = parser.parse_known_args(arguments[1:])
    Path(arguments[0]).with_name("called").write_text(" ".join(arguments[1:]))
    sentences = [line.split() for line in options.text.read_text().splitlines()]
    if len(sentences) > 99:
        sys.exit("lmplz.cc threw an exception\nToo much text.")
    counts = Counter(word for sentence in sentences for word in [*sentence, "</s>"])
    allowed = {*options.limit_vocab_file.read_text().split(), "</s>"} if options.limit_vocab_file else set(counts)
    options.arpa.write_text(arpa(counts, allowed, options.order))


def arpa(counts: Counter[str], allowed: set[str], order: int) -> str:
    first = next(iter(counts))
    unigrams = [f"{math.log10(n / counts.total())}\t{word}\t0" for word, n in counts.items() if word in allowed]
    bigrams = [f"-0.5\t<s> {first}\t0", f"-0.5\t{first} </s>\t0"]
    orders = [[*unigrams, "-2\t<unk>\t0", "-99\t<s>\t0"], bigrams, [f"-0.5\t<s> {first} </s>"]][:order]
    lines = ["\\data\\", *(f"ngram {n}={len(ngrams)}" for n, ngrams in enumerate(orders, 1))]
    for n, ngrams in enumerate(orders, 1):
        lines += ["", f"\\{n}-grams:", *ngrams]
    return "\n".join([*lines, "", "\\end\\", ""])


def build_binary(arguments: list[str]) -> None:
    shutil.copyfile(*arguments[-2:])
