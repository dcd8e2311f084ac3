"""A bigram model over the words "a", "b" and "ab" whose numbers can be added up by hand (logarithms to base 10)."""

from pathlib import Path

WORDS = ("a", "ab", "b")
ARPA = """\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-2.0\t<unk>\t0
-99\t<s>\t-0.5
-1.0\t</s>
-0.5\ta\t-0.25
-0.75\tb\t-0.125
-1.25\tab\t-0.0625

\\2-grams:
-0.25\t<s> a
-0.375\ta b
-0.5\tb </s>
-0.875\tab a

\\end\\
"""


def write(folder: Path, words: bool = True, unknown: float = -2.0) -> Path:
    """The model, and its word list beside it. `unknown` is the logarithm to base 10 of <unk>."""
    path = folder / "toy.arpa"
    path.write_text(ARPA.replace("-2.0\t<unk>", f"{unknown}\t<unk>"))
    if words:
        path.with_suffix(".words").write_text("\n".join(WORDS))
    return path


CHARACTERS = """\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-2.0\t<unk>\t0
-99\t<s>\t-0.25
-1.0\t</s>
-0.5\ta\t-0.5
-0.75\tb\t-0.125
-0.625\t|\t-0.375

\\2-grams:
-0.25\t<s> a
-0.375\ta |
-0.5\tb </s>
-0.875\t| b

\\end\\
"""


def write_characters(folder: Path) -> Path:
    """A bigram model over the characters "a", "b" and the space."""
    path = folder / "characters.arpa"
    path.write_text(CHARACTERS)
    return path
