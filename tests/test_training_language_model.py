"""From text to a model that scores it, with KenLM's programs where they are built and with stand-ins everywhere."""

import gzip
import json
import sys
import tempfile
from pathlib import Path

import pytest

from asr_server.alphabet import Alphabet
from asr_server.language_model import LanguageModel
from tests import kenlm_stand_in
from training import language_model as command
from training.language_model import Recipe, find_tool, normalise, train

TEXT = ["yes", "no", "yes please", "Yes, please!", "", "room 101", "yes yes no"]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kenlm"
    folder.mkdir()
    monkeypatch.setenv("EARSIGHT_KENLM_BIN", str(folder))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return kenlm_stand_in.write(folder)


def check_model(path: Path) -> None:
    model = LanguageModel(path)
    assert model.lexicon is not None and [w for w in ("yes", "no", "please", "room") if w in model.lexicon] == [
        "yes",
        "no",
        "please",
    ]
    assert "yes" in model and "room" not in model
    state = model.score(model.begin(), "yes")[1]
    assert model.score(state, "please")[0] > model.score(state, "room")[0]


@pytest.mark.parametrize("quantise", [0, 8])
def test_a_tiny_text_becomes_a_model(stand_in: Path, tmp_path: Path, quantise: int) -> None:
    report = train(TEXT, tmp_path / "out" / "lm.binary", Recipe(quantise=quantise))
    check_model(tmp_path / "out" / "lm.binary")
    assert (report.sentences, report.left_out, len(report.ngrams)) == (5, 1, 3)
    assert report.size == (tmp_path / "out" / "lm.binary").stat().st_size
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lm.binary", "lm.words"]
    assert not list((tmp_path / "temporary").iterdir())


def test_the_real_programs_do_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they are built; elsewhere their absence is one clear line."""
    monkeypatch.delenv("EARSIGHT_KENLM_BIN", raising=False)
    try:
        find_tool("lmplz"), find_tool("build_binary")
    except ValueError as error:
        assert "make kenlm" in str(error)  # noqa: PT017
        return
    report = train(TEXT, tmp_path / "lm.binary", Recipe(memory="5%"))
    check_model(tmp_path / "lm.binary")
    assert report.ngrams[0] == 6 and sorted(path.name for path in tmp_path.iterdir()) == ["lm.binary", "lm.words"]


def test_the_recipe_reaches_lmplz(stand_in: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text("yes\nno\n")
    train(TEXT, tmp_path / "lm.arpa", Recipe(order=2, prune=(0, 1), vocabulary=words, memory="1G"))
    called = (stand_in / "called").read_text()
    for part in ("--order 2", "--prune 0 1", f"--limit_vocab_file {words}", "--memory 1G", "--discount_fallback"):
        assert part in called
    assert (tmp_path / "lm.arpa").read_text().startswith("\\data\\")
    assert (tmp_path / "lm.words").read_text() == "no\nyes\n"


def test_a_failure_leaves_nothing_behind(stand_in: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lmplz failed with status 1: Too much text\."):
        train(["yes"] * 100, tmp_path / "out" / "lm.binary", Recipe())
    with pytest.raises(ValueError, match=r"no sentence in the alphabet .* \(1 left out\)"):
        train(["1984", "  "], tmp_path / "out" / "lm.binary", Recipe())
    assert not list((tmp_path / "out").iterdir()) and not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Twenty-one  GUNS.\n", "twenty one guns"),
        ("don’t", "don't"),  # noqa: RUF001
        ("Café déjà vu", "cafe deja vu"),
        ("room 101", None),
        ("привет", None),
        ("...", ""),
    ],
)
def test_normalise(line: str, expected: str | None) -> None:
    assert normalise(line, Alphabet()) == expected


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARSIGHT_KENLM_BIN", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ValueError, match=r"KenLM's lmplz is neither .* 'make kenlm'"):
        train(TEXT, tmp_path / "lm.binary", Recipe())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--order", "1"], "order is 1: select from 2 to 6"),
        (["--quantise", "26"], "quantise is 26"),
        (["--prune", "0", "2", "1"], "prune is [0, 2, 1]: at most 3 counts, 0 first, never falling"),
        (["--prune", "1"], "prune is [1]"),
        (["--vocabulary", "nowhere"], "vocabulary 'nowhere' does not exist"),
        (["--text", "nowhere"], "'nowhere' does not exist"),
        (["--text", "cut.gz"], "cut.gz: cannot be read to its end"),
        (["--out", "lm-0.5"], "lm-0.5: its list of words would be lm-0.words, without .5: name it lm-0.5.binary"),
        (["--manifest", "broken.jsonl"], "broken.jsonl, line 2: not JSON"),
        (["--manifest", "silent.jsonl"], "silent.jsonl, line 1: a line of a manifest is an object with a 'text'"),
    ],
)
def test_errors_are_one_line(
    stand_in: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("yes\n")
    Path("cut.gz").write_bytes(gzip.compress(b"yes\n" * 99)[:-9])
    Path("broken.jsonl").write_text('{"text": "yes"}\nno\n')
    Path("silent.jsonl").write_text('{"audio_filepath": "a.wav"}\n')
    with pytest.raises(SystemExit) as exit_info:
        command.main(["--text", "text", "--out", "lm.binary", *wrong])
    assert exit_info.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert not Path("lm.binary").exists()


def test_command_line(stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, text = tmp_path / "train.jsonl", tmp_path / "more.txt.gz"
    manifest.write_text('{"text": "yes please"}\n\n{"text": "no"}\n')
    with gzip.open(text, "wt") as file:
        file.write("yes\nroom 101\n")
    out = tmp_path / "lm.binary"
    assert command.main(["--manifest", str(manifest), "--text", str(text), "--out", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["sentences"], figures["left_out"], figures["words"]) == (3, 1, 3)
    assert figures["bytes"] == out.stat().st_size
    check_model(out)
