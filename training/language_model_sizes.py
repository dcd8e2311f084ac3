"""What a language model's size buys: a table of bytes, n-grams, unknown words, perplexity and word error rate.

python -m training.language_model_sizes small.binary large.binary --manifest dev.jsonl --json
python -m training.language_model_sizes small.binary large.binary --manifest dev.jsonl --bundle runs/bundle --trials 40
python -m training.language_model_sizes lm/*.binary --manifest dev.jsonl --bundle runs/bundle --alpha 1.2 --beta 1.5

Perplexity is that of the known words and the ends of sentences in the manifest's texts; unknown words are counted
apart, so models with different vocabularies are compared by both columns. With --bundle every model is tried in the
beam search, with its own best alpha, beta and gamma of --trials (training.tune_decoder), or with the given ones. The
network runs once for each bundle: its outputs are kept. Words come from the list beside a model where there is one.

Use held-out recordings that are not the test: a size chosen on the test set makes its result worthless.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from asr_server import kenlm_binary
from asr_server.decoding import DecodingOptions
from asr_server.language_model import LanguageModel
from training import network_outputs, tune_decoder
from training.decoding_trial import Trial, try_options
from training.language_model import ngram_counts, sentences_of
from training.recognition import Setting, find_bundle
from training.speech_manifest import read_manifest

_COUNTS = 108  # where a KenLM binary has the number of n-grams of each order: after its fixed values and parameters


@dataclass(frozen=True)
class Fit:
    """What a model makes of texts. Unknown words are in `unknown` only."""

    words: int
    unknown: int
    log_prob: float  # ln, of the known words and the ends
    scored: int  # known words and ends

    @property
    def perplexity(self) -> float:
        return math.exp(-self.log_prob / max(1, self.scored))

    @property
    def unknown_rate(self) -> float:
        """Per cent of the words."""
        return 100 * self.unknown / max(1, self.words)


@dataclass(frozen=True)
class Row:
    """One model. size: bytes of the model and the list of words beside it."""

    name: str
    size: int
    ngrams: tuple[int, ...]
    fit: Fit
    trials: tuple[Trial, ...] = ()  # the best of each bundle

    def cells(self) -> str:
        sizes = f"{self.name:32}{self.size:14,}{self.fit.unknown_rate:8.2f}{self.fit.perplexity:9.1f}"
        rates = "".join(f"{trial.words.rate:8.2f}{_rewards(trial.options)}" for trial in self.trials)
        return f"{sizes}{rates}  {' '.join(f'{count:,}' for count in self.ngrams)}"

    def figures(self) -> dict[str, object]:
        measured = [
            {"wer": round(trial.words.rate, 4), "cer": round(trial.characters.rate, 4), **asdict(trial.options)}
            for trial in self.trials
        ]
        fit = {"unknown_rate": round(self.fit.unknown_rate, 4), "perplexity": round(self.fit.perplexity, 3)}
        return {"model": self.name, "bytes": self.size, "ngrams": self.ngrams, **fit, "bundles": measured}


def _rewards(options: DecodingOptions) -> str:
    return "".join(f"{getattr(options, name):7.2f}" for name in tune_decoder.REWARDS)


def measure(path: Path, texts: Sequence[str]) -> Row:
    model = LanguageModel(path)
    words = path.with_suffix(".words")
    size = path.stat().st_size + (words.stat().st_size if words.is_file() else 0)
    return Row(path.stem, size, ngrams_of(path, model.order), fit_of(model, texts))


def fit_of(model: LanguageModel, texts: Sequence[str]) -> Fit:
    """ValueError when there is not one word to judge by."""
    words = unknown = scored = 0
    log_prob = 0.0
    for text in texts:
        state = model.begin()
        for word in text.split():
            words += 1
            score, state = model.score(state, word)
            if word in model:
                log_prob, scored = log_prob + score, scored + 1
            else:
                unknown += 1
        log_prob, scored = log_prob + model.score_end(state), scored + 1
    if not words:
        raise ValueError("the manifest's texts have no words: nothing to judge a model by")
    return Fit(words, unknown, log_prob, scored)


def ngrams_of(path: Path, order: int) -> tuple[int, ...]:
    """By order, as the file says; it was checked when it was loaded."""
    if not kenlm_binary.is_binary(path):
        return ngram_counts(path)
    with path.open("rb") as file:
        file.seek(_COUNTS)
        return tuple(int(count) for count in np.frombuffer(file.read(8 * order), "<u8"))


def recognise(path: Path, bundle: str, args: argparse.Namespace) -> Trial:
    """The best trial with this model: of the tuner, or with the given alpha, beta and gamma."""
    if args.alpha is None:
        return tune_decoder.tune(_tuning(path, bundle, args)).best
    fixed = {name: getattr(args, name) for name in (*tune_decoder.REWARDS, "beam_width")}
    chosen = tuple((name, value) for name, value in fixed.items() if value is not None)
    mode = "chunked" if args.chunked else "whole"
    setting = Setting(find_bundle(bundle), mode=mode, language_model=str(path), decoding=chosen)
    recognition = setting.load()
    utterances = read_manifest(args.manifest)[: args.limit]
    outputs = network_outputs.keep(recognition, utterances, args.cache or network_outputs.default_folder())
    return try_options(setting, outputs, [utterance.text for utterance in utterances], recognition.bundle.decoding)


def _tuning(path: Path, bundle: str, args: argparse.Namespace) -> argparse.Namespace:
    command = ["--bundle", bundle, "--manifest", str(args.manifest), "--language-model", str(path)]
    command += ["--trials", str(args.trials), "--seed", str(args.seed), "--jobs", str(args.jobs)]
    for name in ("limit", "beam_width", "cache"):
        if (value := getattr(args, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    return tune_decoder.build_parser().parse_args(command + ["--chunked"] * args.chunked)


def table(rows: Sequence[Row], bundles: Sequence[str]) -> str:
    heading = f"{'model':32}{'bytes':>14}{'OOV %':>8}{'perplex.':>9}"
    heading += "".join(f"{'WER %':>8}{'alpha':>7}{'beta':>7}{'gamma':>7}" for _ in bundles)
    named = [f"WER with, from left to right: {' '.join(bundles)}"] if bundles else []
    return "\n".join([f"{heading}  n-grams", *(row.cells() for row in rows), *named])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.language_model_sizes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("models", type=Path, nargs="+", metavar="MODEL", help="KenLM files")
    add("--manifest", type=Path, required=True, metavar="FILE", help="held-out utterances, not the test")
    add("--bundle", nargs="+", default=[], metavar="DIR", help="bundles to try the models in")
    add("--trials", type=int, default=40, metavar="N", help="of alpha, beta and gamma (default %(default)s)")
    add("--alpha", type=float, help="instead of trials, with --beta")
    add("--beta", type=float, help="instead of trials, with --alpha")
    add("--gamma", type=float, help="with them (default: the bundle's)")
    add("--beam-width", type=int, metavar="N", help="default: the bundle's")
    add("--chunked", action="store_true", help="the network as in a stream (default: whole recordings)")
    add("--limit", type=int, metavar="N", help="only the first N utterances")
    add("--seed", type=int, default=0, help="of the trials (default 0)")
    add("--jobs", type=int, default=1, metavar="N", help="trials at a time (default 1)")
    add("--cache", type=Path, metavar="FOLDER", help="for the network's outputs (default: as training.tune_decoder)")
    add("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser


def compare(args: argparse.Namespace) -> list[Row]:
    """ValueError for what cannot be done."""
    if (args.alpha is None) != (args.beta is None):
        raise ValueError("--alpha and --beta go together: give both, or none to have them tuned")
    if args.gamma is not None and args.alpha is None:
        raise ValueError("--gamma goes with --alpha and --beta: give all, or none to have them tuned")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit is {args.limit}: at least 1")
    sentences = itertools.islice(sentences_of([], [args.manifest]), args.limit)
    texts = [" ".join(sentence.lower().split()) for sentence in sentences]  # as manifests are read for the error rate
    rows = [measure(path, texts) for path in args.models]
    return [
        Row(row.name, row.size, row.ngrams, row.fit, tuple(recognise(path, bundle, args) for bundle in args.bundle))
        for row, path in zip(rows, args.models, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        rows = compare(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted\n")
    print(table(rows, args.bundle))
    if args.json:
        print(json.dumps({"manifest": args.manifest.name, "bundles": args.bundle, "rows": [r.figures() for r in rows]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
