"""Figures by what utterances share, by hand; what a manifest says survives reading."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tones import write_tones
from training.alignment import align, wrapped
from training.heard import Heard, compare
from training.speech_figures import HEADING, breakdowns, change, summarise, worst
from training.speech_manifest import Utterance, read_manifest


def heard(said: str, text: str, seconds: float = 1.0, **more: object) -> Heard:
    utterance = replace(Utterance(Path("a.wav"), said, seconds), **more)  # type: ignore[arg-type]
    return compare(utterance, text, seconds)


def rates(by: str, found: list[Heard]) -> dict[str, float]:
    parts = {part.by: part for part in breakdowns(found)}
    return {row.name: row.figures.words.rate for row in parts[by].rows} if by in parts else {}


def test_rows_by_what_is_known_and_differs() -> None:
    found = [
        heard("a b", "a b", 1.9, speaker="x", source="books", kind="car", snr=2.0),
        heard("a b", "a", 2.0, speaker="y", source="books", kind="car", snr=2.99),
        heard("a b", "c d", 25.0, speaker="y", source="books", kind="radio", snr=5.5),
        heard("a b", "a b", 5.0, speaker="x", source="books"),
    ]
    assert rates("speaker", found) == {"x": 0.0, "y": 75.0}
    assert rates("kind", found) == {"car": 25.0, "radio": 100.0}
    assert rates("snr", found) == {"2 to 3 dB": 25.0, "5 to 6 dB": 100.0}  # nothing is made up for the fourth
    assert rates("length", found) == {"0 to 2 s": 0.0, "2 to 5 s": 50.0, "5 to 10 s": 0.0, "20 s and more": 100.0}
    assert list(rates("length", found)) == ["0 to 2 s", "2 to 5 s", "5 to 10 s", "20 s and more"]
    assert rates("source", found) == {}


def test_a_wide_range_of_ratios_is_cut_coarser() -> None:
    found = [heard("a", "a", snr=-3.0), heard("a", "b", snr=12.0), heard("a", "a", snr=14.9)]
    assert rates("snr", found) == {"-5 to 0 dB": 0.0, "10 to 15 dB": 50.0}


def test_times_that_were_not_measured_are_left_out() -> None:
    figures = summarise([heard("a", "a"), replace(heard("a", "a"), seconds=0.5)])
    assert (figures.seconds, figures.rtf, figures.rtf_median) == (None, None, None)
    assert figures.row("whole").split()[-2:] == ["-", "-"]
    timed = summarise([replace(heard("a", "a", 2.0), seconds=0.5), replace(heard("a", "a", 8.0), seconds=0.4)])
    assert timed.rtf == pytest.approx(0.09) and timed.rtf_median == pytest.approx(0.15)
    assert len(timed.row("whole")) == len(HEADING)


def test_the_worst_come_first() -> None:
    found = [heard("a b c d", "a"), heard("a", "a"), heard("a b c", ""), heard("a", "b")]
    assert [each.utterance.text for each in worst(found, 3)] == ["a b c", "a b c d", "a"]
    assert worst(found, 1) == [found[2]]


def test_the_change_is_of_the_rates() -> None:
    points, interval = change([heard("a b", "a b")] * 2, [heard("a b", "a")] * 2)
    assert points == 50.0 and (interval.low, interval.high) == (50.0, 50.0)


def test_alignments_are_wrapped_between_words() -> None:
    pairs = align(["one", "two", "three"], ["one", "too", "three"])
    assert list(wrapped(pairs, 7)) == [("one TWO", "one TOO"), ("three", "three")]
    assert list(wrapped(pairs, 1)) == [("one", "one"), ("TWO", "TOO"), ("three", "three")]
    assert list(wrapped(pairs, 99)) == [("one TWO three", "one TOO three")]


def test_manifests_say_more_than_they_must(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path, 2)
    first, second = map(json.loads, manifest.read_text().splitlines())
    first |= {"id": "12-3", "source": "books", "kind": "car", "snr_db": 4}
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in (first, second)))
    noisy, clean = read_manifest(manifest)
    assert (noisy.id, noisy.source, noisy.kind, noisy.snr, noisy.speaker) == ("12-3", "books", "car", 4.0, "speaker0")
    assert (clean.id, clean.source, clean.kind, clean.snr) == ("", "", "", None)
    for wrong in ("4", True, float("nan")):
        manifest.write_text(json.dumps({**first, "snr_db": wrong}) + "\n")
        with pytest.raises(ValueError, match=r"line 1: 'snr_db' is .*a number of decibels"):
            read_manifest(manifest)
