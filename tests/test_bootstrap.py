"""The bootstrap where its answer is known: no spread, the binomial's spread, clusters, and pairs."""

from pathlib import Path

import pytest

from training.bootstrap import Interval, clusters, difference, drawn_by, interval
from training.error_rate import Edits
from training.speech_manifest import Utterance


def of(*errors: int, reference: int = 1) -> list[Edits]:
    return [Edits(substitutions=count, reference=reference) for count in errors]


def names(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_equal_utterances_leave_no_doubt() -> None:
    assert interval(of(1, 1, 1, reference=4), names(3)) == Interval(25.0, 25.0)
    assert interval(of(2, reference=4), ["one"]) == Interval(50.0, 50.0)


def test_one_word_utterances_spread_as_the_binomial_does() -> None:
    found = interval(of(*[0, 1] * 200), names(400))  # the standard deviation is 100 sqrt(0.25 / 400) = 2.5
    assert found.low == pytest.approx(50 - 1.96 * 2.5, abs=0.6)
    assert found.high == pytest.approx(50 + 1.96 * 2.5, abs=0.6)
    assert found == interval(of(*[0, 1] * 200), names(400))
    assert found != interval(of(*[0, 1] * 200), names(400), seed=1)


def test_rates_are_those_of_sums() -> None:
    """Without an error in ten words and with one of one: only the share of the draws decides."""
    found = interval([Edits(reference=10), Edits(substitutions=1, reference=1)], ["long", "short"])
    assert (found.low, found.high) == (0.0, 100.0)  # both draws of the same one happen a quarter of the time


def test_clusters_are_drawn_whole() -> None:
    errors = of(*[0] * 50, *[1] * 50)
    by_speaker = interval(errors, ["good"] * 50 + ["bad"] * 50)
    assert by_speaker == Interval(0.0, 100.0)
    assert interval(errors, names(100)).low > 35


def test_what_is_common_to_both_is_no_doubt_about_their_difference() -> None:
    first, second = of(*[1, 5] * 20, reference=10), of(*[2, 6] * 20, reference=10)
    assert difference(first, second, names(40), names(40)) == Interval(10.0, 10.0)
    apart = difference(first, second, names(40), [f"other {name}" for name in names(40)])
    assert apart.low < 5 and apart.high > 15


def test_speakers_are_drawn_where_there_are_enough() -> None:
    def spoken(*speakers: str) -> list[Utterance]:
        return [Utterance(Path("a.wav"), "a", 1.0, speaker) for speaker in speakers]

    five = spoken(*"abcdea")
    assert drawn_by(five) == "speaker" and clusters(five) == list("abcdea")
    for too_few in (spoken(*"abcda"), spoken(*"abcde", "")):
        assert drawn_by(too_few) == "utterance" and len(set(clusters(too_few))) == len(too_few)
