"""Stand-ins for the synthesisers: each writes a tone whose length is the number of letters."""

import json
import os
import sys
from pathlib import Path

import pytest

from training import synthetic_speech
from training.speech_manifest import read_manifest
from training.synthetic_speech import Reading, Voice, readings

STAND_IN = """#!{python}
import sys, numpy, soundfile
arguments = sys.argv[1:]
text, file = {arguments}
if "broken" in text:
    sys.exit("cannot say that")
tone = numpy.sin(numpy.arange(len(text) * {rate} // 10) / 20) / 2
soundfile.write(file, tone, {rate})
"""
TEXT = "a b\nthis line is said\nand this one too\n4 you and 5 more\nword\nthe last line of all\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, rate, arguments in [
        ("flite", 16000, "arguments[arguments.index('-t') + 1], arguments[arguments.index('-o') + 1]"),
        ("espeak-ng", 22050, "arguments[-1], arguments[arguments.index('-w') + 1]"),
    ]:
        program = folder / name
        program.write_text(STAND_IN.format(python=sys.executable, rate=rate, arguments=arguments))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_a_manifest_of_recordings_in_several_voices(
    tmp_path: Path, programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "data" / "synthetic"
    text.write_text(TEXT)
    command = ["--text", str(text), "--out", str(out), "--hours", "0.004", "--words", "4", "5", "--seed", "3"]
    assert synthetic_speech.main(command) == 0
    utterances = read_manifest(out.with_suffix(".jsonl"))
    assert sum(utterance.duration for utterance in utterances) >= 0.004 * 3600
    assert {utterance.text for utterance in utterances} == {
        "this line is said",
        "and this one too",
        "the last line of all",
    }
    assert len({utterance.speaker for utterance in utterances}) > 2
    for utterance in utterances:
        samples = utterance.samples(16000)
        assert len(samples) == pytest.approx(len(utterance.text) * 1600, abs=2)
        assert utterance.duration == pytest.approx(len(samples) / 16000, abs=1e-3)
    assert {path.stem for path in out.iterdir()} == {utterance.audio.stem for utterance in utterances}
    first = out.with_suffix(".jsonl").read_text()
    synthetic_speech.main(command)
    assert out.with_suffix(".jsonl").read_text() == first
    assert f"{len(utterances)} utterances" in capsys.readouterr().out


def test_speed_and_pitch_reach_the_programs() -> None:
    fast = Voice("flite", "rms", 1.25, 1.2).command("hello", Path("x.wav"))
    assert fast[fast.index("--setf") + 1] == "duration_stretch=0.800"
    assert "int_f0_target_mean=126.0" in fast
    other = Voice("espeak-ng", "en-us+f2", 0.5, 1.0).command("hello", Path("x.wav"))
    assert other[other.index("-s") + 1 : other.index("-p") + 2] == ["80", "-p", "50"]


def test_a_text_without_fitting_sentences(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synthetic_speech, "MOST_MISSES", 50)
    for content in ("", "a b\nc d\n4 5 6 7\n"):
        (tmp_path / "text.txt").write_text(content)
        with pytest.raises(SystemExit) as ended:
            synthetic_speech.main(["--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")])
        assert ended.value.code == 2
        assert "has no sentence of 4 to 25 words" in capsys.readouterr().err


def test_a_synthesiser_that_fails_is_named(tmp_path: Path, programs: Path) -> None:
    reading = Reading(0, Voice("flite", "slt", 1.0, 1.0), "a broken sentence")
    with pytest.raises(ValueError, match="flite failed at 'a broken sentence': cannot say that"):
        synthetic_speech.speak(reading, tmp_path)


def test_what_was_made_before_an_interruption_is_in_the_manifest(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(reading: Reading, folder: Path) -> dict[str, object]:
        if reading.number == 5:
            raise KeyboardInterrupt
        return speak(reading, folder)

    speak = synthetic_speech.speak
    monkeypatch.setattr(synthetic_speech, "speak", interrupted)
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(SystemExit) as ended:
        synthetic_speech.main(
            ["--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "synth-0.5h"), "--jobs", "1"]
        )
    assert ended.value.code == 130 and "interrupted" in capsys.readouterr().err
    assert len(read_manifest(tmp_path / "synth-0.5h.jsonl")) == 4


def test_without_synthesisers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(SystemExit):
        synthetic_speech.main(["--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")])
    assert "install flite or espeak-ng" in capsys.readouterr().err


def test_sentences_are_drawn_by_the_seed(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)

    def drawn(seed: int) -> list[str]:
        chosen = readings(tmp_path / "text.txt", ["flite"], (1, 5), seed)
        return [json.dumps([reading.text, reading.voice.name]) for reading, _ in zip(chosen, range(20), strict=False)]

    assert drawn(1) == drawn(1) != drawn(2)
