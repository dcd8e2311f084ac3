"""Pruned models: what they are estimated from, what goes first, and that they keep to their size."""

import json
import math
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest

from asr_server.language_model import LanguageModel
from tests import kenlm_stand_in
from training import compact_language_model as command
from training.compact_language_model import CompactRecipe, train
from training.kneser_ney import discounts, estimate, keep, write_arpa
from training.language_model import find_tool
from training.ngram_counts import NgramCounts, count
from training.ngram_pruning import Storage, losses, prune

# Seen: a 3, b 2, c 1, </s> 3. Bigrams: "<s> a" 3, "a b" 2, "a c" 1, "b </s>" 2, "c </s>" 1.
# Discounts 0.5, 1, 1.5 leave of the words what bigrams do not explain: a 1.5, b 1, c 0.5, </s> 1.5; together 4.5.
TEXT = ["a b", "a b", "a c"]
P_B = 0.5 / 4.5 + (1 - 1.5 / 4.5) / 5  # own part, and a fifth of what discounting left: a, b, c, </s> and <unk>


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kenlm"
    folder.mkdir()
    monkeypatch.setenv("EARSIGHT_KENLM_BIN", str(folder))
    kenlm_stand_in.write(folder)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def random_counts(least: tuple[int, ...] = (1, 1, 1)) -> NgramCounts:
    draw = random.Random(3)
    return count((" ".join(draw.choices("abcdefgh", range(8, 0, -1), k=7)) for _ in range(400)), 8, least)


def row(counts: NgramCounts, *words: str) -> int:
    """Of an n-gram in its order."""
    at = 0
    for order, word in zip(counts.orders, words, strict=False):
        number = counts.words.index(word)
        at = int(np.flatnonzero((order.prefix == at) & (order.word == number))[0])
    return at


def test_an_estimate_by_hand() -> None:
    counts = count(TEXT, 9, (1,))
    _, unigrams, bigrams = estimate(counts)
    b, after_a = row(counts, "b"), unigrams.back_off[row(counts, "a")]
    assert unigrams.probability[b] == pytest.approx(P_B)
    assert after_a == pytest.approx(1.5 / 3)  # 1 of "a b" and 0.5 of "a c"
    assert bigrams.probability[row(counts, "a", "b")] == pytest.approx((2 - 1) / 3 + after_a * P_B)


def test_what_is_not_listed_is_asked_of_the_lower_order() -> None:
    """Without "a b" its two b are unexplained, which leaves 2 - 1 of 5.5."""
    counts = count(TEXT, 9, (1,))
    mask = np.ones(len(counts.orders[1]), bool)
    mask[row(counts, "a", "b")] = False
    _, unigrams, _ = estimate(keep(counts, [np.ones(len(counts.words), bool), mask]))
    # a 1.5 - 1, b 2 - 1, c nothing, </s> 1.5 - 1: discounting leaves 3.5 of 5.5
    assert unigrams.probability[row(counts, "b")] == pytest.approx(1 / 5.5 + 3.5 / 5.5 / 5)
    assert unigrams.back_off[row(counts, "a")] == pytest.approx(1 - (1 - 0.5) / 3)


def test_discounts_are_chen_and_goodmans() -> None:
    assert discounts((40, 10, 5, 2)) == pytest.approx([0, 2 / 3, 1, 3 - 4 * 2 / 3 * 2 / 5])
    assert discounts((3, 1, 0, 1)).tolist() == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize("size", [1 << 30, 2000])
def test_probabilities_sum_to_one_and_kenlm_reads_them(tmp_path: Path, size: int) -> None:
    counts = prune(random_counts(), Storage(3, 3), size)
    write_arpa(counts, estimate(counts), tmp_path / "lm.arpa")
    model = LanguageModel(tmp_path / "lm.arpa")
    for history in ([], ["a"], ["b", "a"], ["h", "h", "g"], ["a", "b", "c"]):
        state = model.begin()
        for word in history:
            state = model.score(state, word)[1]
        known = [word for word in counts.words if word != "<s>"]
        assert sum(math.exp(model.score(state, word)[0]) for word in known) == pytest.approx(1, abs=1e-4)


def test_a_loss_by_hand() -> None:
    counts = count(TEXT, 9, (1,))
    loss = losses(counts, estimate(counts), 2)[row(counts, "a", "b")]
    before, after = 1 / 3 + P_B / 2, (1 / 2 + 1 / 3) * P_B
    assert loss == pytest.approx(3 * (before * math.log(before / after) - 0.5 * math.log((5 / 6) / 0.5)))


def test_what_says_most_stays() -> None:
    """After "q" comes always "u"; after "x" what comes anywhere, just as often."""
    text = ["q u"] * 30 + [f"x {word}" for word in "abcdefghij" for _ in range(3)] + list("abcdefghij") * 9
    counts = count(text, 30, (1,))
    pruned = prune(counts, Storage(), Storage().size([len(counts.words), 4], 30))
    assert len(pruned.orders[1]) <= 4
    kept = {
        (pruned.words[p], pruned.words[w]) for p, w in zip(pruned.orders[1].prefix, pruned.orders[1].word, strict=True)
    }
    assert ("q", "u") in kept and not any(first == "x" for first, _ in kept)


@pytest.mark.parametrize("size", [1500, 2000, 3000])
def test_it_keeps_to_its_size_and_uses_it(size: int) -> None:
    counts, storage = random_counts(), Storage(3, 3)
    pruned = prune(counts, storage, size)
    ngrams = [len(order) for order in pruned.orders]
    assert storage.size([len(order) for order in counts.orders], 16) > size
    assert 0.95 * size < storage.size(ngrams, 16) <= size


def test_the_size_is_what_build_binary_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is built; elsewhere its absence is one clear line."""
    monkeypatch.delenv("EARSIGHT_KENLM_BIN", raising=False)
    text = [" ".join(random.Random(n).choices("abcdefgh", k=7)) for n in range(300)]
    out = tmp_path / "lm.binary"
    try:
        find_tool("build_binary")
    except ValueError as error:
        assert "make kenlm" in str(error)  # noqa: PT017
        return
    for storage in (Storage(), Storage(5, 4)):
        report = train(text, out, CompactRecipe(8000, least=(1, 1, 1), storage=storage))
        taken = report.size + out.with_suffix(".words").stat().st_size
        assert taken <= 8000 and taken == pytest.approx(storage.size(report.ngrams, 16), abs=16)
        assert LanguageModel(out).order == 4


def test_command_line(stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "text", tmp_path / "out" / "lm.binary"
    text.write_text("Yes, please!\nno\nroom 101\nyes please\n")
    assert command.main(["--text", str(text), "--size", "9000", "--least", "1", "1", "--out", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["sentences"], figures["left_out"], figures["words"]) == (3, 1, 3)
    assert sorted(path.name for path in out.parent.iterdir()) == ["lm.binary", "lm.words"]
    assert out.with_suffix(".words").read_text() == "no\nplease\nyes\n"
    model = LanguageModel(out)
    state = model.score(model.begin(), "yes")[1]
    assert model.order == 3 and model.score(state, "please")[0] > model.score(state, "no")[0]
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--size", "0"], "size is 0 bytes: at least 1"),
        (["--size", "700"], "2 words alone take"),
        (["--probability-bits", "0"], "probability_bits is 0: select from 1 to 25"),
        (["--least", "2", "1"], "least is [2, 1]"),
        (["--least", "1", "1", "1", "1", "1", "1"], "one count for each order from 2 on, up to 6"),
        (["--text", "nowhere"], "'nowhere' does not exist"),
    ],
)
def test_errors_are_one_line(
    stand_in: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("yes no\n")
    with pytest.raises(SystemExit) as exit_info:
        command.main(["--text", "text", "--size", "9000", "--out", "lm.binary", *wrong])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not Path("lm.binary").exists()
