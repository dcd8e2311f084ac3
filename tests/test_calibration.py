"""Maps of confidences against odds that are computed by hand."""

import itertools
import math

import numpy as np
import pytest

from asr_server.calibration import EDGE, Calibration, ConfidenceMap

MAPS = (
    ConfidenceMap(),
    ConfidenceMap(0.4, 0.4),
    ConfidenceMap(2.0, 0.25, 0.3),
    ConfidenceMap(0.0, 1.0, -3.0),
    ConfidenceMap(100.0, 100.0, -100.0),
    ConfidenceMap(0.0, 0.0, 100.0),
)
SHARES = (0.0, 1e-300, 1e-9, 0.001, 0.1, 0.5, 0.8, 0.999, 1 - 1e-16, 1.0)


def test_an_unfitted_calibration_changes_nothing() -> None:
    calibration = Calibration()
    for share in (0.001, 0.25, 0.5, 0.8, 0.999):
        assert calibration.word(share) == pytest.approx(share, rel=1e-12)
        assert calibration.utterance(share) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize(
    ("confidence_map", "odds"),
    [
        (ConfidenceMap(1.0, 1.0), 4.0),  # 0.8 / 0.2
        (ConfidenceMap(0.5, 0.5), 2.0),
        (ConfidenceMap(2.0, 1.0), 3.2),  # 0.64 / 0.2
        (ConfidenceMap(1.0, 2.0), 20.0),  # 0.8 / 0.04
        (ConfidenceMap(1.0, 1.0, math.log(0.25)), 1.0),
        (ConfidenceMap(0.0, 0.0, math.log(3.0)), 3.0),
    ],
)
def test_the_odds_are_those_of_beta_calibration(confidence_map: ConfidenceMap, odds: float) -> None:
    assert confidence_map(0.8) == pytest.approx(odds / (1 + odds), rel=1e-12)


def test_words_and_utterances_have_maps_of_their_own() -> None:
    calibration = Calibration(words=ConfidenceMap(0.5, 0.5), utterances=ConfidenceMap(2.0, 2.0))
    assert calibration.word(0.8) == pytest.approx(2 / 3)
    assert calibration.utterance(0.8) == pytest.approx(16 / 17)


@pytest.mark.parametrize("confidence_map", MAPS)
def test_answers_never_fall_and_are_never_zero_or_one(confidence_map: ConfidenceMap) -> None:
    answers = [confidence_map(share) for share in SHARES]
    assert all(EDGE <= answer <= 1 - EDGE for answer in answers)
    assert all(low <= high for low, high in itertools.pairwise(answers))
    as_sent = np.array(answers, np.float32)
    assert (as_sent > 0).all() and (as_sent < 1).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": -0.1}, "a of a confidence map is -0.1: from 0 to 100"),
        ({"b": math.nan}, "b of a confidence map is nan"),
        ({"b": 101.0}, "b of a confidence map is 101.0"),
        ({"c": -math.inf}, "c of a confidence map is -inf: from -100 to 100"),
    ],
)
def test_maps_that_fall_or_are_no_numbers_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfidenceMap(**values)
