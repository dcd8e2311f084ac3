"""Evaluation from the command line to the figures, on the bundle that hears tones and recordings made for it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests import toy_arpa
from tests.speech_fixtures import RATE, save_toy_bundle, speak
from training import evaluate, evaluate_speech
from training.bootstrap import Interval
from training.error_rate import Edits
from training.evaluation import Change
from training.heard import compare
from training.hearing import Task, hear_all, spread
from training.recognition import LogProbs, Recognition, Samples, Setting, find_bundle
from training.speech_figures import summarise
from training.speech_manifest import Utterance, read_manifest

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


@pytest.mark.parametrize("samples", [0, 100])
def test_a_recording_shorter_than_a_window_is_one_without_words(
    capsys: pytest.CaptureFixture[str], toy_bundle: Path, tmp_path: Path, samples: int
) -> None:
    soundfile.write(tmp_path / "tiny.wav", np.zeros(samples), RATE)
    manifest = tmp_path / "test.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": "tiny.wav", "text": "one two", "duration": 0}) + "\n")
    for how in (["--all"], ["--chunked", "--cache", str(tmp_path / "cache")], ["--compare-streaming"], ["--jitter"]):
        figures = figures_of(capsys, toy_bundle, manifest, *how)
        for way in figures.get("ways", {"": figures}).values():
            assert (way["wer"], way["deletions"]) == (100.0, 2)
            assert way["rtf"] is None or math.isfinite(way["rtf"])


def test_streams_equal_the_chunked_pass(capsys: pytest.CaptureFixture[str], toy_bundle: Path, manifest: Path) -> None:
    figures = figures_of(capsys, toy_bundle, manifest, "--compare-streaming")
    assert (figures["streaming_equal"], figures["different"], figures["mode"]) == (3, [], "streaming")


@pytest.mark.parametrize("jobs", [1, 2])
def test_jobs_keep_the_order(jobs: int) -> None:
    assert list(spread(str.upper, ["one", "two", "three"], jobs)) == ["ONE", "TWO", "THREE"]


def test_a_difference_is_reported() -> None:
    said = Utterance(Path("a.wav"), "yes no", 1.0)
    same = compare(said, "yes", 1.0, 0.25, "yes")
    other = compare(replace(said, audio=Path("b.wav")), "yes", 2.0, 1.25, "no")
    figures = summarise([same, other])
    assert figures.different == ("b.wav",) and figures.as_json()["streaming_equal"] == 1
    assert figures.words == Edits(deletions=2, reference=4)
    assert figures.audio_seconds == 3.0 and figures.as_json()["rtf"] == 0.5
    assert figures.as_json()["rtf_median"] == 0.4375  # of 0.25 and 0.625
    assert "1 of 2" in figures.remarks()[1] and "differs: b.wav" in figures.remarks()[2]
    assert summarise([replace(same, offline=None)]).different is None


def test_all_ways_in_one_run(
    capsys: pytest.CaptureFixture[str], toy_bundle: Path, manifest: Path, tmp_path: Path
) -> None:
    report = figures_of(capsys, toy_bundle, manifest, "--all", "--report", str(tmp_path / "new" / "report"))
    ways = ["offline greedy", "offline, beam", "streaming greedy", "streaming, beam"]
    assert list(report["ways"]) == ways
    assert [report["ways"][way]["mode"] for way in ways] == ["whole", "whole", "chunked", "streaming"]
    assert [report["ways"][way]["wer"] for way in ways] == [40.0] * 4  # tones leave no doubt
    assert [(change["first"], change["second"]) for change in report["changes"]] == [
        (ways[0], ways[1]),
        (ways[0], ways[2]),
        (ways[1], ways[3]),
        (ways[2], ways[3]),
    ]
    assert all(change["points"] == 0 and change["interval"] == [0, 0] for change in report["changes"])
    written = json.loads((tmp_path / "new" / "report" / "report.json").read_text())
    assert written["figures"] == report and written["manifest"] == "test.jsonl" and written["made"]["seed"] == 0
    first, second = written["worst"]["streaming, beam"]
    assert first["alignment"] == [["yes", "yes"], ["now", "no"]] or second["alignment"] == [
        ["yes", "yes"],
        ["now", "no"],
    ]
    page = (tmp_path / "new" / "report" / "report.md").read_text()
    assert "said  yes NOW\nheard yes NO" in page and "said  go ****\nheard go LEFT" in page
    for picture in ("errors", "rtf", "length", "utterances"):
        assert f"]({picture}.png)" in page and (tmp_path / "new" / "report" / f"{picture}.png").stat().st_size > 5000
    lines = (tmp_path / "new" / "report" / "utterances.jsonl").read_text().splitlines()
    assert len(lines) == 12 and json.loads(lines[-1])["way"] == "streaming, beam"


def test_changes_are_read_as_a_sentence() -> None:
    change = Change("offline", "streaming", 1.25, Interval(-0.5, 3.0))
    assert str(change) == "streaming less offline: +1.25 points of WER (-0.50 to 3.00)"


def test_kept_outputs_say_the_same_without_a_time(
    capsys: pytest.CaptureFixture[str],
    toy_bundle: Path,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("--greedy", "--cache", str(tmp_path))
    first = figures_of(capsys, toy_bundle, manifest, *arguments)
    assert (first["wer"], first["rtf"], first["rtf_median"]) == (40.0, None, None)
    monkeypatch.setattr("training.recognition.Recognition.log_probs", None)  # it would fail if it were called
    assert figures_of(capsys, toy_bundle, manifest, *arguments) == first


def test_settings_with_one_network_run_it_once(
    toy_bundle: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    before = Recognition.log_probs

    def counted(self: Recognition, samples: Samples) -> LogProbs:
        runs.append(self.setting.mode)
        return before(self, samples)

    monkeypatch.setattr(Recognition, "log_probs", counted)
    settings = tuple(Setting(toy_bundle, mode, greedy) for mode in ("whole", "chunked") for greedy in (True, False))
    heard = hear_all(Task(settings, threads=1), read_manifest(manifest)[:2])
    assert runs == ["whole", "chunked"] * 2
    assert [[each.text for each in way] for way in heard] == [list(PLAYED[:2])] * 4
    assert all(each.seconds is not None and each.seconds > 0 for way in heard for each in way)


def test_ensembles_and_jitter_from_the_command_line(
    capsys: pytest.CaptureFixture[str], toy_bundle: Path, manifest: Path
) -> None:
    figures = figures_of(capsys, toy_bundle, manifest, "--bundle", str(toy_bundle), "--jitter", "--limit", "1")
    assert (figures["wer"], figures["ensemble"], figures["jitter"]) == (0.0, 2, True)


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
        (["--jobs", "0"], "--jobs is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--all", "--greedy"], "--all with --greedy"),
        (["--streaming", "--jitter"], "--jitter and several bundles need whole recordings"),
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


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (["--out", "nowhere/heard.jsonl"], "--out nowhere/heard.jsonl: there is no folder nowhere"),
        (["--out", "."], "--out . is a folder: name a file"),
        (["--report", "notes"], "--report notes: notes is a file, a folder is needed"),
        (["--report", "notes/deeper"], "is a file, a folder is needed"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_heard(
    toy_bundle: Path,
    manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    where: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes").write_text("mine")
    monkeypatch.setattr(evaluate_speech, "hear_all", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["speech", "--bundle", str(toy_bundle), "--manifest", str(manifest), *where])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_both_kinds_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, option in (("speech", "--compare-streaming"), ("vision", "--data")):
        with pytest.raises(SystemExit):
            evaluate.main([kind, "--help"])
        assert option in capsys.readouterr().out
