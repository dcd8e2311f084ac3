"""The benchmark of the beam search: its data are what they are said to be, its clocks and ratios are right, it runs."""

import argparse
import importlib
import io
import itertools
import json
import math
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from asr_server.alphabet import BLANK, Alphabet
from asr_server.beam_search import DecodingOptions
from asr_server.smoke import SPEECH_SAMPLES
from benchmarks import beam_search, decoders, loads, posteriors, results, text
from benchmarks.decoders import Ours, Peer, Run
from benchmarks.peers import serve
from benchmarks.posteriors import Task
from benchmarks.results import Row
from benchmarks.text import Text
from tests import kenlm_stand_in, toy_arpa

NAMES = [f"{first}{second}" for first in ("ba", "du", "fi", "go", "ke", "lu", "ma", "no") for second in "bdfgklmnprstv"]
TOY = Text(
    "toy", tuple(" ".join(NAMES[i : i + 4]) for i in range(0, len(NAMES), 4)), ("bab dud fif", "gog kek lul", "mam non")
)


@pytest.fixture
def kenlm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kenlm"
    folder.mkdir()
    monkeypatch.setenv("EARSIGHT_KENLM_BIN", str(folder))
    return kenlm_stand_in.write(folder)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Two utterances over a bigram model of "a", "b" and "ab"."""
    draw = np.random.default_rng(1)
    texts = ("ab a b", "a b")
    matrices = tuple(posteriors.posteriors(each, Alphabet(), draw) for each in texts)
    return Task("synthetic", texts, matrices, toy_arpa.write(tmp_path), 0.8, 1.5)


# The text


def test_wikitext(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text(
        " = A Title = \n \n The poet 's work did n't sell . It won 3 prizes in <unk> town \n"
    )
    sentence = "Nobody ever said that the players ' own coach could don 't"
    (tmp_path / "test.txt").write_text(
        f" = Title = \n \n {sentence} . It has <unk> in it and is otherwise quite long enough . "
        f"The poet 's work did n't sell . This one has 4 digits in it and is otherwise long enough ; {sentence} . \n"
    )
    found = text.wikitext(tmp_path)
    assert found.model == ("a title", "the poet's work did n't sell", "it won", "prizes in", "town")
    assert found.test == ("nobody ever said that the players own coach could don't",)


def test_no_test_sentence_is_in_the_model(tmp_path: Path) -> None:
    both = "this sentence of more than forty characters is in both files"
    for name, other in (("valid.txt", "short"), ("test.txt", "here is one that only the test has, long enough")):
        (tmp_path / name).write_text(f"{both}. {other}. ")
    assert text.wikitext(tmp_path).test == ("here is one that only the test has long enough",)
    (tmp_path / "test.txt").write_text(both)
    with pytest.raises(ValueError, match="0 for the test: at least one"):
        text.wikitext(tmp_path)


def test_missing_wikitext_is_named(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text("text")
    with pytest.raises(ValueError, match=r"test.txt' does not exist: --wikitext is a folder"):
        text.wikitext(tmp_path)


def test_python_carries_enough_text() -> None:
    found = text.standard_library()
    assert len(found.test) >= 300 and len(found.model) >= 2000
    assert not set(found.test) & set(found.model)
    assert all(len(sentence) in text.LENGTHS for sentence in found.test)
    assert set("".join(found.test)) <= set(Alphabet().labels)


# The posteriors


def test_synthetic_posteriors_have_the_documented_statistics() -> None:
    draw = np.random.default_rng(5)
    sentences = text.standard_library().test[:60]
    matrices = [posteriors.posteriors(sentence, Alphabet(), draw) for sentence in sentences]
    log_probs = np.concatenate(matrices)
    assert np.logaddexp.reduce(log_probs.astype(float), axis=1) == pytest.approx(0, abs=1e-5)
    characters = sum(map(len, sentences))
    doubles = sum(a == b for sentence in sentences for a, b in itertools.pairwise(sentence))
    assert len(log_probs) == pytest.approx(3 * characters + doubles, rel=0.02)
    equals = len(posteriors.posteriors("s" * 400, Alphabet(), draw))
    assert equals == pytest.approx(4 * 400, rel=0.05)
    # Symbols that were never right are plain noise around a frame's mean, and the blank is right in half of the frames.
    unused = [Alphabet().encode(letter)[0] for letter in "jqz"]
    spread = (log_probs[:, unused[0]] - log_probs[:, unused[1]]).std()
    assert spread == pytest.approx(2.2 * math.sqrt(2), rel=0.03)
    lead = (log_probs[:, BLANK] - log_probs[:, unused].mean(axis=1)).mean()
    assert lead == pytest.approx(0.5 + 7.5 * (1.5 * characters + doubles) / len(log_probs), abs=0.15)
    said, heard = tuple(sentences), tuple(matrices)
    assert 70 < Task("", said, heard, Path(), 0.8, 1.5).greedy_error_rate < 86


def test_without_noise_every_letter_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posteriors, "NOISE", 0.01)
    said = tuple(text.standard_library().test[:20])
    matrices = tuple(posteriors.posteriors(each, Alphabet(), np.random.default_rng(0)) for each in said)
    assert Task("", said, matrices, Path(), 0.8, 1.5).greedy_error_rate == 0
    assert any("ss" in each or "ll" in each for each in said), "no sentence tests equal letters"


@pytest.mark.usefixtures("kenlm")
def test_a_seed_repeats_the_task(tmp_path: Path) -> None:
    first, again, other = (posteriors.synthetic(TOY, 2, seed, 0.8, 1.5, tmp_path) for seed in (7, 7, 8))
    assert first.texts == again.texts and len(set(first.texts)) == 2
    assert all(np.array_equal(*pair) for pair in zip(first.log_probs, again.log_probs, strict=True))
    assert first.frames == sum(len(matrix) for matrix in first.log_probs)
    assert not np.array_equal(first.log_probs[0][:9], other.log_probs[0][:9])
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"utterances is {count}: select from 1 to the 3 test sentences of toy"):
            posteriors.synthetic(TOY, count, 0, 0.8, 1.5, tmp_path)


def test_the_language_model_is_made_once(kenlm: Path, tmp_path: Path) -> None:
    path = posteriors.trained(TOY, tmp_path)
    assert "--order 3" in (kenlm / "called").read_text()
    assert set(path.with_suffix(".words").read_text().split()) == set(NAMES)
    (kenlm / "called").unlink()
    assert posteriors.trained(TOY, tmp_path) == path and not (kenlm / "called").exists()
    other = Text("toy", (*TOY.model, "something else"), TOY.test)
    assert posteriors.trained(other, tmp_path) != path and (kenlm / "called").exists()
    path.with_suffix(".words").unlink()
    posteriors.trained(TOY, tmp_path)
    assert path.with_suffix(".words").is_file()


def test_missing_lmplz_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("EARSIGHT_KENLM_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SystemExit, match="2"):
        beam_search.main(["--cache", str(tmp_path)])
    error = capsys.readouterr().err
    assert "make kenlm" in error and error.count("\n") == 1


def test_real_posteriors_are_the_bundles(tmp_path: Path) -> None:
    sample = SPEECH_SAMPLES / "one-five-two-one-seven.wav"
    said = sample.stem.replace("-", " ")
    manifest = tmp_path / "manifest.jsonl"
    line = json.dumps({"audio_filepath": str(sample), "duration": 2.0, "text": said})
    manifest.write_text(f"{line}\n{line}\n")
    found = posteriors.real("deepspeech-an4", manifest, None, 0.5, 1.0, 1)
    assert found.texts == (said,) and found.words.is_file()
    assert Ours(found, DecodingOptions()).run(16).texts == (said,)
    with pytest.raises(ValueError, match="'none' gives no language model"):
        posteriors.real("deepspeech-an4", manifest, "none", 0.5, 1.0, 1)


def test_error_rate() -> None:
    assert posteriors.error_rate(["a b c", "d"], ["a x c", ""]) == 50
    with pytest.raises(ValueError, match="shorter"):
        posteriors.error_rate(["a", "b"], ["a"])


# Ours and the peers


def test_ours_takes_the_tasks_weights(task: Task) -> None:
    ours = Ours(task, DecodingOptions(beam_prune_log_prob=-9.0, alpha=9.0), lexicon=True)
    options = ours.search(32).options
    assert (options.alpha, options.beta, options.beam_width) == (0.8, 1.5, 32)
    assert options.lexicon and options.beam_prune_log_prob == -9
    assert (ours.name, Ours(task, DecodingOptions()).name) == ("ours-lexicon", "ours")
    run = ours.run(32)
    assert run.texts == tuple(ours.search(32).decode(matrix)[0].text for matrix in task.log_probs)
    assert run.seconds > 0


@pytest.fixture
def toy_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Task], Peer]:
    """A peer that answers with the likeliest path, the beam and the hot words, and dies of the beam 13."""
    root = tmp_path / "root"
    (root / "benchmarks" / "peers").mkdir(parents=True)
    shutil.copy(serve.__file__, root / "benchmarks" / "peers")
    for package in ("benchmarks", "benchmarks/peers"):
        (root / package / "__init__.py").touch()
    (root / "benchmarks" / "peers" / "toy_peer.py").write_text(
        "from benchmarks.peers.serve import read_job, serve\n"
        "job = read_job()\n"
        "def prepare(beam, hot_words):\n"
        "    assert beam != 13, 'unlucky'\n"
        "    given = f'{job.alpha} {job.beta} {beam} {hot_words} {len(job.words)}'\n"
        "    return lambda matrix: given + ' ' + ''.join(job.labels[i] for i in matrix.argmax(axis=1))\n"
        "serve(job, prepare)\n"
    )
    monkeypatch.setattr(decoders, "ROOT", root)
    (tmp_path / "another" / "numpy").mkdir(parents=True)
    (tmp_path / "another" / "numpy" / "__init__.py").write_text("raise ImportError('of another environment')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "another"))
    return lambda task: Peer("toy", task, Path(sys.executable))


def test_a_peer_hears_the_same_task(task: Task, toy_peer: Callable[[Task], Peer]) -> None:
    with toy_peer(task) as peer:
        first, second = peer.run(7), peer.run(8, ["a b"])
        paths = ["".join(task.alphabet.labels[i] for i in matrix.argmax(axis=1)) for matrix in task.log_probs]
        assert first.texts == tuple(f"0.8 1.5 7 [] 3 {path}" for path in paths)
        assert second.texts == tuple(f"0.8 1.5 8 ['a b'] 3 {path}" for path in paths)
        assert 0 < first.seconds < 1
        with pytest.raises(ValueError, match="toy ended with status 1: AssertionError: unlucky"):
            peer.run(13)


def test_a_peer_ends_with_its_block(task: Task, toy_peer: Callable[[Task], Peer]) -> None:
    with toy_peer(task) as peer:
        peer.run(7)
        process, folder = peer._process, Path(peer._folder.name)
        assert process.poll() is None and folder.is_dir()
    assert process.poll() is not None and not folder.exists()


def test_utterances_are_split_where_they_were_joined() -> None:
    parts = [np.full((length, 2), length, np.float32) for length in (3, 1, 2)]
    found = serve.split(np.concatenate(parts), np.array([3, 1, 2]))
    assert [part.tolist() for part in found] == [part.tolist() for part in parts]


def test_a_peers_time_is_that_of_decoding(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    clock = iter([10.0, 12.5])
    monkeypatch.setattr("benchmarks.peers.serve.time.process_time", lambda: next(clock))
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"beam": 4, "hot_words": ["x"]}\n'))
    job = serve.Job([np.zeros((2, 1), np.float32)] * 3, [""], "", [], 1.0, 0.0)
    serve.serve(job, lambda beam, hot_words: lambda matrix: f"{beam}{hot_words[0]}{len(matrix)}")
    assert json.loads(capsys.readouterr().out) == {"texts": ["4x2"] * 3, "seconds": 2.5}


def peer_module(name: str, monkeypatch: pytest.MonkeyPatch, **modules: dict[str, Any]) -> ModuleType:
    """A peer's script with stand-ins for what it imports."""
    for dotted, content in modules.items():
        module = ModuleType(dotted)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, dotted.replace("_", "."), module)
    monkeypatch.delitem(sys.modules, f"benchmarks.peers.{name}_peer", raising=False)
    return importlib.import_module(f"benchmarks.peers.{name}_peer")


JOB = serve.Job([], ["", " ", "a", "b"], "lm.binary", ["a", "ab"], 0.8, 1.5)


def test_pyctcdecode_is_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def build(labels: list[str], **options: Any) -> Any:
        told.append((labels, options))
        return SimpleNamespace(decode=decode)

    def decode(log_probs: object, **how: Any) -> str:
        told.append(how)
        return "heard"

    peer = peer_module("pyctcdecode", monkeypatch, pyctcdecode={"build_ctcdecoder": build})
    assert peer.preparation(JOB)(100, [])(np.zeros((2, 4), np.float32)) == "heard"
    options = {"kenlm_model_path": "lm.binary", "unigrams": ["a", "ab"], "alpha": 0.8, "beta": 1.5}
    assert told == [(JOB.labels, options), {"beam_width": 100, "hotwords": None}]


def test_flashlight_is_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {"spellings": {}}
    dictionary = ["a", "ab", "<unk>"]
    trie = SimpleNamespace(
        insert=lambda letters, word, score: told["spellings"].update({dictionary[word]: (letters, score)}),
        smear=lambda mode: told.update(smear=mode),
    )
    best = SimpleNamespace(words=[1, -1, 0])

    def decoder(*arguments: Any) -> Any:
        told["decoder"] = arguments
        return SimpleNamespace(decode=lambda pointer, frames, symbols: [best])

    content = {
        "CriterionType": SimpleNamespace(CTC="ctc"),
        "LexiconDecoder": decoder,
        "LexiconDecoderOptions": lambda **options: told.update(options=options),
        "SmearingMode": SimpleNamespace(MAX="max"),
        "Trie": lambda symbols, silence: trie,
    }
    model = SimpleNamespace(start=lambda nothing: 0, score=lambda state, word: (0, -float(word)))
    words = SimpleNamespace(get_index=dictionary.index, get_entry=dictionary.__getitem__)
    peer = peer_module(
        "flashlight",
        monkeypatch,
        flashlight={},
        flashlight_lib={},
        flashlight_lib_text={},
        flashlight_lib_text_decoder=content,
        flashlight_lib_text_decoder_kenlm={"KenLM": lambda path, dictionary: model},
        flashlight_lib_text_dictionary={"Dictionary": lambda entries: words},
    )
    assert peer.preparation(JOB)(100, [])(np.zeros((2, 4), np.float32)) == "ab a"
    assert told["options"]["lm_weight"] == pytest.approx(0.8 * 2.302585)  # its scores are logarithms to base 10
    assert told["options"] | {"lm_weight": 0} == {
        "beam_size": 100,
        "beam_size_token": 4,
        "beam_threshold": 50,
        "lm_weight": 0,
        "word_score": 1.5,
        "unk_score": -math.inf,
        "sil_score": 0,
        "log_add": False,
        "criterion_type": "ctc",
    }
    assert told["spellings"] == {"a": ([2, 1], 0.0), "ab": ([2, 3, 1], -1.0)} and told["smear"] == "max"
    assert told["decoder"][3:6] == (1, 0, 2)  # space, blank, unknown
    ended = peer.with_end(np.zeros((2, 4), np.float32), 1)
    assert ended.shape == (3, 4) and ended[2].argmax() == 1 and ended[2, 1] == 0 and ended[:2].max() == 0


def test_peers_are_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def create(home: Path, clear: bool, with_pip: bool) -> None:
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "python").touch()

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0 if len(commands) > 1 else 1, "", "long story\nno such thing\n")

    monkeypatch.setattr(venv, "create", create)
    monkeypatch.setattr("benchmarks.decoders.subprocess.run", pip)
    with pytest.raises(ValueError, match="no such thing"):
        decoders.peers_python(tmp_path)
    shutil.rmtree(tmp_path / "peers")
    python = decoders.peers_python(tmp_path)
    assert python == decoders.peers_python(tmp_path) == tmp_path / "peers" / "bin" / "python"
    assert len(commands) == 2 and set(decoders.REQUIREMENTS) <= set(commands[1])
    shutil.rmtree(tmp_path / "peers")
    monkeypatch.setattr(decoders, "REQUIREMENTS", ("another==1",))
    decoders.peers_python(tmp_path)
    assert "another==1" in commands[2]


# Comparing


class Fake:
    """A decoder with a list of times."""

    def __init__(self, name: str, seconds: Sequence[float], calls: list[tuple[str, int]]) -> None:
        self.name, self._seconds, self._calls = name, iter(seconds), calls

    def run(self, beam: int, hot_words: Sequence[str] = ()) -> Run:
        self._calls.append((self.name, beam))
        return Run(("ab a b", "b"), next(self._seconds))


def test_decoders_take_turns_and_the_best_time_counts(task: Task) -> None:
    calls: list[tuple[str, int]] = []
    ours = Fake("ours", [4.0, 1.0, 2.0, 3.0], calls)
    peer = Fake("pyctcdecode", [9.0, 8.0], calls)
    rows = beam_search.compare(task, [ours, peer], [16, 100], [100], 2)
    assert calls == [("ours", 16), ("ours", 100), ("pyctcdecode", 100)] * 2
    scale = 1e6 / task.frames
    assert [(row.decoder, row.beam) for row in rows] == [("ours", 16), ("ours", 100), ("pyctcdecode", 100)]
    assert [row.us_per_frame for row in rows] == pytest.approx([2 * scale, 1 * scale, 8 * scale])
    assert {row.wer for row in rows} == {20.0} and {row.task for row in rows} == {"synthetic"}


def test_long_runs_are_not_repeated(task: Task) -> None:
    calls: list[tuple[str, int]] = []
    beam_search.compare(task, [Fake("ours", [99.0], calls)], [1024], [], 3)
    assert len(calls) == 1


ROWS = [
    Row("synthetic", "ours", 16, 5.0, 12.0),
    Row("synthetic", "ours", 100, 20.0, 10.0),
    Row("synthetic", "pyctcdecode", 100, 300.0, 10.5),
    Row("synthetic", "flashlight", 100, 60.0, 9.0),
    Row("real", "ours", 100, 7.0, 3.0),
]


def test_figures_and_bars() -> None:
    found = results.figures(ROWS, "synthetic")
    assert found == {
        "us_per_frame_beam100": 20,
        "wer_beam100": 10,
        "us_per_frame_pyctcdecode_beam100": 300,
        "wer_pyctcdecode_beam100": 10.5,
        "ratio_pyctcdecode_beam100": 15,
        "us_per_frame_flashlight_beam100": 60,
        "wer_flashlight_beam100": 9,
        "ratio_flashlight_beam100": 3,
    }
    met = {bar.key: bar.met(found) for bar in results.bars(found, synthetic=True)}
    assert met == {
        "ratio_pyctcdecode_beam100": True,
        "ratio_flashlight_beam100": False,
        "wer_beam100": True,
        "us_per_frame_beam100": True,
    }
    worse = {**found, "wer_beam100": 10.6, "us_per_frame_beam100": 31, "ratio_pyctcdecode_beam100": 9.9}
    worse |= {"hot_words_1000_extra": 0.21, "streams_100_ratio": 1.11}
    assert [bar.met(worse) for bar in results.bars(worse, synthetic=True)] == [False] * 6
    assert results.figures(ROWS, "real") == {"us_per_frame_beam100": 7, "wer_beam100": 3}
    assert results.bars(results.figures(ROWS, "real"), synthetic=False) == []


def test_table() -> None:
    lines = results.table(ROWS, "synthetic").splitlines()
    assert lines[0].split() == ["beam", "ours", "pyctcdecode", "flashlight"]
    assert [line.split() for line in lines[2:]] == [
        ["16", "5.0", "12.00", "-", "-"],
        ["100", "20.0", "10.00", "300.0", "10.50", "60.0", "9.00"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_plot(tmp_path: Path) -> None:
    results.plot(ROWS, tmp_path / "docs" / "plot.svg")
    drawn = (tmp_path / "docs" / "plot.svg").read_text()
    for label in ("synthetic", "real", "flashlight", "16", "processor time, us per frame"):
        assert f"<!-- {label} -->" in drawn  # matplotlib notes above the outlines what they spell
    with pytest.raises(ValueError, match="nonsense"):
        results.plot(ROWS, tmp_path / "plot.nonsense")


# Under load


def test_hot_words_are_seeded_and_all_different() -> None:
    phrases = loads.hot_word_list(NAMES, 1000, 3)
    assert phrases == loads.hot_word_list(NAMES, 1000, 3) != loads.hot_word_list(NAMES, 1000, 4)
    assert len(set(phrases)) == 1000
    pairs = [phrase.split() for phrase in phrases if " " in phrase]
    assert len(pairs) == 500 and {word for pair in pairs for word in pair} <= set(NAMES)
    with pytest.raises(ValueError, match="has 3 words: too few to pair them to 500 hot phrases"):
        loads.hot_word_list(["a", "b", "c"], 1000, 3)


def test_best_times_take_turns() -> None:
    calls: list[str] = []
    clock = iter([0, 5, 5, 6, 6, 9, 9, 13])
    ways: dict[str, Callable[[], object]] = {name: lambda name=name: calls.append(name) for name in "ab"}  # type: ignore[misc]
    assert loads.best_times(ways, 2, lambda: float(next(clock))) == {"a": 3.0, "b": 1.0}
    assert calls == ["a", "b", "a", "b"]


class Recorder:
    """Stands for ours: notes which stream gets which frames."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.task = SimpleNamespace(log_probs=[np.full((length, 1), length) for length in lengths])
        self.made = 0
        self.calls: list[tuple[int, int]] = []  # stream, frames; 0 is the end

    def search(self, beam: int) -> Any:
        stream = self.made
        self.made += 1
        note = self.calls.append
        return SimpleNamespace(advance=lambda chunk: note((stream, len(chunk))), finish=lambda: note((stream, 0)))


def test_streams_are_advanced_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "STREAMS", 3)
    ours = Recorder([25, 10])
    seen: dict[str, list[tuple[int, int]]] = {}

    def timed(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
        for name, way in ways.items():
            ours.made, ours.calls = 0, []
            way()
            seen[name] = ours.calls
        return {"one": 2.0, "turn": 3.0}

    monkeypatch.setattr(loads, "best_times", timed)
    assert loads.streams_ratio(cast(Ours, ours), 100, 1, turn=10) == 1.5
    assert seen["one"] == [(0, 10), (0, 10), (0, 5), (0, 0), (1, 10), (1, 0), (2, 10), (2, 10), (2, 5), (2, 0)]
    assert seen["turn"] == [(0, 10), (1, 10), (2, 10), (0, 10), (2, 10), (0, 5), (2, 5), (0, 0), (1, 0), (2, 0)]


def test_a_peers_hot_words_are_compared_with_none() -> None:
    peer = Fake("pyctcdecode", [2.0, 3.0, 1.0, 4.0], [])
    assert loads.peer_hot_words_extra(peer, NAMES, 100, 2, 0) == 2.0


# The program


@pytest.mark.usefixtures("kenlm")
def test_it_runs_and_prints_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(text, "standard_library", lambda: TOY)
    monkeypatch.setattr(loads, "STREAMS", 3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    arguments = ["--decoders", "ours", "ours-lexicon", "--utterances", "2", "--beams", "4", "100", "--repeats", "1"]
    assert beam_search.main([*arguments, "--cache", str(tmp_path / "cache"), "--json"]) == 0
    output = capsys.readouterr().out
    figures = json.loads(output.splitlines()[-1])
    assert "no --wikitext" in output and (tmp_path / "cache" / ".gitignore").read_text() == "*\n"
    assert figures["utterances"] == 2 and figures["text"] == "toy" and isinstance(figures["native"], bool)
    assert figures["us_per_frame_beam100"] > 0 and 0 <= figures["wer_beam100"] <= 100 < figures["frames"] + 100
    for name in ("hot_words_1000_extra", "hot_words_5000_extra", "streams_3_ratio", "batch_speedup"):
        assert figures[name] > -1 and name in output
    assert [(run["decoder"], run["beam"]) for run in figures["runs"]] == [
        ("ours", 4),
        ("ours-lexicon", 4),
        ("ours", 100),
        ("ours-lexicon", 100),
    ]
    best = next(run for run in figures["runs"] if run["decoder"] == "ours" and run["beam"] == 100)
    assert best["wer"] == pytest.approx(figures["wer_beam100"], abs=1e-4)


def test_an_option_is_a_threshold_of_ours() -> None:
    assert beam_search.option("beam_prune_log_prob=-12") == ("beam_prune_log_prob", -12.0)
    for wrong in ("beam_width=3", "beta", "beta=much", "x=1"):
        with pytest.raises(argparse.ArgumentTypeError, match="Select NAME from"):
            beam_search.option(wrong)
