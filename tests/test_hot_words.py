"""The automaton of hot words against counting, and what the search makes of them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_server.alphabet import Alphabet
from asr_server.beam_search import BeamSearch, DecodingOptions, HotWords
from asr_server.language_model import LanguageModel
from tests import toy_arpa
from tests.test_beam_search import (
    EXACT,
    LETTERS,
    Search,
    decode,
    enumerate_paths,
    kind,
    matrix,
    rewards,
    sentence_score,
)

__all__ = ["kind"]  # a fixture
PHRASES = st.text("ab ", min_size=1, max_size=6).map(lambda text: " ".join(text.split())).filter(bool)


def occurrences(phrase: str, text: str) -> int:
    """How often it stands in the text as whole words; places may overlap."""
    words, wanted = text.split(), phrase.split()
    return sum(words[i : i + len(wanted)] == wanted for i in range(len(words)))


@settings(deadline=None)
@given(
    boosts=st.dictionaries(PHRASES, st.floats(-5, 5), max_size=6),
    text=st.text("ab ", max_size=30).map(lambda text: " ".join(text.split())),
)
def test_every_occurrence_gains_its_boost(boosts: dict[str, float], text: str) -> None:
    hot_words = HotWords(boosts, LETTERS)
    state, gained = hot_words.begin(), 0.0
    for symbol in LETTERS.encode(text + " " if text else ""):
        state = hot_words.step(state, symbol)
        gained += state.gained
    assert gained == pytest.approx(sum(boost * occurrences(phrase, text) for phrase, boost in boosts.items()))


def test_the_credit_grows_with_the_letters_and_goes_when_the_text_turns_elsewhere() -> None:
    hot_words = HotWords({"ab b": 5.0}, LETTERS)
    state, credit = hot_words.begin(), []
    for symbol in LETTERS.encode("ab ab b "):
        state = hot_words.step(state, symbol)
        credit.append(state.potential)
    assert credit == [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 0.0]
    assert state.gained == 5.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_model", [False, True])
def test_texts_are_worth_their_boosts(kind: Search, seed: int, with_model: bool, tmp_path: Path) -> None:
    """Words of hot phrases are no unknown words; every score is the plain one and the boosts of what it holds."""
    boosts = {"a": 1.0, "ba": 2.5, "b ab": -1.5}
    model = LanguageModel(toy_arpa.write(tmp_path)) if with_model else None
    log_probs = matrix(seed, 6)
    truth = enumerate_paths(log_probs)
    found = decode(kind, EXACT, model, log_probs, HotWords(boosts, LETTERS))
    assert {hypothesis.text for hypothesis in found} == set(truth)
    for hypothesis in found:
        boost = sum(boost * occurrences(phrase, hypothesis.text) for phrase, boost in boosts.items())
        assert hypothesis.boost_score == pytest.approx(boost)
        lm_score = sentence_score(model, hypothesis.text) if model else 0.0
        if model:
            lm_score -= EXACT.unknown_word_offset * hypothesis.text.split().count("ba")
        score = truth[hypothesis.text][0] + EXACT.alpha * lm_score + rewards(hypothesis.text) + boost
        assert hypothesis.score == pytest.approx(score, abs=1e-6)
    assert [hypothesis.score for hypothesis in found] == sorted((h.score for h in found), reverse=True)


def test_a_boost_decides_what_the_sound_does_not(kind: Search) -> None:
    log_probs = np.log(np.array([[0.02, 0.02, 0.94, 0.02], [0.02, 0.02, 0.4, 0.56], [0.94, 0.02, 0.02, 0.02]]))
    options = replace(EXACT, n_best=1)
    assert decode(kind, options, None, log_probs)[0].text == "ab"
    assert decode(kind, options, None, log_probs, HotWords({"a": 2.0}, LETTERS))[0].text == "a"
    assert decode(kind, options, None, log_probs, HotWords({"ab": -2.0}, LETTERS))[0].text == "a"


def test_a_phrase_survives_a_narrow_beam_by_its_credit(kind: Search) -> None:
    """Each letter of "abab" is a little less likely than its rival; only whole, its boost outweighs that."""
    log_probs = np.log(np.array([[0.01, 0.01, 0.44, 0.54], [0.01, 0.01, 0.54, 0.44]] * 2))
    options = DecodingOptions(beam_width=1, beta=0.0)
    assert decode(kind, options, None, log_probs)[0].text == "baba"
    assert decode(kind, options, None, log_probs, HotWords({"abab": 3.0}, LETTERS))[0].text == "abab"


def test_hot_words_join_the_lexicon(kind: Search, tmp_path: Path) -> None:
    path = toy_arpa.write(tmp_path, words=False)
    path.with_suffix(".words").write_text("ab\n")
    options = replace(EXACT, lexicon=True)
    found = decode(kind, options, LanguageModel(path), matrix(0, 5), HotWords({"ba b": 1.0}, LETTERS))
    assert {word for hypothesis in found for word in hypothesis.text.split()} == {"ab", "ba", "b"}


@pytest.mark.parametrize(
    ("boosts", "message"),
    [
        ({"  ": 1.0}, "a hot phrase is empty"),
        ({"a": math.inf}, "the boost of 'a' is inf: from -100 to 100"),
        ({"a": math.nan}, "the boost of 'a' is nan"),
        ({"Zoo": 1.0}, "character 'Z' in 'Zoo' is not in the alphabet. Select from"),
    ],
)
def test_errors_name_the_phrase(boosts: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HotWords(boosts, LETTERS)


def test_only_wanted_words_are_spared_the_offset(kind: Search, tmp_path: Path) -> None:
    """A negative boost makes a word that nobody knows no likelier."""
    model, log_probs = LanguageModel(toy_arpa.write(tmp_path)), matrix(0, 5)
    plain = {h.text: h.score for h in decode(kind, EXACT, model, log_probs)}
    held_back = {h.text: h.score for h in decode(kind, EXACT, model, log_probs, HotWords({"ba": -1.0}, LETTERS))}
    assert held_back["ba"] == pytest.approx(plain["ba"] - 1.0)
    assert held_back["a"] == pytest.approx(plain["a"])


def test_a_phrase_inherits_the_credit_of_those_that_begin_in_it() -> None:
    hot_words = HotWords({"a b a": 0.6, "b aa": 12.0}, LETTERS)
    state = hot_words.begin()
    for symbol in LETTERS.encode("a b a"):
        state = hot_words.step(state, symbol)
    assert state.potential == pytest.approx(12.0 * 3 / 5)


def test_boosts_that_end_at_one_place_have_a_limit() -> None:
    boosts = {" ".join("a" * count): 100.0 for count in (1, 2, 3)}
    with pytest.raises(ValueError, match=r"end at one place add up to 300\.\d*: at most 200"):
        BeamSearch(EXACT, LETTERS, None, HotWords(boosts, LETTERS))


def test_alphabets_have_to_fit() -> None:
    with pytest.raises(ValueError, match="the alphabet has no space"):
        HotWords({"a": 1.0}, Alphabet(("", "a")))
    with pytest.raises(ValueError, match="made for another alphabet"):
        BeamSearch(EXACT, LETTERS, None, HotWords({"a": 1.0}, Alphabet()))
