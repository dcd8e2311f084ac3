"""Tuning on tones: the options decide how many words are heard, and the best ones end in the bundle."""

import json
from pathlib import Path

import pytest
import soundfile

from asr_server import bundle
from asr_server.beam_search import DecodingOptions
from tests import toy_arpa
from tests.speech_fixtures import RATE, save_toy_bundle, speak
from training import tune_decoder
from training.error_rate import Edits
from training.tune_decoder import Trial


@pytest.fixture
def toy_bundle(tmp_path: Path) -> Path:
    """With the toy language model, for which "ab a" is likelier than "ab b"."""
    folder = save_toy_bundle(tmp_path / "models")
    loaded = bundle.load(folder)
    bundle.save(loaded, toy_arpa.write(tmp_path))
    return folder


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    entries = []
    for name, text in (("first", "ab b"), ("second", "a b")):
        samples = speak(text)
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE)
        entries.append({"audio_filepath": f"{name}.wav", "text": text, "duration": len(samples) / RATE})
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_the_best_options_are_found_and_written(
    toy_bundle: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A word reward of -100 silences every space; without it both texts are heard."""
    arguments = ["--bundle", str(toy_bundle), "--manifest", str(manifest), "--alpha", "0", "--beta", "-100", "0"]
    assert tune_decoder.main([*arguments, "--json", "--write"]) == 0
    table = capsys.readouterr().out.splitlines()
    figures = json.loads(table[-1])
    assert (figures["wer"], figures["cer"], figures["trials"]) == (0.0, 0.0, 2)
    assert figures["decoding"]["beta"] == 0.0
    assert table[1].split()[:5] == ["0.000", "0.000", "8", "off", "0.00"] and float(table[2].split()[4]) > 0
    assert bundle.load(toy_bundle).decoding == DecodingOptions(beam_width=8, alpha=0.0, beta=0.0)


def test_nothing_is_written_unasked(toy_bundle: Path, manifest: Path) -> None:
    before = (toy_bundle / "bundle.json").read_bytes()
    assert tune_decoder.main(["--bundle", str(toy_bundle), "--manifest", str(manifest), "--random", "2"]) == 0
    assert (toy_bundle / "bundle.json").read_bytes() == before


def test_grid_and_random_trials() -> None:
    usual = DecodingOptions(beam_width=8)
    parse = tune_decoder.build_parser().parse_args
    needed = ["--bundle", "b", "--manifest", "m", "--alpha", "1", "2", "--beta", "-1", "3"]
    grid = tune_decoder.choices(parse([*needed, "--beam-width", "4", "16", "--lexicon", "off", "on"]), usual)
    assert len(set(grid)) == 16 and {trial.beam_width for trial in grid} == {4, 16}
    drawn = tune_decoder.choices(parse([*needed, "--random", "50"]), usual)
    assert len(set(drawn)) == 50 and all(1 <= t.alpha <= 2 and -1 <= t.beta <= 3 for t in drawn)
    assert {trial.beam_width for trial in drawn} == {8}
    assert drawn == tune_decoder.choices(parse([*needed, "--random", "50"]), usual)
    with pytest.raises(ValueError, match="--random is 0"):
        tune_decoder.choices(parse([*needed, "--random", "0"]), usual)


def test_trials_rank_by_words_then_characters_then_width() -> None:
    def trial(word_errors: int, character_errors: int, width: int) -> Trial:
        options = DecodingOptions(beam_width=width)
        return Trial(options, Edits(word_errors, reference=10), Edits(character_errors, reference=50))

    best, second, third, worst = trial(1, 9, 64), trial(2, 3, 8), trial(2, 3, 16), trial(2, 4, 8)
    assert sorted([worst, second, best, third], key=lambda each: each.rank) == [best, second, third, worst]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--lexicon", "on", "--language-model", "none"], "there is no language model"),
        (["--write", "--language-model", "none"], "--write with --language-model"),
        (["--alpha", "-1"], "alpha is -1.0"),
        (["--limit", "0"], "--limit is 0"),
    ],
)
def test_errors_are_one_line(
    toy_bundle: Path, manifest: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        tune_decoder.main(["--bundle", str(toy_bundle), "--manifest", str(manifest), *wrong])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
