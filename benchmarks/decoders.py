"""Ours and the peers behind one verb: decode a task's utterances with a beam and say how long that took.

A peer is a process in an environment of the benchmark's own; benchmarks.peers.serve has the requests and replies.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from asr_server.beam_search import BeamSearch, DecodingOptions
from asr_server.hot_words import HotWords
from asr_server.language_model import LanguageModel
from benchmarks.posteriors import Task

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("pyctcdecode", "flashlight")
OURS = ("ours", "ours-lexicon")
REQUIREMENTS = ("pyctcdecode==0.5.0", "flashlight-text==0.0.7", "kenlm==0.3.0", "numpy<2")


@dataclass(frozen=True)
class Run:
    """What was heard, and the processor seconds of decoding alone."""

    texts: tuple[str, ...]
    seconds: float


class Decoder(Protocol):
    name: str

    def run(self, beam: int, hot_words: Sequence[str] = ()) -> Run: ...


class Ours:
    """asr_server.beam_search, open vocabulary or with the language model's word list as the lexicon."""

    def __init__(self, task: Task, options: DecodingOptions, lexicon: bool = False) -> None:
        self.name = "ours-lexicon" if lexicon else "ours"
        self.task = task
        self.options = replace(options, alpha=task.alpha, beta=task.beta, lexicon=lexicon)
        self.model = LanguageModel(task.language_model)

    def search(self, beam: int, hot_words: HotWords | None = None) -> BeamSearch:
        return BeamSearch(replace(self.options, beam_width=beam), self.task.alphabet, self.model, hot_words)

    def run(self, beam: int, hot_words: Sequence[str] = ()) -> Run:
        assert not hot_words, "benchmarks.loads measures ours with hot words"
        search = self.search(beam)
        start = time.process_time()
        texts = tuple(search.decode(matrix)[0].text for matrix in self.task.log_probs)
        return Run(texts, time.process_time() - start)


class Peer:
    """Another decoder in a process of its own, from `with` to the end of its block."""

    def __init__(self, name: str, task: Task, python: Path) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="earsight-peer-")
        folder = Path(self._folder.name)
        self._errors = folder / "errors"
        lengths = [len(matrix) for matrix in task.log_probs]
        posteriors = folder / "posteriors.npz"
        np.savez(posteriors, log_probs=np.concatenate(task.log_probs), lengths=lengths, labels=task.alphabet.labels)
        command = [str(python), "-m", f"benchmarks.peers.{name}_peer", "--posteriors", str(posteriors)]
        command += ["--language-model", str(task.language_model.resolve()), "--words", str(task.words.resolve())]
        command += [f"--alpha={task.alpha}", f"--beta={task.beta}"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**inherited, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # one thread, as ours
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def run(self, beam: int, hot_words: Sequence[str] = ()) -> Run:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps({"beam": beam, "hot_words": list(hot_words)}) + "\n")
            stdin.flush()
            reply = json.loads(stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            self._process.wait()
            lines = self._errors.read_text().strip().splitlines() or ["without a word"]
            raise ValueError(f"{self.name} ended with status {self._process.returncode}: {lines[-1]}") from error
        return Run(tuple(reply["texts"]), reply["seconds"])

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it holds nothing that would have to be saved
        self._process.communicate()
        self._folder.cleanup()


def peers_python(folder: Path) -> Path:
    """The interpreter of an environment that holds the peers. It is made in `folder` unless it is there."""
    home = folder / "peers"
    python, ready = home / "bin" / "python", home / "ready"
    wanted = "\n".join(REQUIREMENTS)
    if not (python.is_file() and ready.is_file() and ready.read_text() == wanted):
        print(f"installing {', '.join(REQUIREMENTS)} into {home}", file=sys.stderr)
        venv.create(home, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["without a word"]
            raise ValueError(f"pip could not install the peers into {home}: {lines[-1]} ('--decoders ours' needs none)")
        ready.write_text(wanted)
    return python.absolute()
