"""Scores and states of a model whose numbers are on the page (toy_arpa.py), and its vocabulary."""

import math
from pathlib import Path

import pytest

from asr_server.language_model import LanguageModel, Lexicon
from tests import toy_arpa

LN_10 = math.log(10)


def test_scores_are_natural_logarithms_and_back_off(tmp_path: Path) -> None:
    model = LanguageModel(toy_arpa.write(tmp_path))
    assert model.order == 2
    first, after_a = model.score(model.begin(), "a")
    assert first == pytest.approx(-0.25 * LN_10)  # the bigram <s> a
    second, after_b = model.score(after_a, "a")
    assert second == pytest.approx((-0.25 - 0.5) * LN_10)  # no bigram a a: back-off of a, then a
    assert model.score(after_a, "xyz")[0] == pytest.approx((-0.25 - 2.0) * LN_10)  # <unk>
    assert model.score_end(after_b) == pytest.approx((-0.25 - 1.0) * LN_10)
    assert model.score_end(model.score(after_b, "b")[1]) == pytest.approx(-0.5 * LN_10)  # the bigram b </s>


def test_states_are_equal_where_the_future_is(tmp_path: Path) -> None:
    model = LanguageModel(toy_arpa.write(tmp_path))
    after_a = model.score(model.begin(), "a")[1]
    after_b_a = model.score(model.score(model.begin(), "b")[1], "a")[1]
    assert after_a == after_b_a and hash(after_a) == hash(after_b_a)
    assert after_a != model.begin()


def test_vocabulary(tmp_path: Path) -> None:
    model = LanguageModel(toy_arpa.write(tmp_path))
    assert "ab" in model and "ba" not in model
    assert model.lexicon is not None and len(model.lexicon) == 3
    (tmp_path / "bare").mkdir()
    assert LanguageModel(toy_arpa.write(tmp_path / "bare", words=False)).lexicon is None


def test_an_empty_word_list_is_an_error(tmp_path: Path) -> None:
    path = toy_arpa.write(tmp_path, words=False)
    path.with_suffix(".words").write_text("\n")
    with pytest.raises(ValueError, match=r"toy\.words' is empty"):
        LanguageModel(path)


def test_lexicon_knows_words_and_their_beginnings() -> None:
    lexicon = Lexicon(["see", "sea", "seat", "sea"])
    assert [word for word in ("sea", "se", "seat", "seats", "") if word in lexicon] == ["sea", "seat"]
    beginnings = [text for text in ("", "s", "sea", "seat", "seats", "t", "z") if lexicon.begins(text)]
    assert beginnings == ["", "s", "sea", "seat"]
    assert not Lexicon([]).begins("")


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.binary' does not exist"):
        LanguageModel(tmp_path / "nowhere.binary")
    (tmp_path / "text.binary").write_text("once upon a time\n")
    with pytest.raises(ValueError, match=r"text\.binary' is not a KenLM binary or ARPA file"):
        LanguageModel(tmp_path / "text.binary")
