"""Endpointing on frames of a tenth of a second: 8 quiet blanks, or 20 loud ones, close an utterance."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

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
