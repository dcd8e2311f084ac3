"""The benchmark runs, and its synthetic outputs say what they were made from."""

import json
import runpy
from pathlib import Path

import pytest

from asr_server.alphabet import Alphabet
from asr_server.beam_search import greedy
from tests import toy_arpa

BENCHMARK = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "beam_search.py"))


def test_it_prints_its_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [
        "--frames",
        "50",
        "--beam-width",
        "2",
        "4",
        "--language-model",
        str(toy_arpa.write(tmp_path)),
        "--json",
    ]
    assert BENCHMARK["main"](arguments) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [run["beam_width"] for run in figures["runs"]] == [2, 4]
    assert all(run["us_per_frame"] > 0 and run["candidates"] >= 1 for run in figures["runs"])


def test_without_noise_the_text_is_plain() -> None:
    words = greedy(BENCHMARK["synthetic"](400, 0.1, Alphabet()), Alphabet()).text.split()
    assert len(words) > 10 and set(words[:-1]) <= set(BENCHMARK["WORDS"])
