"""What the benchmark of interims says of results written down by hand, and that it runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_server.recognizer import Activity, ActivityKind, Alternative, Event, Result
from asr_server.transcripts import Word
from benchmarks import interims
from tests.speech_fixtures import RATE, save_toy_bundle, speak


def interim(text: str, stability: float) -> Result:
    return Result((Alternative(text, 0.0, ()),), is_final=False, stability=stability, end=0.0)


def final(*words: tuple[str, float]) -> Result:
    """Words with their ends."""
    said = tuple(Word(text, end - 0.1, end, 1.0) for text, end in words)
    text = " ".join(word.text for word in said)
    return Result((Alternative(text, 1.0, said),), is_final=True, stability=0.0, end=0.0)


SCRIPT: list[tuple[float, Event]] = [
    (0.5, Activity(ActivityKind.BEGIN, 0.4)),
    (1.0, interim("he", 0.6)),
    (1.5, interim("hello", 0.9)),  # grew: no change
    (2.0, interim("hello word", 0.7)),
    (2.5, interim("hello world", 0.8)),  # changed
    (2.5, interim("hello world no", 1.0)),  # twice with one piece of audio
    (3.0, final(("hello", 0.5), ("world", 2.1), ("now", 2.8))),
    (4.0, interim("a b", 0.3)),
    (5.0, final(("a", 3.8))),  # taken back
    (7.0, final(("x", 6.0))),  # never shown before
    (8.0, interim("lost", 0.5)),  # nobody's
]


def test_figures() -> None:
    found = list(interims.utterances(SCRIPT))
    assert [list(utterance.losses()) for utterance in found] == [[0, 0, 1, 0, 0], [1], []]
    assert [utterance.standing() for utterance in found] == [[1.5, 2.5, 3.0], [4.0], [7.0]]
    figures = interims.figures(found)
    table = figures.pop("stability_table")
    assert figures == {
        "utterances": 3,
        "final_words": 5,
        "interims": 6,
        "interims_per_utterance": 2.0,
        "flicker_rate": round(1 / 6, 4),
        "finals_that_change_a_word": round(1 / 3, 4),
        "words_taken_back_per_final_word": 0.4,
        "final_words_in_last_interim": 0.6,  # hello world, a
        "word_delay_mean": 0.56,  # 1.0, 0.4, 0.2, 0.2, 1.0
        "word_delay_p50": 0.4,
        "word_delay_p95": 1.0,
        "interims_that_lasted": round(4 / 6, 4),
        "stability_of_those": round((0.6 + 0.9 + 0.8 + 1.0) / 4, 4),
        "stability_of_others": 0.5,
        "stability_auc": round(7 / 8, 4),  # only 0.6 against 0.7 is the wrong way round
    }
    assert table == [
        {"from": 0.0, "to": 0.5, "interims": 1, "mean_stability": 0.3, "lasted": 0},
        {"from": 0.5, "to": 0.8, "interims": 2, "mean_stability": 0.65, "lasted": 0.5},
        {"from": 0.8, "to": 0.95, "interims": 2, "mean_stability": 0.85, "lasted": 1},
        {"from": 0.95, "to": 1.0, "interims": 1, "mean_stability": 1.0, "lasted": 1},
    ]


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ("", "a", 0),
        ("a b", "a b c", 0),
        ("a b", "a bc d", 0),
        ("ab c", "a c", 1),
        ("a b", "ab", 2),
        ("a bc", "ax b", 2),
        ("a b", "", 2),
        ("a a", "b aa", 1),
    ],
)
def test_lost_words(before: str, after: str, lost: int) -> None:
    first, second = interim(before, 0.5), interim(after, 0.5)
    utterance = interims.Utterance(((0.0, first), (0.0, second)), (1.0, final(("x", 1.0))))
    assert next(iter(utterance.losses())) == lost


def test_stability_that_nothing_can_be_said_of() -> None:
    figures = interims.figures(list(interims.utterances([(1.0, interim("a", 0.5)), (2.0, final(("a", 0.5)))])))
    assert (figures["stability_auc"], figures["stability_of_others"]) == (None, None)
    with pytest.raises(ValueError, match="nothing to measure"):
        interims.figures([])


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_toy_bundle(tmp_path)
    soundfile.write(tmp_path / "one.wav", np.concatenate([speak("go up"), np.zeros(RATE, np.float32)]), RATE)
    manifest = tmp_path / "toy.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": "one.wav", "duration": 2.6, "text": "go up"}))
    arguments = ["--bundle", str(tmp_path / "tones"), "--manifest", str(manifest)]
    assert interims.main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["utterances"], figures["final_words"], figures["interims"]) == (1, 2, 4)  # g, go, go u, go up
    assert (figures["flicker_rate"], figures["final_words_in_last_interim"], figures["stability_auc"]) == (0, 1, None)
    assert 0 < figures["word_delay_mean"] < 0.5
    assert interims.main(arguments) == 0
    assert "flicker_rate                      0.0\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        interims.main([*arguments[:2], "--manifest", "nowhere.jsonl"])
    assert "nowhere.jsonl: cannot be read" in capsys.readouterr().err
