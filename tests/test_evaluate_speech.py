"""Evaluation from the command line to the figures, on the bundle that hears tones and recordings made for it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests import toy_arpa
from tests.speech_fixtures import RATE, save_toy_bundle, speak
from training import evaluate
from training.error_rate import Edits
from training.evaluate_speech import Heard, spread, summarise
from training.recognition import Setting, find_bundle
from training.speech_manifest import Utterance

# What is played and what the manifest claims: one word is wrong, one missing, one too many.
PLAYED = ("one two", "yes no", "go left")
SAID = ("one two", "yes now", "go")


@pytest.fixture(scope="module")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_bundle(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number, (played, said) in enumerate(zip(PLAYED, SAID, strict=True)):
        samples = speak(played)
        soundfile.write(folder / f"{number}.wav", samples, RATE)
        entry = {"audio_filepath": f"{number}.wav", "text": said, "duration": len(samples) / RATE}
        lines.append(json.dumps(entry))
    path = folder / "test.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def figures_of(capsys: pytest.CaptureFixture[str], bundle: Path, manifest: Path, *more: str) -> dict[str, Any]:
    assert evaluate.main(["speech", "--bundle", str(bundle), "--manifest", str(manifest), "--json", *more]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return figures


@pytest.mark.parametrize("how", [[], ["--greedy"], ["--chunked"], ["--streaming", "--piece", "0.037"]])
def test_rates_of_a_manifest(
    capsys: pytest.CaptureFixture[str], toy_bundle: Path, manifest: Path, tmp_path: Path, how: list[str]
) -> None:
    figures = figures_of(capsys, toy_bundle, manifest, "--out", str(tmp_path / "heard.jsonl"), *how)
    assert figures["wer"] == 40.0  # "no" for "now" and an added "left", of 5 words
    assert figures["cer"] == pytest.approx(100 * 6 / 16, abs=1e-3)  # "w" missing, " left" added, of 7 + 7 + 2
    assert (figures["substitutions"], figures["deletions"], figures["insertions"]) == (1, 0, 1)
    assert figures["utterances"] == 3
    assert figures["audio_seconds"] == pytest.approx(sum(len(speak(text)) for text in PLAYED) / RATE)
    # Both are rounded: seconds to a thousandth, which a fast machine makes a large part of the whole.
    assert figures["rtf"] == pytest.approx(
        figures["seconds"] / figures["audio_seconds"], abs=1e-3 / figures["audio_seconds"]
    )
    heard = [json.loads(line) for line in (tmp_path / "heard.jsonl").read_text().splitlines()]
    assert [line["heard"] for line in heard] == list(PLAYED)
    assert [line["word_errors"] for line in heard] == [0, 1, 1]


def test_streams_equal_the_chunked_pass(capsys: pytest.CaptureFixture[str], toy_bundle: Path, manifest: Path) -> None:
    figures = figures_of(capsys, toy_bundle, manifest, "--compare-streaming")
    assert (figures["streaming_equal"], figures["different"], figures["mode"]) == (3, [], "streaming")


@pytest.mark.parametrize("jobs", [1, 2])
def test_jobs_keep_the_order(jobs: int) -> None:
    assert list(spread(str.upper, ["one", "two", "three"], jobs)) == ["ONE", "TWO", "THREE"]


def test_a_difference_is_reported() -> None:
    said = Utterance(Path("a.wav"), "yes no", 1.0)
    same, other = Heard(said, "yes", 1.0, "yes"), Heard(replace(said, audio=Path("b.wav")), "yes", 2.0, "no")
    figures = summarise([same, other], 1.5)
    assert figures.different == ("b.wav",) and figures.as_json()["streaming_equal"] == 1
    assert figures.words == Edits(deletions=2, reference=4)
    assert figures.audio_seconds == 3.0 and figures.as_json()["rtf"] == 0.5
    assert "1 of 2" in figures.as_table() and "differs: b.wav" in figures.as_table()
    assert "streaming" not in summarise([replace(same, offline=None)], 1.0).as_table()


def test_options_replace_those_of_the_bundle(
    capsys: pytest.CaptureFixture[str], toy_bundle: Path, manifest: Path, tmp_path: Path
) -> None:
    model = toy_arpa.write(tmp_path)
    more = ["--beam-width", "3", "--alpha", "0.25", "--beta", "2", "--language-model", str(model), "--limit", "1"]
    figures = figures_of(capsys, toy_bundle, manifest, *more)
    assert (figures["beam_width"], figures["alpha"], figures["beta"], figures["utterances"]) == (3, 0.25, 2.0, 1)
    recognition = Setting(toy_bundle, language_model=str(model), decoding=(("lexicon", True),)).load()
    assert recognition.bundle.language_model is not None and recognition.bundle.decoding.lexicon
    assert recognition.bundle.decoding.beam_width == 8  # the bundle's own
    bound = recognition.transcribe(speak("ab a"))
    assert bound == "ab a"
    assert set(recognition.transcribe(speak("one two")).split()) <= set(toy_arpa.WORDS)
    assert Setting(toy_bundle, language_model="none").load().bundle.language_model is None


def test_pauses_may_end_utterances(toy_bundle: Path) -> None:
    samples = np.concatenate([speak("one", pause=1.5), speak("two", pause=1.5)])
    for mode in ("whole", "chunked", "streaming", "endpointed"):
        text = Setting(toy_bundle, mode).load().transcribe(samples)
        assert text == ("one two" if mode == "endpointed" else "onetwo")  # the pause is no space


def test_bundles_are_found_by_name(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_bundle(str(toy_bundle)) == toy_bundle
    monkeypatch.setattr("asr_server.bundle.SHIPPED", toy_bundle.parent)
    monkeypatch.chdir(tmp_path)
    assert find_bundle("tones") == toy_bundle
    with pytest.raises(ValueError, match=r"'tunes' is neither a folder nor shipped; shipped are \['tones'\]"):
        find_bundle("tunes")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--manifest", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["--bundle", "nothing"], "bundle 'nothing' is neither a folder nor shipped"),
        (["--greedy", "--streaming"], "--greedy goes with --chunked"),
        (["--endpointing"], "--endpointing needs --streaming"),
        (["--limit", "0"], "--limit is 0"),
        (["--jobs", "0"], "--jobs 0"),
        (["--beam-width", "0"], "beam_width is 0: a whole number, at least 1"),
        (["--piece", "0"], "piece is 0.0 seconds"),
        (["--lexicon"], "there is no language model"),
        (["--language-model", "gone.binary"], "'gone.binary' does not exist"),
    ],
)
def test_errors_are_one_line(
    toy_bundle: Path, manifest: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["speech", "--bundle", str(toy_bundle), "--manifest", str(manifest), *wrong])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_both_kinds_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, option in (("speech", "--compare-streaming"), ("vision", "--data")):
        with pytest.raises(SystemExit):
            evaluate.main([kind, "--help"])
        assert option in capsys.readouterr().out
