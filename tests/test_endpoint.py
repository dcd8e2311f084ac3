"""Endpointing on frames of a tenth of a second: 8 quiet blanks, or 20 loud ones, close an utterance."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_server.endpoint import Cut, Endpointer, EndpointOptions

LOUD, QUIET = 1e-2, 1e-5
OPTIONS = EndpointOptions(lead_in=0.3, longest=10.0)


def frames(*parts: tuple[int, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """(count, blank probability, power) parts -> (T,), (T,)."""
    blank = np.concatenate([np.full(count, probability) for count, probability, _ in parts])
    return blank, np.concatenate([np.full(count, power) for count, _, power in parts])


def watch(*parts: tuple[int, float, float]) -> Cut | None:
    return Endpointer(OPTIONS, 0.1).advance(*frames(*parts))


def test_a_quiet_pause_closes() -> None:
    assert watch((3, 1.0, QUIET), (5, 0.1, LOUD), (20, 1.0, QUIET)) == Cut(end=16, restart=13)


def test_a_short_pause_does_not() -> None:
    assert watch((5, 0.1, LOUD), (7, 1.0, QUIET), (2, 0.1, LOUD), (7, 1.0, QUIET)) is None


def test_blank_but_loud_needs_more_patience() -> None:
    assert watch((5, 0.1, LOUD), (19, 1.0, LOUD)) is None
    assert watch((5, 0.1, LOUD), (30, 1.0, LOUD)) == Cut(end=25, restart=22)


def test_quiet_but_not_blank_is_speech() -> None:
    assert watch((5, 0.1, LOUD), (50, 0.5, QUIET)) is None


def test_silence_before_speech_starts_afresh() -> None:
    assert watch((80, 1.0, QUIET)) == Cut(end=50, restart=47)
    assert watch((80, 1.0, 0.0)) == Cut(end=50, restart=47)


def test_a_long_utterance_ends_at_a_blank() -> None:
    assert watch((120, 0.1, LOUD), (1, 1.0, LOUD)) == Cut(end=121, restart=121)


def test_speech_borders() -> None:
    assert Endpointer(OPTIONS, 0.1).speech_start is None
    endpointer = Endpointer(OPTIONS, 0.1)
    endpointer.advance(*frames((3, 1.0, QUIET), (5, 0.1, LOUD), (4, 1.0, QUIET)))
    assert (endpointer.speech_start, endpointer.speech_end) == (3, 8)


def test_any_cut_gives_the_same_answer() -> None:
    blank, power = frames((3, 1.0, QUIET), (5, 0.1, LOUD), (4, 1.0, LOUD), (20, 1.0, QUIET))
    whole = Endpointer(OPTIONS, 0.1).advance(blank, power)
    for seed in range(5):
        cuts = sorted(np.random.default_rng(seed).integers(0, len(blank), 6).tolist())
        endpointer = Endpointer(OPTIONS, 0.1)
        found = [endpointer.advance(blank[a:b], power[a:b]) for a, b in pairwise([0, *cuts, len(blank)])]
        assert next(cut for cut in found if cut) == whole


def test_options_must_grow() -> None:
    with pytest.raises(ValueError, match=r"lead_in 1\.0, silence 0\.8"):
        EndpointOptions(lead_in=1.0)


# --- windows: a history and the share of it that counts ---


def watched(options: EndpointOptions, *parts: tuple[int, float, float]) -> tuple[Cut | None, Endpointer]:
    endpointer = Endpointer(options, 0.1)
    return endpointer.advance(*frames(*parts)), endpointer


CLICK = ((3, 1.0, QUIET), (2, 0.1, LOUD), (10, 1.0, QUIET))


def test_a_click_is_no_speech_where_a_history_is_asked_for() -> None:
    options = replace(OPTIONS, start_history=0.5, start_threshold=0.6)
    cut, endpointer = watched(options, *CLICK)
    assert (cut, endpointer.speech_start, endpointer.speech_end) == (None, None, None)
    assert watched(OPTIONS, *CLICK)[0] == Cut(13, 10)
    assert watched(replace(options, start_threshold=0.4), *CLICK)[0] == Cut(13, 10)


def test_speech_begins_with_the_window_that_it_fills() -> None:
    """Three of the five frames from the fourth on are speech; the last one of them is blank and no part of it."""
    options = replace(OPTIONS, start_history=0.5, start_threshold=0.6)
    parts = ((3, 1.0, QUIET), (1, 0.1, LOUD), (1, 1.0, LOUD), (2, 0.1, LOUD))
    assert watched(options, *parts)[1].speech_start == 2
    assert watched(options, *parts)[1].speech_end == 7
    _, early = watched(options, (3, 0.1, LOUD), (2, 1.0, QUIET))
    assert (early.speech_start, early.speech_end) == (0, 3)


def test_the_history_of_a_pause_is_its_length() -> None:
    speech = (5, 0.1, LOUD)
    for silence, end in ((0.3, 8), (0.8, 13), (1.5, 20)):
        options = replace(OPTIONS, silence=silence, lead_in=0.1)
        assert watched(options, speech, (30, 1.0, QUIET))[0] == Cut(end, end - 1)


def test_a_noisy_pause_needs_a_share_of_quiet_frames() -> None:
    """Of each four frames one is loud: eight quiet ones in all are there later than six within eight."""
    noisy = ((3, 1.0, QUIET), (1, 1.0, LOUD)) * 8
    speech = (5, 0.1, LOUD)
    assert watched(replace(OPTIONS, stop_threshold=0.75), speech, *noisy)[0] == Cut(end=12, restart=9)
    for share in (0.8, 1.0):
        assert watched(replace(OPTIONS, stop_threshold=share), speech, *noisy)[0] == Cut(end=15, restart=12)


def test_a_pause_with_a_stray_letter_in_it() -> None:
    stray = ((4, 1.0, QUIET), (1, 0.1, QUIET), (8, 1.0, QUIET))
    speech = (5, 0.1, LOUD)
    assert watched(replace(OPTIONS, stop_threshold=0.875), speech, *stray)[0] == Cut(end=13, restart=10)
    assert watched(OPTIONS, speech, *stray)[0] == Cut(end=18, restart=15)


def test_the_first_pass_announces_and_takes_back() -> None:
    options = replace(OPTIONS, first_pass=0.3)
    over = []
    endpointer = Endpointer(options, 0.1)
    for blank, power in zip(*frames((2, 0.1, LOUD), (4, 1.0, QUIET), (1, 0.1, LOUD), (8, 1.0, QUIET)), strict=True):
        cut = endpointer.advance(np.array([blank]), np.array([power]))
        over.append(endpointer.probably_over)
    assert over == [False] * 4 + [True] * 2 + [False] * 3 + [True] * 6
    assert cut == Cut(end=15, restart=12)


def test_no_first_pass_before_speech() -> None:
    assert not watched(replace(OPTIONS, first_pass=0.3), (20, 1.0, QUIET))[1].probably_over


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    start_history=st.sampled_from([0.0, 0.4]),
    stop_threshold=st.sampled_from([0.6, 1.0]),
    first_pass=st.sampled_from([None, 0.2]),
)
def test_any_cut_gives_the_same_answer_with_windows(
    seed: int, start_history: float, stop_threshold: float, first_pass: float | None
) -> None:
    options = EndpointOptions(
        silence=0.5, lead_in=0.1, start_history=start_history, stop_threshold=stop_threshold, first_pass=first_pass
    )
    draw = np.random.default_rng(seed)
    blank, power = draw.choice([0.1, 1.0, 1.0], 60), draw.choice([LOUD, QUIET, QUIET], 60)
    whole = Endpointer(options, 0.1)
    expected = whole.advance(blank, power)
    cuts = sorted(draw.integers(0, 60, 5).tolist())
    endpointer = Endpointer(options, 0.1)
    found = None
    for a, b in pairwise([0, *cuts, 60]):
        found = found or endpointer.advance(blank[a:b], power[a:b])
    assert found == expected
    state = ("speech_start", "speech_end", "probably_over")
    assert [getattr(endpointer, name) for name in state] == [getattr(whole, name) for name in state]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"patience": 0.5}, r"lead_in 0\.3, silence 0\.8, patience 0\.5: they must not be negative and must grow"),
        ({"start_threshold": 0.0}, r"start_threshold is 0\.0; it must be above 0 and at most 1"),
        ({"stop_threshold": 1.5}, r"stop_threshold is 1\.5"),
        ({"first_pass_threshold": -1.0}, r"first_pass_threshold is -1\.0"),
        ({"start_history": 61.0}, r"start_history is 61\.0; it must be 0 to 60 seconds"),
        ({"first_pass": 0.9}, r"first_pass is 0\.9; it must be above 0 and at most silence 0\.8"),
    ],
)
def test_errors_name_the_option(changed: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(OPTIONS, **changed)
