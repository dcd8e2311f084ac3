"""The table of models: perplexity by hand, n-grams as the file has them, and error rates of the tuner."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from asr_server import bundle
from asr_server.decoding import DecodingOptions
from asr_server.language_model import LanguageModel
from tests import toy_arpa, toy_binaries
from tests.speech_fixtures import RATE, save_toy_bundle, speak
from training import language_model_sizes as command
from training.decoding_trial import load_material
from training.language_model_sizes import fit_of, ngrams_of


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy_arpa.write(tmp_path)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "dev.jsonl"
    samples = speak("a b")
    soundfile.write(tmp_path / "first.wav", samples, RATE)
    path.write_text(json.dumps({"audio_filepath": "first.wav", "text": "a b", "duration": len(samples) / RATE}) + "\n")
    return path


@pytest.fixture
def toy_bundle(tmp_path: Path, model: Path) -> Iterator[Path]:
    """It hears no spaces, until beta is tuned."""
    folder = save_toy_bundle(tmp_path / "models")
    silent = DecodingOptions(beam_width=8, alpha=0.0, beta=-100.0)
    bundle.save(replace(bundle.load(folder), decoding=silent), model)
    yield folder
    load_material.cache_clear()  # a model that lives as long as the process looks like a leak of the native core


def test_perplexity_by_hand(model: Path) -> None:
    """-0.25 for a after the beginning, -0.375 for b after a, -0.5 for the end after b."""
    fit = fit_of(LanguageModel(model), ["a b"])
    assert fit.perplexity == pytest.approx(10 ** (1.125 / 3)) and fit.unknown_rate == 0


def test_unknown_words_are_counted_apart(model: Path) -> None:
    """After one only the end is left to score: -1 without context."""
    fit = fit_of(LanguageModel(model), ["b", "zoo"])
    assert (fit.words, fit.unknown, fit.unknown_rate) == (2, 1, 50.0)
    assert fit.scored == 3 and fit.perplexity == pytest.approx(10 ** ((0.5 + 0.75 + 0.5 + 1.0) / 3))


def test_ngrams_are_as_the_file_has_them(tmp_path: Path, model: Path) -> None:
    assert ngrams_of(model, 2) == (6, 4)
    for name in toy_binaries.BINARIES:
        assert ngrams_of(toy_binaries.write(tmp_path, name), 3) == (5, 4, 2), name


def test_a_table_without_a_bundle(model: Path, manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(model), "--manifest", str(manifest), "--json"]) == 0
    heading, row, figures = capsys.readouterr().out.splitlines()
    size = model.stat().st_size + model.with_suffix(".words").stat().st_size
    assert row.split() == ["toy", str(size), "0.00", "2.4", "6", "4"] and heading.endswith("n-grams")
    (found,) = json.loads(figures)["rows"]
    assert (found["bytes"], found["ngrams"], found["bundles"]) == (size, [6, 4], [])


def test_texts_are_read_as_for_the_error_rate(model: Path, manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main([str(model), "--manifest", str(manifest)])
    lower = capsys.readouterr().out
    manifest.write_text(manifest.read_text().replace('"a b"', '"A  B"'))
    command.main([str(model), "--manifest", str(manifest)])
    assert capsys.readouterr().out == lower


def test_error_rates_tuned_and_given(
    tmp_path: Path, model: Path, manifest: Path, toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def heard(*more: str) -> dict[str, float]:
        usual = [
            str(model),
            "--manifest",
            str(manifest),
            "--bundle",
            str(toy_bundle),
            "--cache",
            str(tmp_path / "kept"),
        ]
        assert command.main([*usual, "--json", *more]) == 0
        (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
        found: dict[str, float] = row["bundles"][0]
        return found

    assert heard("--alpha", "0", "--beta", "-100")["wer"] == 100  # "ab" for "a b": two words wrong
    tuned = heard("--trials", "12")
    assert tuned["wer"] == 0 and tuned["beta"] > -100
    again = heard("--alpha", str(tuned["alpha"]), "--beta", str(tuned["beta"]), "--gamma", str(tuned["gamma"]))
    assert again == tuned
    assert len(list((tmp_path / "kept").iterdir())) == 1  # the network ran once


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--alpha", "1"], "--alpha and --beta go together"),
        (["--gamma", "1"], "--gamma goes with --alpha and --beta"),
        (["--limit", "0"], "--limit is 0: at least 1"),
        (["--manifest", "nowhere"], "'nowhere' does not exist"),
        (["nothing.binary"], "'nothing.binary' does not exist"),
        (["--manifest", "silent.jsonl"], "no words"),
    ],
)
def test_errors_are_one_line(
    model: Path,
    manifest: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(manifest.parent)
    Path("silent.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(SystemExit) as exit_info:
        command.main(
            ["--manifest", str(manifest), *wrong]
            if "binary" in wrong[0]
            else [str(model), "--manifest", str(manifest), *wrong]
        )
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
