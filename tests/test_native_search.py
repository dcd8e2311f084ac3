"""The native core: equal to the reference whatever it is given, in threads, in batches, and for hours."""

from __future__ import annotations

import gc
import math
import re
import resource
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_server import native
from asr_server.alphabet import Alphabet
from asr_server.beam_search import BeamSearch, DecodingOptions, HotWords, Hypothesis, Word, advance_all, decode_batch
from asr_server.language_model import LanguageModel
from asr_server.reference_search import ReferenceSearch
from tests import toy_arpa
from tests.test_beam_search import LETTERS, Matrix, matrix

BOOSTS = {"ab a": 2.0, "ba": 3.0, "a": -1.0, "b b": 0.5}
SCORES = ("score", "acoustic_score", "lm_score", "word_score", "boost_score", "confidence", "stability")
Models = dict[str, LanguageModel | None]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    (folder / "bare").mkdir()
    (folder / "strange").mkdir()
    return {
        "none": None,
        "words": LanguageModel(toy_arpa.write(folder)),
        "strange": LanguageModel(toy_arpa.write(folder / "strange", unknown=-0.9)),  # likelier than a word
        "bare": LanguageModel(toy_arpa.write(folder / "bare", words=False)),
        "characters": LanguageModel(toy_arpa.write_characters(folder), unit="character"),
    }


def test_the_core_was_built() -> None:
    """Else everything below compares the reference with itself."""
    assert native.core is not None


def assert_equal(ours: list[Hypothesis], theirs: list[Hypothesis]) -> None:
    assert [hypothesis.text for hypothesis in ours] == [hypothesis.text for hypothesis in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert_same_words(mine.words, other.words)
        assert [getattr(mine, name) for name in SCORES] == pytest.approx([getattr(other, name) for name in SCORES])


def assert_same_words(ours: tuple[Word, ...], theirs: tuple[Word, ...]) -> None:
    assert [(word.text, word.letters) for word in ours] == [(word.text, word.letters) for word in theirs]
    assert [word.confidence for word in ours] == pytest.approx([word.confidence for word in theirs], abs=1e-6)


OPTIONS = st.builds(
    DecodingOptions,
    beam_width=st.sampled_from([1, 2, 5, 16, 64]),
    alpha=st.sampled_from([0.0, 0.7, 2.0]),
    beta=st.sampled_from([-1.0, 0.0, 1.5]),
    gamma=st.sampled_from([-0.5, 0.0, 1.0]),
    token_min_log_prob=st.sampled_from([-3.0, -7.0, -math.inf]),
    beam_prune_log_prob=st.sampled_from([-4.0, -16.0, -math.inf]),
    unknown_word_offset=st.sampled_from([0.0, -3.0]),
    lexicon=st.booleans(),
    lookahead=st.booleans(),
    n_best=st.just(5),
    horizon=st.sampled_from([1, 2, 20]),
)


@settings(deadline=None, max_examples=300)
@given(
    options=OPTIONS,
    name=st.sampled_from(["none", "words", "strange", "bare", "characters"]),
    hot=st.booleans(),
    seed=st.integers(0, 10**6),
    frames=st.integers(0, 40),
    sharpness=st.sampled_from([1.0, 2.0, 4.0]),
    silent=st.booleans(),
    committing=st.booleans(),
)
def test_native_equals_reference(
    models: Models,
    options: DecodingOptions,
    name: str,
    hot: bool,
    seed: int,
    frames: int,
    sharpness: float,
    silent: bool,
    committing: bool,
) -> None:
    if name not in ("words", "strange"):
        options = replace(options, lexicon=False)
    hot_words = HotWords(BOOSTS, LETTERS) if hot else None
    log_probs = matrix(seed, frames, sharpness=sharpness)
    if silent:  # some symbols and some frames have no probability at all
        log_probs[np.random.default_rng(seed).random(log_probs.shape) < 0.1] = -np.inf
        log_probs = np.where(np.isfinite(log_probs).any(axis=1, keepdims=True), log_probs, -np.inf)
        totals = np.logaddexp.reduce(log_probs, axis=1, keepdims=True)
        log_probs = np.where(np.isfinite(totals), log_probs - np.where(np.isfinite(totals), totals, 0), -np.inf)
    ours = BeamSearch(options, LETTERS, models[name], hot_words)
    theirs = ReferenceSearch(options, LETTERS, models[name], hot_words)
    for chunk in np.array_split(log_probs, 4):
        ours.advance(chunk)
        theirs.advance(chunk)
        assert_equal([ours.best()], [theirs.best()])
        assert_equal(ours.finish(), theirs.finish())
        if committing:
            assert_same_words(ours.take_committed(), theirs.take_committed())


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.floats(width=32), min_size=4, max_size=4), max_size=4),
    kind=st.sampled_from([np.float32, np.float64, np.float16]),
)
@example(rows=[[-math.inf] * 4], kind=np.float64)
@example(rows=[[0.0, -math.inf, -math.inf, -math.inf], [-1e38, 0.0, -1e38, -1e38]], kind=np.float32)
def test_any_numbers_are_searched_or_refused(rows: list[list[float]], kind: type[np.floating]) -> None:
    """And what is refused leaves no trace."""
    with np.errstate(over="ignore"):
        log_probs = np.array(rows, dtype=np.float64).reshape(len(rows), 4).astype(kind)
    search, untouched = (BeamSearch(DecodingOptions(), LETTERS) for _ in range(2))
    refusals = [refusal(each, log_probs) for each in (search, ReferenceSearch(DecodingOptions(), LETTERS))]
    assert refusals[0] == refusals[1]
    if refusals[0]:
        assert search.finish() == untouched.finish()
    else:
        assert all(math.isfinite(hypothesis.score) for hypothesis in search.finish())


def refusal(search: BeamSearch | ReferenceSearch, log_probs: NDArray[np.floating]) -> str:
    """The beginning of its words, "" when there was none."""
    try:
        search.advance(log_probs)
    except ValueError as error:
        return re.split(r"reach|add up", str(error))[0]
    return ""


@pytest.mark.parametrize("wrong", ["text", [["a"] * 4], [[1j] * 4], None, [[None] * 4]])
def test_what_is_no_matrix_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"shape|of type"):
        BeamSearch(DecodingOptions(), LETTERS).advance(wrong)  # type: ignore[arg-type]


def test_any_layout_is_read_right() -> None:
    log_probs = matrix(3, 20)
    plain = BeamSearch(DecodingOptions(), LETTERS).decode(log_probs)
    for same in (np.asfortranarray(log_probs), log_probs[::-1][::-1], np.repeat(log_probs, 2, axis=0)[::2]):
        assert BeamSearch(DecodingOptions(), LETTERS).decode(same) == plain


@pytest.mark.parametrize("size", [2, 63, 64, 65, 200, 40_000])
def test_alphabets_of_any_size(size: int) -> None:
    """With letters of one to three bytes."""
    alphabet = Alphabet(("", " ", *map(chr, range(0x3B1, 0x3B1 + size - 2))))
    log_probs = matrix(0, 30 if size < 1000 else 4, size, sharpness=3.0)
    options = DecodingOptions(beam_width=20, n_best=3, beta=-1.0)
    hot_words = HotWords({alphabet.labels[-1] * 2: 3.0}, alphabet) if size > 2 else None
    reference = ReferenceSearch(options, alphabet, None, hot_words)
    reference.advance(log_probs)
    ours = BeamSearch(options, alphabet, None, hot_words)
    ours.advance(log_probs)
    assert_equal(ours.finish(), reference.finish())


def test_an_alphabet_without_a_space_spells_one_word() -> None:
    alphabet = Alphabet(("", "a", "b"))
    log_probs = matrix(1, 12, 3)
    reference = ReferenceSearch(DecodingOptions(n_best=4), alphabet)
    reference.advance(log_probs)
    assert_equal(BeamSearch(DecodingOptions(n_best=4), alphabet).decode(log_probs), reference.finish())


def test_words_with_letters_outside_the_alphabet_are_left_out_of_the_list(tmp_path: Path) -> None:
    path = toy_arpa.write(tmp_path, words=False)
    path.with_suffix(".words").write_text("ab\nça\nb\n", encoding="utf-8")
    options = DecodingOptions(lexicon=True, n_best=20)
    found = BeamSearch(options, LETTERS, LanguageModel(path)).decode(matrix(0, 6))
    assert {word for hypothesis in found for word in hypothesis.text.split()} == {"ab", "b"}


def test_streams_in_threads_equal_streams_alone(models: Models) -> None:
    options = DecodingOptions(beam_width=8, n_best=3)
    matrices = [matrix(seed, 20 + seed) for seed in range(40)]
    together = [BeamSearch(options, LETTERS, models["words"]) for _ in matrices]
    for half in (0, 1):
        advance_all(together, [np.array_split(each, 2)[half] for each in matrices], threads=3)
    alone = [BeamSearch(options, LETTERS, models["words"]).decode(each) for each in matrices]
    assert [search.finish() for search in together] == alone
    assert decode_batch(matrices, options, LETTERS, models["words"], threads=3) == alone
    assert decode_batch([], options, LETTERS) == []


def test_one_wrong_stream_stops_no_other() -> None:
    searches = [BeamSearch(DecodingOptions(), LETTERS) for _ in range(3)]
    wrong = np.full((1, 4), np.nan)
    with pytest.raises(ValueError, match="NaN, first in frame 0"):
        advance_all(searches, [matrix(0, 5), wrong, matrix(2, 5)], threads=2)
    expected = [
        BeamSearch(DecodingOptions(), LETTERS).decode(each) for each in (matrix(0, 5), matrix(0, 0), matrix(2, 5))
    ]
    assert [search.finish() for search in searches] == expected
    with pytest.raises(ValueError, match="threads is 0: at least 1"):
        advance_all(searches, [wrong] * 3, threads=0)
    with pytest.raises(ValueError, match="zip"):
        advance_all(searches, [wrong])


def test_threads_that_share_a_stream_take_turns() -> None:
    """Which is nothing to do on purpose; it must not crash, and every frame counts."""
    search = BeamSearch(DecodingOptions(beam_width=32), LETTERS)
    silence = np.log(np.tile([0.97, 0.01, 0.01, 0.01], (50, 1)))

    def listen() -> None:
        for _ in range(50):
            search.advance(silence)
            search.best()

    threads = [threading.Thread(target=listen) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = BeamSearch(DecodingOptions(beam_width=32), LETTERS)
    for _ in range(4 * 50):
        alone.advance(silence)
    assert search.finish() == alone.finish()


# ---- Streams without an end ----------------------------------------------------------------------------------------


def speech(text: str, seed: int, blanks: int = 2) -> NDArray[np.float32]:
    """(T, V): each letter in one frame with blanks after it, under some noise."""
    path = [index for symbol in LETTERS.encode(text) for index in (symbol, *[0] * blanks)]
    logits = np.random.default_rng(seed).normal(0, 1, (len(path), 4))
    logits[np.arange(len(path)), path] += 5
    normalised: Matrix = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return normalised.astype(np.float32)


FRAME_SECONDS = 0.02  # as in the shipped models
SENTENCE = "a b ab b a ab a b b ab a a b "


@pytest.mark.parametrize("kind", [BeamSearch, ReferenceSearch])
def test_committed_words_and_the_rest_are_the_whole(
    kind: type[BeamSearch] | type[ReferenceSearch], models: Models
) -> None:
    options = DecodingOptions(beam_width=8, n_best=2, horizon=4)
    hot_words = HotWords({"b ab": 1.0}, LETTERS)
    log_probs = speech(SENTENCE * 3, seed=1)
    whole, parts = (kind(options, LETTERS, models["words"], hot_words) for _ in range(2))
    committed: list[Word] = []
    for chunk in np.array_split(log_probs, 20):
        whole.advance(chunk)
        parts.advance(chunk)
        committed += parts.take_committed()
        expected = whole.best()
        assert [*committed, *parts.best().words][: len(committed)] == committed  # nothing committed comes again
        assert [(w.text, w.start) for w in (*committed, *parts.best().words)] == [
            (w.text, w.start) for w in expected.words
        ]
    assert len(committed) > 30
    mine, other = parts.finish()[0], whole.finish()[0]
    assert " ".join(word.text for word in (*committed, *mine.words)) == other.text
    assert (mine.lm_score, mine.word_score, mine.boost_score) == pytest.approx(
        (other.lm_score, other.word_score, other.boost_score)
    )
    assert mine.acoustic_score == pytest.approx(other.acoustic_score, abs=1)  # rivals left room for more paths
    assert 0 < mine.confidence <= mine.stability <= 1


def test_long_recordings_are_committed_on_the_way(models: Models) -> None:
    """`decode` of two thousand frames is what a stream makes of them that is committed at the same places."""
    options = DecodingOptions(beam_width=8, n_best=2)
    log_probs = speech(SENTENCE * 25, seed=3)
    stream = BeamSearch(options, LETTERS, models["words"])
    words: list[Word] = []
    for start in range(0, len(log_probs), 512):
        words += stream.take_committed()
        stream.advance(log_probs[start : start + 512])
    decoded = BeamSearch(options, LETTERS, models["words"]).decode(log_probs)
    assert len(log_probs) > 2000 and len(words) > 100
    assert decoded == [replace(rest, words=(*words, *rest.words)) for rest in stream.finish()]
    log_probs[1000] = np.nan
    with pytest.raises(ValueError, match="first in frame 1000"):
        stream.decode(log_probs)


def test_six_hours_take_no_more_memory_than_a_minute(models: Models) -> None:
    minutes = speech(SENTENCE * 150, seed=2, blanks=3)
    chunks = np.array_split(minutes, 100)
    rounds = math.ceil(6 * 3600 / FRAME_SECONDS / len(minutes))
    search = BeamSearch(DecodingOptions(beam_width=16, alpha=0.5), LETTERS, models["words"])
    words, sizes = 0, []
    for _ in range(rounds):
        for chunk in chunks:
            search.advance(chunk)
            committed = search.take_committed()
            words += len(committed)
        sizes.append(search.memory)
        assert committed and 0 <= committed[-1].start < committed[-1].end
    assert words > 6 * 3600  # one a second and more
    assert max(sizes) < 1.5 * sizes[0] and max(sizes) < 1_000_000
    (last,) = search.finish()
    assert last.word_score == 1.0 * (words + len(last.words)) and last.words[-1].end > (rounds - 1) * len(minutes)


def test_memory_is_given_back(models: Models) -> None:
    def use(count: int) -> None:
        for seed in range(count):
            search = BeamSearch(DecodingOptions(beam_width=64), LETTERS, models["words"], HotWords(BOOSTS, LETTERS))
            search.advance(matrix(seed % 7, 40))
            search.best()
            search.take_committed()
            search.finish()

    use(200)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    use(2000)
    gc.collect()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1024 if sys.platform == "linux" else 1) < 4_000_000


def test_without_the_core_the_reference_searches(monkeypatch: pytest.MonkeyPatch, models: Models) -> None:
    log_probs = matrix(5, 25)
    options = DecodingOptions(n_best=3)
    ours = BeamSearch(options, LETTERS, models["words"]).decode(log_probs)
    monkeypatch.setattr("asr_server.beam_search.core", None)
    search = BeamSearch(options, LETTERS, models["words"])
    advance_all([search], [log_probs])
    assert_equal(search.finish(), ours)
    assert_equal(search.decode(log_probs), ours)
    assert search.memory == 0 and search.best().text.startswith(search.finish()[0].text[:1])
    assert isinstance(search.take_committed(), tuple)
