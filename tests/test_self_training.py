"""Self-training on tones: what is heard becomes a manifest, of the recordings that the bundle is surest of."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.speech_fixtures import RATE, save_toy_bundle, speak
from training import self_training
from training.self_training import Guess, surest
from training.speech_manifest import Utterance, read_manifest


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    bundle = save_toy_bundle(tmp_path / "models")
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "pseudo.jsonl"
    return ["--bundle", str(bundle), "--manifest", str(tmp_path / "speech.jsonl"), "--out", str(out)]


def record(folder: Path, **texts: str | None) -> None:
    """Recordings of the names; a text of None is silence, one in capitals is spoken but not in the manifest."""
    lines = []
    for name, text in texts.items():
        samples = np.zeros(RATE, np.float32) if text is None else speak(text.lower())
        soundfile.write(folder / f"{name}.wav", samples, RATE)
        entry = {"audio_filepath": f"{name}.wav", "duration": len(samples) / RATE, "speaker": name}
        if text and text.islower():
            entry["text"] = text
        lines.append(json.dumps(entry) + "\n")
    (folder / "speech.jsonl").write_text("".join(lines))


def test_what_is_heard_is_a_manifest_to_train_on(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, first="AB BA", silent=None, second="B AB")
    assert self_training.main([*arguments, "--keep", "1"]) == 0
    made = read_manifest(tmp_path / "out" / "pseudo.jsonl")
    assert [(each.text, each.speaker, each.audio.resolve()) for each in made] == [
        ("ab ba", "first", tmp_path / "first.wav"),
        ("b ab", "second", tmp_path / "second.wav"),
    ]
    figures = json.loads(capsys.readouterr().out)
    assert (figures["recordings"], figures["kept"], figures["wer"], figures["kept_wer"]) == (3, 2, None, None)


def test_texts_that_are_there_are_compared_with_and_not_taken(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, right="ab ba", wrong="ab ba")
    soundfile.write(tmp_path / "wrong.wav", speak("ab bb"), RATE)
    assert self_training.main([*arguments, "--keep", "1"]) == 0
    assert [each.text for each in read_manifest(tmp_path / "out" / "pseudo.jsonl")] == ["ab ba", "ab bb"]
    assert json.loads(capsys.readouterr().out)["wer"] == 25


def test_the_surest_are_kept_in_their_order() -> None:
    guesses = [
        Guess(Utterance(Path(name), "", 1.0), text, confidence)
        for name, text, confidence in [
            ("a", "x", 0.5),
            ("b", "y", 0.9),
            ("c", "", 0.0),
            ("d", "z", 0.7),
            ("e", "w", 0.7),
        ]
    ]
    kept = {
        share: "".join(str(each.utterance.audio) for each in surest(guesses, share)) for share in (0.2, 0.5, 0.8, 1)
    }
    assert kept == {0.2: "b", 0.5: "bde", 0.8: "abde", 1: "abde"}


def test_a_word_that_might_be_another_lowers_the_confidence(tmp_path: Path, arguments: list[str]) -> None:
    record(tmp_path, clear="ab ba", noisy="ab ba")
    samples, _ = soundfile.read(tmp_path / "noisy.wav", dtype="float32")
    noise = np.random.default_rng(0).normal(0, 0.25, len(samples)).astype(np.float32)
    soundfile.write(tmp_path / "noisy.wav", samples + noise, RATE)
    self_training.main([*arguments, "--keep", "0.5"])
    assert [each.speaker for each in read_manifest(tmp_path / "out" / "pseudo.jsonl")] == ["clear"]


@pytest.mark.parametrize("keep", ["0", "1.5", "nan"])
def test_a_share_that_cannot_be_kept(arguments: list[str], keep: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        self_training.main([*arguments, "--keep", keep])
    assert ended.value.code == 2
    assert f"--keep is {float(keep)}: a share above 0 and up to 1" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        self_training.main([*arguments, "--out", str(tmp_path / "nowhere" / "pseudo.jsonl")])
    assert ended.value.code == 2 and "there is no folder" in capsys.readouterr().err


def test_only_silence(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, silent=None)
    with pytest.raises(SystemExit):
        self_training.main(arguments)
    assert "hears nothing in any of the 1 recordings" in capsys.readouterr().err
    assert not (tmp_path / "out" / "pseudo.jsonl").exists()
