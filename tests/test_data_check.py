"""The check of manifests: each rule finds what it is for, and nothing in clean data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from training import data
from training.data_check import CheckOptions, Report, check
from training.data_entries import ERROR, WARNING
from training.data_overlap import voice
from training.data_rules import Limits
from training.recording_facts import measure, measure_header

RATE = 16000


def sound(seed: int, seconds: float = 1.0, rate: int = RATE) -> np.ndarray[Any, np.dtype[np.float64]]:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate)).clip(-3, 3)


class Folder:
    """Recordings and manifests in a folder, a line each."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def record(self, name: str, samples: np.ndarray[Any, Any], rate: int = RATE) -> str:
        exact = (samples * 32767).round().astype(np.int16)  # WAV and FLAC would round floats differently
        soundfile.write(self.path / name, exact, rate)
        return name

    def line(self, name: str, text: str = "one two", **more: object) -> dict[str, object]:
        """Of a recording made for it when there is none yet."""
        if not (self.path / name).exists():
            self.record(name, sound(sum(map(ord, name))))
        return {"audio_filepath": name, "duration": 1.0, "text": text, **more}

    def manifest(self, name: str, *lines: dict[str, object] | str) -> Path:
        path = self.path / name
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def rules(report: Report) -> list[tuple[int, str, str]]:
    return [(finding.line, finding.severity, finding.rule) for finding in report.findings]


def of_lines(folder: Folder, *lines: dict[str, object] | str) -> list[tuple[int, str, str]]:
    return rules(check(CheckOptions((folder.manifest("m.jsonl", *lines),))))


def test_clean_data_is_clean(folder: Folder) -> None:
    lines = [folder.line(f"{i}.flac", f"word {'abc'[i]}", speaker=f"c:{i % 2}", id=str(i)) for i in range(3)]
    test = folder.manifest("test.jsonl", folder.line("t.wav", "a very short text", speaker="c:9", id="9"))
    noise = folder.manifest("noise.jsonl", {"audio_filepath": folder.record("n.wav", sound(99, 30)), "duration": 30})
    report = check(CheckOptions((folder.manifest("train.jsonl", *lines),), (noise,), (test,), jobs=2))
    assert report.clean and not report.findings
    train, noises, tests = report.summaries
    assert (train.kind, train.utterances, train.speakers, train.words) == ("training", 3, 2, 6)
    assert train.hours == pytest.approx(3 / 3600)
    assert train.characters_per_second == pytest.approx(6.0)
    assert (noises.kind, noises.words) == ("noise", 0) and noises.hours == pytest.approx(30 / 3600)
    assert (tests.kind, tests.speakers) == ("test", 1)


def test_files_and_lines_that_cannot_be_used(folder: Folder) -> None:
    (folder.path / "broken.flac").write_bytes(b"fLaC and no more")
    folder.record("8k.wav", sound(1, rate=8000), 8000)
    folder.record("short.wav", sound(2, 0.8))
    folder.record("stereo.wav", np.stack([sound(3), sound(4)], axis=1))
    found = of_lines(
        folder,
        {"audio_filepath": "nowhere.wav", "duration": 1.0, "text": "one two"},
        folder.line("broken.flac"),
        folder.line("8k.wav"),
        folder.line("short.wav"),
        folder.line("stereo.wav"),
        "{",
        {"audio_filepath": "8k.wav", "text": "one"},
        "[]",
        {**folder.line("8k.wav"), "duration": float("nan")},
        "",
    )
    wanted = ["missing", "unreadable", "rate", "duration", "channels", "line", "line", "line", "line"]
    assert found == [(i, WARNING if rule == "channels" else ERROR, rule) for i, rule in enumerate(wanted, 1)]


def test_texts_that_cannot_be_learned(folder: Folder) -> None:
    found = of_lines(
        folder,
        folder.line("a.wav", "One  TWO"),  # training reads it as "one two"
        folder.line("b.wav", " "),
        folder.line("c.wav", "caf\u00e9 no. 5"),
        folder.line("d.wav", "aab" * 13),  # 39 letters and 13 blanks for 50 frames
        folder.line("e.wav", "ab"),
        folder.line("f.wav", "abcd" * 8),
    )
    errors = [(2, ERROR, "empty"), (3, ERROR, "alphabet"), (4, WARNING, "speed"), (4, ERROR, "ctc")]
    assert found == [*errors, (5, WARNING, "speed"), (6, WARNING, "speed")]


def test_sounds_that_are_odd(folder: Folder) -> None:
    folder.record("silent.wav", sound(1) * 0.001)
    folder.record("clipped.wav", (sound(2) * 20).clip(-1, 1))
    peak = sound(3)
    peak[::100] = 1.0  # one sample at a time, as a normalised file has
    folder.record("peak.wav", peak)
    folder.record("tiny.wav", sound(4, 0.1))
    folder.record("long.wav", sound(5, 40))
    folder.record("gap.wav", np.concatenate([sound(6), np.zeros(3 * RATE)]))
    found = of_lines(
        folder,
        folder.line("silent.wav"),
        folder.line("clipped.wav"),
        folder.line("peak.wav"),
        {**folder.line("tiny.wav", "a"), "duration": 0.1},
        {**folder.line("long.wav", "word " * 40), "duration": 40},
        {**folder.line("gap.wav", "some more words"), "duration": 4},
    )
    wanted = [(1, ERROR, "silent"), (2, WARNING, "clipping"), (4, WARNING, "length"), (5, WARNING, "length")]
    assert found == [*wanted, (6, WARNING, "zeros")]


def test_what_is_measured_of_a_recording(folder: Folder) -> None:
    samples = np.array([0.5, 0, 0, 0, -0.25, 1, 1, 1, 0, 1])
    facts = measure(folder.path / folder.record("x.wav", samples))
    assert (facts.rate, facts.channels, facts.seconds) == (RATE, 1, 10 / RATE)
    assert facts.peak == pytest.approx(1, abs=1e-4)
    assert facts.clipped == pytest.approx(0.2)  # of three in a row the second and the third
    assert facts.silence == 3 / RATE
    assert facts.digest == measure(folder.path / folder.record("x.flac", samples)).digest
    assert facts.digest != measure(folder.path / folder.record("y.flac", samples / 2)).digest


def test_what_the_header_says_of_a_recording(folder: Folder) -> None:
    samples = sound(1)
    first, copy, other = (
        measure_header(folder.path / folder.record(name, each))
        for name, each in (("x.flac", samples), ("y.flac", samples), ("z.flac", samples / 2))
    )
    assert (first.rate, first.channels, first.seconds, first.clipped, first.silence) == (RATE, 1, 1.0, 0, 0)
    assert first.digest and first.digest == copy.digest != other.digest
    assert measure_header(folder.path / folder.record("x.wav", samples)).digest == ""
    assert "cannot be read as audio" in measure_header(folder.path / "nowhere.flac").trouble
    report = check(
        CheckOptions((folder.manifest("m.jsonl", folder.line("x.flac"), folder.line("y.flac")),), headers=True)
    )
    assert rules(report) == [(2, WARNING, "same-audio")]


def test_duplicates(folder: Folder) -> None:
    samples = sound(1)
    for name in ("a.wav", "a.flac", "b.flac"):
        folder.record(name, samples)
    found = of_lines(
        folder,
        folder.line("a.wav", speaker="c:1", id="1"),
        folder.line("a.wav", speaker="c:1", id="1"),  # the same line again
        folder.line("a.flac", speaker="c:1", id="2"),
        folder.line("b.flac", "two one", speaker="c:1", id="3"),
        folder.line("c.flac", "three", speaker="c:1", id="1"),
        folder.line("d.flac", "three", speaker="c:1", id="5"),
        folder.line("e.flac", "three", speaker="c:2", id="6"),  # another voice may say it too
    )
    wanted = [(2, WARNING, "twice"), (3, WARNING, "same-audio"), (4, ERROR, "conflict"), (5, WARNING, "same-id")]
    assert found == [*wanted, (6, WARNING, "same-text")]


def test_what_a_test_set_must_not_share(folder: Folder) -> None:
    folder.record("t1.wav", sound(1))
    folder.record("copy.flac", sound(1))
    test = folder.manifest(
        "test.jsonl",
        folder.line("t1.wav", "a b c d", speaker="test-clean:19"),
        folder.line("t2.wav", "e f g", speaker="an4-test:menk"),
    )
    train = folder.manifest(
        "train.jsonl",
        folder.line("copy.flac", "x y", speaker="other:1"),
        folder.line("2.wav", "x z", speaker="train-clean-5:19"),
        folder.line("3.wav", "x w", speaker="speechocean:19"),
        folder.line("4.wav", "A b c d", speaker="other:2"),
        folder.line("5.wav", "e f g", speaker="other:3"),  # of three words: anybody's
        folder.line("6.wav", "x v", speaker="an4-train:menk"),
        folder.line("7.wav", "x u"),  # nobody is nobody's equal
    )
    report = check(CheckOptions((train,), tests=(test,)))
    shared = [(1, "test-audio"), (2, "test-speaker"), (4, "test-text"), (6, "test-speaker")]
    assert rules(report) == [(line, ERROR, rule) for line, rule in shared]
    assert f"{test}:1" in report.findings[1].text
    allowed = check(CheckOptions((train,), tests=(test,), allowed=frozenset({"test-audio", "test-speaker"})))
    assert [finding.severity for finding in allowed.findings] == [WARNING, WARNING, ERROR, WARNING]


def test_speakers_of_one_family_compare() -> None:
    for name in ("train-clean-5", "dev-other-part", "test-clean", "train-clean-100-a", "librispeech-dev-other"):
        assert voice(f"{name}:19") == "librispeech:19"
    assert voice("an4-train:a") == voice("an4-test:a") == "an4:a"
    assert voice("vctk-p239:p239") == "vctk-p239:p239"
    assert voice("training-room:19") == "training-room:19"
    assert voice("alone") == "alone"


def test_the_command_s_statuses_and_output(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    clean = folder.manifest("clean.jsonl", folder.line("a.wav"))
    wrong = folder.manifest("wrong.jsonl", *(folder.line(f"{i}.wav", "7") for i in range(4)))
    assert data.main(["check", str(clean)]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("manifest ")
    assert data.main(["check", str(clean), str(wrong), "--show", "2", "--slowest", "0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{wrong}:1: error: alphabet: '7' in '7'")
    assert lines[2] == f"{wrong}: error: alphabet: 2 more"
    assert len(lines) == 3 + 3
    assert data.main(["check", str(wrong), "--allow", "alphabet", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["clean"] and len(report["findings"]) == 8
    assert report["findings"][0] | {"text": ""} == {
        "manifest": str(wrong),
        "line": 1,
        "severity": "warning",
        "rule": "alphabet",
        "text": "",
    }


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: cannot be read as a manifest"),
        ([], "no manifest to check"),
        (["same.jsonl", "--test", "same.jsonl"], "same.jsonl is named twice"),
        (["x", "--shortest", "9", "--longest", "1"], "shortest 9.0 and longest 1.0"),
        (["x", "--jobs", "0"], "jobs is 0"),
        (["x", "--allow", "speling"], "there is no rule 'speling'"),
    ],
)
def test_errors_are_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        data.main(["check", *arguments])
    assert exit_code.value.code == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="both are positive"):
        Limits(rate=0)
