"""The search against every path there is, on matrices small enough to enumerate, and against sums made by hand."""

import gc
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_server import native
from asr_server.alphabet import Alphabet
from asr_server.beam_search import BeamSearch, DecodingOptions, HotWords, Hypothesis, greedy
from asr_server.language_model import LanguageModel
from asr_server.prefix_tree import Prefix
from asr_server.reference_search import ReferenceSearch
from tests import toy_arpa

LETTERS = Alphabet(("", " ", "a", "b"))
EXACT = DecodingOptions(
    beam_width=10**6,
    alpha=0.75,
    beta=0.5,
    gamma=0.125,
    token_min_log_prob=-math.inf,
    beam_prune_log_prob=-math.inf,
    unknown_word_offset=-3.0,
    n_best=10**6,
)

Matrix = NDArray[np.float64]
Search = type[BeamSearch] | type[ReferenceSearch]


@pytest.fixture(params=[BeamSearch, ReferenceSearch], ids=["native", "reference"], scope="module")
def kind(request: pytest.FixtureRequest) -> Search:
    """Both searches have to be right, not only equal."""
    if request.param is BeamSearch:
        assert native.core is not None, "the native core was not built"
    found: Search = request.param
    return found


def decode(
    kind: Search,
    options: DecodingOptions,
    model: LanguageModel | None,
    log_probs: Matrix,
    hot_words: HotWords | None = None,
) -> list[Hypothesis]:
    search = kind(options, LETTERS, model, hot_words)
    search.advance(log_probs)
    return search.finish()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel(toy_arpa.write(tmp_path_factory.mktemp("lm")))


def matrix(seed: int, frames: int, symbols: int = 4, sharpness: float = 1.5) -> Matrix:
    logits = np.random.default_rng(seed).normal(0, sharpness, (frames, symbols))
    normalised: Matrix = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return normalised


Times = list[tuple[tuple[int, int], ...]]  # of each word, the frames of each letter


def enumerate_paths(log_probs: Matrix) -> dict[str, tuple[float, Times]]:
    """Text -> ln P(text|x) summed over all paths, and the letter times of the likeliest one."""
    sums: dict[str, list[float]] = {}
    best: dict[str, tuple[float, Times]] = {}
    frames, symbols = log_probs.shape
    for path in itertools.product(range(symbols), repeat=frames):
        score = sum(float(log_probs[frame, symbol]) for frame, symbol in enumerate(path))
        text = " ".join(LETTERS.collapse(path).split())
        sums.setdefault(text, []).append(score)
        if text not in best or score > best[text][0]:
            best[text] = score, letter_times(path)
    return {text: (float(np.logaddexp.reduce(scores)), best[text][1]) for text, scores in sums.items()}


def letter_times(path: tuple[int, ...]) -> Times:
    runs = [(symbol, list(run)) for symbol, run in itertools.groupby(range(len(path)), key=path.__getitem__)]
    letters = [(LETTERS.labels[symbol], (run[0], run[-1] + 1)) for symbol, run in runs if symbol]
    words = itertools.groupby(letters, lambda pair: pair[0] == " ")
    return [tuple(times for _, times in group) for space, group in words if not space]


def rewards(text: str) -> float:
    return EXACT.beta * len(text.split()) + EXACT.gamma * len(text.replace(" ", ""))


def sentence_score(model: LanguageModel, text: str) -> float:
    """ln P_lm of the sentence, by KenLM from the beginning."""
    state, total = model.begin(), 0.0
    for word in text.split():
        log_prob, state = model.score(state, word)
        total += log_prob + (0.0 if word in toy_arpa.WORDS else EXACT.unknown_word_offset)
    return total + model.score_end(state)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("frames", [1, 2, 5, 6])
def test_every_text_has_the_sum_of_its_paths(kind: Search, seed: int, frames: int) -> None:
    log_probs = matrix(seed, frames)
    truth = enumerate_paths(log_probs)
    found = decode(kind, EXACT, None, log_probs)
    assert {hypothesis.text for hypothesis in found} == set(truth) and len(found) == len(truth)
    for hypothesis in found:
        acoustic, times = truth[hypothesis.text]
        assert hypothesis.acoustic_score == pytest.approx(acoustic, abs=1e-10)
        assert hypothesis.lm_score == 0.0
        assert hypothesis.score == pytest.approx(acoustic + rewards(hypothesis.text), abs=1e-10)
        assert [word.letters for word in hypothesis.words] == times
    assert [hypothesis.score for hypothesis in found] == sorted((h.score for h in found), reverse=True)
    assert sum(math.exp(hypothesis.acoustic_score) for hypothesis in found) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_language_model_scores_words_and_the_end(kind: Search, seed: int, model: LanguageModel) -> None:
    log_probs = matrix(seed, 6)
    truth = enumerate_paths(log_probs)
    found = decode(kind, EXACT, model, log_probs)
    assert {hypothesis.text for hypothesis in found} == set(truth)
    for hypothesis in found:
        lm_score = sentence_score(model, hypothesis.text)
        assert hypothesis.lm_score == pytest.approx(lm_score, abs=1e-6)  # KenLM keeps single precision
        expected = truth[hypothesis.text][0] + EXACT.alpha * lm_score + rewards(hypothesis.text)
        assert hypothesis.score == pytest.approx(expected, abs=1e-6)
    assert [hypothesis.score for hypothesis in found] == sorted((h.score for h in found), reverse=True)


@pytest.mark.parametrize("seed", range(4))
def test_confidences_are_shares_of_all_texts(kind: Search, seed: int, model: LanguageModel) -> None:
    found = decode(kind, EXACT, model, matrix(seed, 5))
    weights = np.exp([hypothesis.score for hypothesis in found])
    for hypothesis, weight in zip(found, weights, strict=True):
        assert hypothesis.confidence == pytest.approx(weight / weights.sum())
        for word in hypothesis.words:
            sharing = [
                other_weight
                for other, other_weight in zip(found, weights, strict=True)
                if any(w.text == word.text and w.start < word.end and word.start < w.end for w in other.words)
            ]
            assert word.confidence == pytest.approx(sum(sharing) / weights.sum())


@pytest.mark.parametrize("seed", range(3))
def test_a_lexicon_leaves_the_texts_of_its_words(kind: Search, seed: int, tmp_path: Path) -> None:
    path = toy_arpa.write(tmp_path, words=False)
    path.with_suffix(".words").write_text("ab\nb\n")  # "a" begins a word and is none
    model = LanguageModel(path)
    log_probs = matrix(seed, 6)
    free = {h.text: h for h in decode(kind, EXACT, model, log_probs)}
    bound = decode(kind, replace(EXACT, lexicon=True), model, log_probs)
    assert {h.text for h in bound} == {text for text in free if set(text.split()) <= {"ab", "b"}}
    assert all(h.score == pytest.approx(free[h.text].score) for h in bound)


def test_a_lexicon_keeps_an_unfinished_word_rather_than_nothing(kind: Search, tmp_path: Path) -> None:
    path = toy_arpa.write(tmp_path, words=False)
    path.with_suffix(".words").write_text("ab\n")
    options = replace(EXACT, lexicon=True, lookahead=False, beam_width=1)
    (hypothesis,) = decode(kind, options, LanguageModel(path), np.log([[0.1, 0.1, 0.7, 0.1]]))
    assert hypothesis.text == "a"


def test_four_frames_by_hand(kind: Search) -> None:
    """Frames a, blank, a are certain and then b is likely: only "aab" with 0.75 and "aa" with 0.25 exist."""
    log_probs = np.full((4, 4), -np.inf)
    log_probs[0, 2] = log_probs[1, 0] = log_probs[2, 2] = 0.0
    log_probs[3] = np.log([0.125, 1e-300, 0.125, 0.75])
    first, second = decode(kind, replace(EXACT, beta=0.0, gamma=0.0, n_best=2), None, log_probs)
    assert (first.text, second.text) == ("aab", "aa")
    assert math.exp(first.acoustic_score) == pytest.approx(0.75)
    assert math.exp(second.acoustic_score) == pytest.approx(0.25)  # the blank and the repeated "a" add up
    assert [(word.text, word.start, word.end) for word in first.words] == [("aab", 0, 4)]
    assert [(word.text, word.start, word.end) for word in second.words] == [("aa", 0, 3)]
    assert first.words[0].confidence == pytest.approx(0.75)


def test_the_sum_of_paths_beats_the_best_path(kind: Search) -> None:
    """Graves' example: the likeliest path is two blanks (0.36), the likeliest text is "a" (0.24 + 0.24 + 0.16)."""
    log_probs = np.log(np.array([[0.6, 1e-12, 0.4, 1e-12]] * 2))
    assert greedy(log_probs, LETTERS).text == ""
    best = decode(kind, replace(EXACT, alpha=0.0, beta=0.0, gamma=0.0), None, log_probs)[0]
    assert best.text == "a"
    assert math.exp(best.acoustic_score) == pytest.approx(0.64)


def test_the_language_model_decides_what_the_sound_does_not(kind: Search, model: LanguageModel) -> None:
    """ "a b" against "a a": equal sound, and ln P("a b </s>") = (-0.25 - 0.375 - 0.5) ln 10."""
    log_probs = np.full((3, 4), -np.inf)
    log_probs[0, 2] = log_probs[1, 1] = 0.0
    log_probs[2, 2:] = math.log(0.5)
    best = decode(kind, EXACT, model, log_probs)[0]
    assert best.text == "a b"
    assert best.lm_score == pytest.approx(-1.125 * math.log(10))
    assert best.score == pytest.approx(math.log(0.5) - 0.75 * 1.125 * math.log(10) + 0.5 * 2 + 0.125 * 2)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 40), max_size=6), width=st.integers(1, 8))
def test_any_chunks_equal_the_whole(kind: Search, model: LanguageModel, seed: int, cuts: list[int], width: int) -> None:
    options = DecodingOptions(beam_width=width, n_best=width)
    log_probs = matrix(seed, 40)
    search = kind(options, LETTERS, model)
    for chunk in np.split(log_probs, sorted(cuts)):
        search.advance(chunk)
        search.best()
        search.finish()  # looking changes nothing
    assert search.finish() == decode(kind, options, model, log_probs)


def test_best_is_the_text_so_far(kind: Search, model: LanguageModel) -> None:
    search = kind(EXACT, LETTERS, model)
    assert search.best() == Hypothesis((), 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0)
    texts = []
    for symbol in (2, 1, 3, 1, 0):
        search.advance(np.log(np.where(np.arange(4) == symbol, 0.97, 0.01))[None])
        texts.append(search.best().text)
    assert texts == ["a", "a", "a b", "a b", "a b"]
    assert search.best().confidence > 0.8
    assert [(word.start, word.end) for word in search.best().words] == [(0, 1), (2, 3)]


@pytest.mark.parametrize("seed", range(4))
def test_a_character_model_scores_every_symbol(kind: Search, seed: int, tmp_path: Path) -> None:
    model = LanguageModel(toy_arpa.write_characters(tmp_path), unit="character")
    log_probs = matrix(seed, 6)
    truth = enumerate_paths(log_probs)
    found = decode(kind, EXACT, model, log_probs)
    assert {hypothesis.text for hypothesis in found} == set(truth)
    for hypothesis in found:
        state, lm_score = model.begin(), 0.0
        for character in hypothesis.text.replace(" ", "|"):
            log_prob, state = model.score(state, character)
            lm_score += log_prob
        lm_score += model.score_end(state)
        assert hypothesis.lm_score == pytest.approx(lm_score, abs=1e-6)
        score = truth[hypothesis.text][0] + EXACT.alpha * lm_score + rewards(hypothesis.text)
        assert hypothesis.score == pytest.approx(score, abs=1e-6)


def test_lookahead_sees_early_that_no_word_begins_so(kind: Search, model: LanguageModel) -> None:
    """With room for one prefix, "b" (0.54) hides "a" (0.44), and then "b" comes; "bb" is no word and "ab" is one."""
    log_probs = np.log(np.array([[0.01, 0.01, 0.44, 0.54], [0.94, 0.02, 0.02, 0.02], [0.04, 0.02, 0.02, 0.92]]))
    options = replace(EXACT, alpha=1.0, beta=0.0, gamma=0.0, beam_width=1, unknown_word_offset=-20.0)
    blind = decode(kind, replace(options, lookahead=False), model, log_probs)[0]
    seeing = decode(kind, options, model, log_probs)[0]
    assert (blind.text, seeing.text) == ("bb", "ab")
    assert seeing.score > blind.score + 15


@pytest.mark.parametrize(
    ("options", "boosts"),
    [
        (replace(EXACT, beta=100.0), {}),
        (replace(EXACT, beta=-100.0), {}),
        (replace(EXACT, gamma=10.0), {}),
        (replace(EXACT, gamma=-10.0, beta=100.0), {}),
        (replace(EXACT, alpha=100.0), {"aab": 100.0}),
        (replace(EXACT, alpha=4.0, unknown_word_offset=-60.0, lookahead=False), {}),
        (EXACT, {"a": 100.0, "b a": 100.0, "ba": -100.0}),
    ],
)
def test_scores_stay_numbers_at_the_limits(
    kind: Search, model: LanguageModel, options: DecodingOptions, boosts: dict[str, float]
) -> None:
    hot_words = HotWords(boosts, LETTERS) if boosts else None
    found = decode(kind, replace(options, beam_width=64), model, matrix(0, 30), hot_words)
    assert all(math.isfinite(hypothesis.score) and 0 <= hypothesis.confidence <= 1 for hypothesis in found)
    assert found[0].text


def test_nothing_heard_is_the_empty_text(kind: Search, model: LanguageModel) -> None:
    search = kind(EXACT, LETTERS, model)
    search.advance(np.zeros((0, 4)))
    (silence,) = search.finish()
    end = (-0.5 - 1.0) * math.log(10)  # <s> has back-off -0.5
    assert (silence.text, silence.words, silence.acoustic_score, silence.confidence) == ("", (), 0.0, 1.0)
    assert silence.lm_score == pytest.approx(end) and silence.score == pytest.approx(0.75 * end)


def test_a_frame_without_any_probability_only_takes_time(kind: Search) -> None:
    spoken = np.log(np.array([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    gap = np.full((3, 4), -np.inf)
    plain = decode(kind, EXACT, None, spoken)
    late = decode(kind, EXACT, None, np.concatenate([gap, spoken, gap]))
    assert [(h.text, h.score) for h in late] == [(h.text, h.score) for h in plain]
    assert (late[0].words[0].start, late[0].words[0].end) == (3, 4)


def test_narrow_beams_and_thresholds_find_the_clear_text(kind: Search) -> None:
    log_probs = np.log(np.where(np.arange(4) == np.array([[2], [0], [2], [1], [3]]), 0.97, 0.01))
    for options in (
        DecodingOptions(beam_width=1),
        DecodingOptions(beam_width=4, beam_prune_log_prob=-1.0),
        DecodingOptions(token_min_log_prob=0.0),
    ):
        assert [h.text for h in decode(kind, options, None, log_probs)] == ["aa b"]


def test_n_best_is_a_limit(kind: Search) -> None:
    wide = decode(kind, replace(EXACT, n_best=7), None, matrix(0, 6))
    narrow = decode(kind, replace(EXACT, n_best=7, beam_width=3), None, matrix(0, 6))
    assert len(wide) == 7 and 1 <= len(narrow) <= 3


def test_the_tree_holds_only_what_the_beam_needs(model: LanguageModel) -> None:
    """A long stream whose beams share all but the last words leaves about one node per symbol of the text."""
    search = ReferenceSearch(DecodingOptions(beam_width=16), LETTERS, model)
    for seed in range(6):
        search.advance(matrix(seed, 100, sharpness=4.0))
    gc.collect()
    nodes = sum(type(item) is Prefix for item in gc.get_objects())
    assert len(search.best().text) <= nodes < 2 * len(search.best().text) + 16 * 50
    del search
    gc.collect()
    assert not any(type(item) is Prefix for item in gc.get_objects())


def test_greedy_collapses_the_likeliest_path() -> None:
    probabilities = np.full((6, 4), 0.1)
    for frame, symbol in enumerate((2, 2, 0, 2, 1, 3)):
        probabilities[frame, symbol] = 0.7
    hypothesis = greedy(np.log(probabilities), LETTERS)
    assert hypothesis.text == "aa b"
    assert [(word.text, word.start, word.end) for word in hypothesis.words] == [("aa", 0, 4), ("b", 5, 6)]
    assert [word.confidence for word in hypothesis.words] == pytest.approx([0.7**4, 0.7])
    assert hypothesis.score == pytest.approx(6 * math.log(0.7))
    assert greedy(np.zeros((0, 4)), LETTERS) == Hypothesis((), 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0)


Decode = Callable[[Matrix], Any]
DECODERS: list[Decode] = [
    lambda m: decode(BeamSearch, EXACT, None, m),
    lambda m: decode(ReferenceSearch, EXACT, None, m),
    lambda m: greedy(m, LETTERS),
]


@pytest.mark.parametrize("decoder", DECODERS, ids=["native", "reference", "greedy"])
@settings(deadline=None, max_examples=30)
@given(
    frames=st.integers(1, 4),
    frame=st.integers(0, 3),
    symbol=st.integers(0, 3),
    bad=st.sampled_from(
        [
            (np.nan, "log probabilities hold NaN, first in frame {}$"),
            (0.1, "log probabilities reach 0.1 in frame {}: they are natural logarithms, at most 0"),
            (math.inf, "log probabilities reach inf in frame {}: they are natural logarithms, at most 0"),
            (-1e-4, r"probabilities of frame {} add up to 1\.\d+, not to 1: apply log_softmax"),
        ]
    ),
)
def test_what_is_not_a_log_probability_is_refused(
    decoder: Decode, frames: int, frame: int, symbol: int, bad: tuple[float, str]
) -> None:
    log_probs = matrix(0, frames, sharpness=0.5)  # every symbol has a probability of more than 0.05
    log_probs[frame % frames, symbol] = bad[0]
    with pytest.raises(ValueError, match=bad[1].format(frame % frames)):
        decoder(log_probs)


@settings(deadline=None, max_examples=30)
@given(shape=st.lists(st.integers(0, 5), min_size=0, max_size=3).filter(lambda s: len(s) != 2 or s[1] != 4))
def test_a_wrong_shape_is_refused(kind: Search, shape: list[int]) -> None:
    search = kind(EXACT, LETTERS, None)
    with pytest.raises(ValueError, match=r"shape .*\(frames, 4\)"):
        search.advance(np.full(shape, -1.0))


def test_a_refused_chunk_leaves_the_search_as_it_was(kind: Search) -> None:
    search = kind(EXACT, LETTERS, None)
    search.advance(matrix(0, 3))
    before = search.finish()
    with pytest.raises(ValueError, match="NaN, first in frame 1"):
        search.advance(np.log([[0.25] * 4, [0.5, np.nan, 0.25, 0.25]]))
    assert search.finish() == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beam_width": 0}, "beam_width is 0: a whole number, at least 1"),
        ({"n_best": -1}, "n_best is -1: a whole number, at least 1"),
        ({"token_min_log_prob": 0.5}, "token_min_log_prob is 0.5"),
        ({"beam_prune_log_prob": math.nan}, "beam_prune_log_prob is nan"),
        ({"unknown_word_offset": 1.0}, "unknown_word_offset is 1.0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"beam_width": 1.5}, "beam_width is 1.5: a whole number"),
        ({"unknown_word_offset": -math.inf}, "unknown_word_offset is -inf: a finite one"),
        ({"beta": 101.0}, "beta from -100 to 100"),
        ({"beta": math.inf}, "beta inf"),
        ({"gamma": 10.5}, "gamma is 10.5: from -10 to 10"),
        ({"gamma": math.nan}, "gamma is nan"),
    ],
)
def test_options_name_the_wrong_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodingOptions(**wrong)


def test_a_lexicon_needs_a_word_list(kind: Search, tmp_path: Path) -> None:
    options = replace(EXACT, lexicon=True)
    with pytest.raises(ValueError, match="there is no language model"):
        kind(options, LETTERS, None)
    with pytest.raises(ValueError, match=r"no word list '.*toy\.words'"):
        BeamSearch(options, LETTERS, LanguageModel(toy_arpa.write(tmp_path, words=False)))


@pytest.mark.parametrize("seed", range(6))
def test_pruning_costs_little(kind: Search, seed: int, model: LanguageModel) -> None:
    """What the thresholds and a beam of 128 drop is e^-16 of the sum or cannot enter the beam."""
    log_probs = matrix(seed, 8, sharpness=3.0)
    exact = decode(kind, EXACT, model, log_probs)[0]
    options = replace(EXACT, beam_width=128, token_min_log_prob=-12.0, beam_prune_log_prob=-16.0)
    pruned = decode(kind, options, model, log_probs)[0]
    assert pruned.text == exact.text
    assert pruned.score == pytest.approx(exact.score, abs=1e-3)
