"""What the decoders are given: posteriors, the texts behind them and a language model. T frames, V symbols.

The synthetic ones are harder than a trained network's, so that the beam stays full and the decoders have to differ.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr_server.alphabet import BLANK, Alphabet
from asr_server.beam_search import greedy
from benchmarks.text import Text
from training.error_rate import Edits, word_edits
from training.language_model import Recipe, train
from training.recognition import Setting, find_bundle
from training.speech_manifest import read_manifest

NOISE = 2.2  # deviation of the logits
MARGIN = 7.5  # of the right symbol's logit
BLANK_MARGIN = 0.5  # of the blank's in every frame
ORDER = 3  # words of an n-gram

LogProbs = NDArray[np.float32]  # (T, V)


@dataclass(frozen=True)
class Task:
    """Utterances to be decoded. alpha weighs natural logarithms."""

    name: str
    texts: tuple[str, ...]
    log_probs: tuple[LogProbs, ...]
    language_model: Path  # with its .words beside it
    alpha: float
    beta: float
    alphabet: Alphabet = field(default_factory=Alphabet)

    @cached_property
    def frames(self) -> int:
        return sum(map(len, self.log_probs))

    @property
    def words(self) -> Path:
        return self.language_model.with_suffix(".words")

    @cached_property
    def greedy_error_rate(self) -> float:
        return error_rate(self.texts, [greedy(matrix, self.alphabet).text for matrix in self.log_probs])


def error_rate(said: Sequence[str], heard: Sequence[str]) -> float:
    """WER in per cent."""
    return sum((word_edits(*pair) for pair in zip(said, heard, strict=True)), Edits()).rate


def synthetic(text: Text, count: int, seed: int, alpha: float, beta: float, folder: Path) -> Task:
    """The outputs of an imagined network for `count` sentences; the language model is kept in `folder`."""
    if not 1 <= count <= len(text.test):
        raise ValueError(f"utterances is {count}: select from 1 to the {len(text.test)} test sentences of {text.name}")
    draw = np.random.default_rng(seed)
    said = tuple(text.test[index] for index in draw.permutation(len(text.test))[:count])
    log_probs = tuple(posteriors(sentence, Alphabet(), draw) for sentence in said)
    return Task("synthetic", said, log_probs, trained(text, folder), alpha, beta)


def posteriors(sentence: str, alphabet: Alphabet, draw: np.random.Generator) -> LogProbs:
    """(T, V): a character takes one or two frames, then come one or two blanks, and a third between equal letters."""
    path: list[int] = []
    symbols = alphabet.encode(sentence)
    for symbol, following in zip(symbols, [*symbols[1:], BLANK], strict=True):
        path += [symbol] * draw.integers(1, 3) + [BLANK] * (draw.integers(1, 3) + (symbol == following))
    logits = draw.normal(0, NOISE, (len(path), len(alphabet)))
    logits[np.arange(len(path)), path] += MARGIN
    logits[:, BLANK] += BLANK_MARGIN
    log_probs: LogProbs = (logits - np.logaddexp.reduce(logits, axis=1)[:, None]).astype(np.float32)
    return log_probs


def trained(text: Text, folder: Path) -> Path:
    """The text's language model, made once."""
    digest = hashlib.sha256("\n".join(text.model).encode()).hexdigest()[:12]
    path = folder / f"{text.name.replace(' ', '-')}-{ORDER}gram-{digest}.binary"
    if not (path.is_file() and path.with_suffix(".words").is_file()):
        train(text.model, path, Recipe(ORDER, memory="10%"))
    return path


def real(bundle: str, manifest: Path, language_model: str | None, alpha: float, beta: float, limit: int | None) -> Task:
    """A bundle's outputs for recorded speech; without `language_model` (a file) with the bundle's own."""
    decoding = (("alpha", alpha), ("beta", beta), ("lexicon", False))
    recognition = Setting(find_bundle(bundle), language_model=language_model, decoding=decoding).load()
    model = recognition.bundle.language_model
    if model is None or not model.path.with_suffix(".words").is_file():
        raise ValueError(
            f"{language_model or bundle!r} gives no language model with a .words file beside it, which the peers need: "
            "select a file that training.language_model wrote"
        )
    utterances = read_manifest(manifest)[:limit]
    log_probs = tuple(recognition.log_probs(utterance.samples(recognition.rate)) for utterance in utterances)
    texts = tuple(utterance.text for utterance in utterances)
    return Task("real", texts, log_probs, model.path, alpha, beta, recognition.bundle.alphabet)
