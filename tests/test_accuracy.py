"""Ours beside a peer that hears what it is told to, on the bundle that hears tones."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import soundfile

from benchmarks import accuracy, sphinx_load, sphinx_transcripts
from tests.speech_fixtures import RATE, save_toy_bundle, speak

SAID = {"clean": ("one two", "yes no"), "noisy": ("one two", "yes b no")}
PLAYED = {"clean": ("one two", "yes no"), "noisy": ("one two", "yes no")}


class FakeDecoder:
    """Hears one thing, and keeps to the order of the calls."""

    def __init__(self, **options: object) -> None:
        assert options == {"loglevel": "FATAL"}
        self._steps: list[str] = []

    def start_utt(self) -> None:
        self._steps = ["start"]

    def process_raw(self, data: bytes, no_search: bool, full_utt: bool) -> None:
        assert full_utt and not no_search and self._steps == ["start"] and len(data) > RATE
        self._steps.append("audio")

    def end_utt(self) -> None:
        assert self._steps == ["start", "audio"]
        self._steps.append("end")

    def hyp(self) -> Any:
        assert self._steps == ["start", "audio", "end"]
        return SimpleNamespace(hypstr="Yes b. -no")


@pytest.fixture(autouse=True)
def peer(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("pocketsphinx")
    vars(module)["Decoder"] = FakeDecoder
    monkeypatch.setitem(sys.modules, "pocketsphinx", module)
    monkeypatch.setattr(sphinx_load, "installed", lambda: True)
    sphinx_transcripts._decoder.cache_clear()


@pytest.fixture
def manifests(tmp_path: Path) -> list[str]:
    paths = []
    for name, texts in SAID.items():
        lines = []
        for number, (said, played) in enumerate(zip(texts, PLAYED[name], strict=True)):
            file = f"{name}{number}.wav"
            soundfile.write(tmp_path / file, speak(played), RATE)
            lines.append(json.dumps({"audio_filepath": file, "text": said, "duration": 1.0, "speaker": "s"}) + "\n")
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        paths.append(str(tmp_path / f"{name}.jsonl"))
    return paths


def test_both_are_measured_on_the_same_files(
    tmp_path: Path, manifests: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", str(save_toy_bundle(tmp_path / "models")), "--precision", "fp32", "--json"]
    assert accuracy.main(["--manifest", *manifests, *arguments]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    rates = {name: {part: each["wer"] for part, each in of.items()} for name, of in found["figures"].items()}
    # The peer hears "yes b no": 3 and 1 errors in 4 words, 3 and 0 in 5.
    assert rates == {"tones": {"clean": 0.0, "noisy": 20.0}, "pocketsphinx": {"clean": 100.0, "noisy": 60.0}}
    assert [(each["what"], each["points"]) for each in found["differences"]] == [
        ("tones, from clean to noisy", 20.0),
        ("pocketsphinx, from clean to noisy", -40.0),
        ("clean, from tones to pocketsphinx", 100.0),
        ("noisy, from tones to pocketsphinx", 40.0),
    ]
    assert all(each["seconds"] is not None for of in found["figures"].values() for each in of.values())
    assert any(line.startswith("noisy, pocketsphinx") and " 60.00" in line for line in lines)
    assert any(line.startswith("tones, from clean to noisy: +20.00 points") for line in lines)


@pytest.mark.parametrize(("only", "system"), [("peer", "pocketsphinx"), ("ours", "tones")])
def test_one_of_the_two(
    tmp_path: Path, manifests: list[str], capsys: pytest.CaptureFixture[str], only: str, system: str
) -> None:
    ours = ["--bundle", str(save_toy_bundle(tmp_path / "models")), "--offline"] if only == "ours" else []
    assert accuracy.main(["--manifest", manifests[0], "--limit", "1", "--only", only, *ours, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found["figures"]) == [system] and found["differences"] == []
    assert found["figures"][system]["clean"]["utterances"] == 1


def test_the_peer_s_spellings_are_those_of_the_transcripts() -> None:
    assert sphinx_transcripts.plain("A. twenty-one  it's [NOISE]") == "a twenty one it's noise"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--bundle is missing"),
        (["--only", "peer", "--jobs", "0"], "--jobs is 0: at least 1"),
        (["--bundle", "nothing"], "bundle 'nothing' is neither a folder nor shipped"),
    ],
)
def test_errors_are_one_line(
    manifests: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(["--manifest", manifests[0], *arguments], capsys)
    assert "files of the same name" in refused(["--manifest", manifests[0], manifests[0], "--only", "peer"], capsys)


def test_a_peer_that_is_not_installed_is_named(
    manifests: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sphinx_load, "installed", lambda: False)
    assert "pip install pocketsphinx" in refused(["--manifest", manifests[0], "--only", "peer"], capsys)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        accuracy.main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line
