"""Made-up sentences of letters and numbers."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from training import spoken_forms
from training.spoken_forms import LETTERS, SpokenForms, cardinal, ordinal, year


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (312, "three hundred twelve"),
        (1000, "one thousand"),
        (215_007, "two hundred fifteen thousand seven"),
    ],
)
def test_cardinals(number: int, words: str) -> None:
    assert cardinal(number) == words


def test_ordinals_and_years() -> None:
    said = {1: "first", 2: "second", 3: "third", 4: "fourth", 8: "eighth", 9: "ninth", 12: "twelfth", 20: "twentieth"}
    assert {number: ordinal(number) for number in said} == said
    assert (ordinal(31), ordinal(115)) == ("thirty first", "one hundred fifteenth")
    years = {1900: "nineteen hundred", 1905: "nineteen oh five", 1984: "nineteen eighty four"}
    years |= {2000: "two thousand", 2007: "two thousand seven", 2026: "twenty twenty six"}
    assert {number: year(number) for number in years} == years


def test_the_seed_decides_and_every_letter_follows_every_other() -> None:
    made = list(islice(SpokenForms(["smith", "o'neil", "a"], seed=1), 20_000))
    assert made == list(islice(SpokenForms(["smith", "o'neil", "a"], seed=1), 20_000))
    assert made != list(islice(SpokenForms(["smith", "o'neil", "a"], seed=2), 20_000))
    assert {"s m i t h", "smith s m i t h"} <= set(made) and not any("'" in text for text in made)
    pairs = Counter(pair for text in made for pair in zip(text.split(), text.split()[1:], strict=False))
    assert all(pairs[one, other] for one in LETTERS for other in LETTERS)
    assert all(pairs["june", word] for word in ("first", "twenty", "thirteenth"))
    assert pairs["a", "m"] > pairs["a", "q"] > 0


def test_the_command_writes_a_sentence_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (words := tmp_path / "lm.words").write_text("deep\nspeech\n")
    out = tmp_path / "forms.txt"
    assert spoken_forms.main(["--words", str(words), "--sentences", "50", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 50 and "50 sentences" in capsys.readouterr().out
    words.write_text("o'neil\na\n")
    for more, said in (
        ([], "2 words, and none of two letters a to z or more"),
        (["--sentences", "0"], "--sentences is 0: at least 1"),
        (["--words", str(tmp_path / "none")], "No such file"),
    ):
        with pytest.raises(SystemExit, match="2"):
            spoken_forms.main(["--words", str(words), "--out", str(out), *more])
        assert said in capsys.readouterr().err
