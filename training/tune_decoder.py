"""Find the beam search's alpha, beta and width on held-out data.

python -m training.tune_decoder --bundle runs/bundle --manifest dev.jsonl --json
python -m training.tune_decoder --bundle runs/bundle --manifest dev.jsonl --random 100 --jobs 4 --write
python -m training.tune_decoder --bundle runs/bundle --manifest dev.jsonl --alpha 0.5 1 2 --beta 0 1 --lexicon off on

The network runs once over the manifest; each trial is a search over its outputs. The grid is every combination of the
values given; --random N draws alpha and beta between the smallest and the largest of them instead. Best is the lowest
word error rate, then character error rate, then the narrower beam; --write puts it into the bundle's bundle.json.

Use speakers that the model was not trained on, and never the test manifest: options chosen on the test set make its
result worthless.
"""

import argparse
import functools
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from asr_server.beam_search import BeamSearch, DecodingOptions
from asr_server.bundle import DESCRIPTION
from training.error_rate import Edits, character_edits, word_edits
from training.evaluate_speech import spread
from training.recognition import LogProbs, Recognition, Setting, find_bundle
from training.speech_manifest import Utterance, read_manifest

SHOWN = 10  # rows of the table
SWITCH = {"on": True, "off": False}


@dataclass(frozen=True)
class Trial:
    """One choice of options and what it made of the manifest."""

    options: DecodingOptions
    words: Edits
    characters: Edits

    @property
    def rank(self) -> tuple[float, float, int]:
        """Lower is better."""
        return self.words.rate, self.characters.rate, self.options.beam_width

    def row(self) -> str:
        """A line below `HEADING`."""
        options = self.options
        switch = "on" if options.lexicon else "off"
        rates = f"{self.words.rate:8.2f}{self.characters.rate:8.2f}"
        return f"{options.alpha:8.3f}{options.beta:8.3f}{options.beam_width:7}{switch:>9}{rates}"


HEADING = f"{'alpha':>8}{'beta':>8}{'width':>7}{'lexicon':>9}{'WER %':>8}{'CER %':>8}"


@dataclass(frozen=True)
class Material:
    """What a trial needs: the outputs of the network, what was said, and the bundle they came from."""

    recognition: Recognition
    log_probs: tuple[LogProbs, ...]
    said: tuple[str, ...]


def run_network(recognition: Recognition, utterances: Sequence[Utterance], cache: Path) -> None:
    """Write the outputs of every utterance to `cache`, an .npz file."""
    bar = tqdm(utterances, f"{recognition.bundle.name}: network", disable=None)
    outputs = [recognition.log_probs(utterance.samples(recognition.rate)) for utterance in bar]
    lengths = np.array([len(output) for output in outputs])
    np.savez(cache, log_probs=np.concatenate(outputs), lengths=lengths, said=np.array([u.text for u in utterances]))


@functools.cache
def _material(setting: Setting, cache: Path) -> Material:
    """Loaded once in each process."""
    with np.load(cache) as arrays:
        ends = np.cumsum(arrays["lengths"])[:-1]
        log_probs = tuple(np.split(arrays["log_probs"], ends))
        return Material(setting.load(), log_probs, tuple(map(str, arrays["said"])))


def try_options(setting: Setting, cache: Path, options: DecodingOptions) -> Trial:
    """Search all outputs in the cache with `options`."""
    material = _material(setting, cache)
    bundle = material.recognition.bundle
    search = BeamSearch(replace(options, n_best=1), bundle.alphabet, bundle.language_model)
    heard = [search.decode(log_probs)[0].text for log_probs in material.log_probs]
    words = sum(map(word_edits, material.said, heard), Edits())
    return Trial(options, words, sum(map(character_edits, material.said, heard), Edits()))


def choices(args: argparse.Namespace, usual: DecodingOptions) -> list[DecodingOptions]:
    """The trials that the command line asks for."""
    widths = args.beam_width or [usual.beam_width]
    switches = [SWITCH[switch] for switch in args.lexicon] if args.lexicon else [usual.lexicon]
    if args.random is None:
        pairs = list(itertools.product(args.alpha, args.beta))
        return [
            replace(usual, alpha=alpha, beta=beta, beam_width=width, lexicon=switch)
            for width, switch, (alpha, beta) in itertools.product(widths, switches, pairs)
        ]
    if args.random < 1:
        raise ValueError(f"--random is {args.random}: at least 1 trial")
    draw = random.Random(args.seed)
    return [
        replace(
            usual,
            alpha=round(draw.uniform(min(args.alpha), max(args.alpha)), 3),
            beta=round(draw.uniform(min(args.beta), max(args.beta)), 3),
            beam_width=draw.choice(widths),
            lexicon=draw.choice(switches),
        )
        for _ in range(args.random)
    ]


def write_options(bundle: Path, options: DecodingOptions) -> None:
    """Replace the decoding options in a bundle's description, whole or not at all."""
    path = bundle / DESCRIPTION
    description = json.loads(path.read_text(encoding="utf-8"))
    description["decoding"] = asdict(options)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    new.replace(path)


def tune(args: argparse.Namespace) -> list[Trial]:
    """All trials, best first."""
    if args.jobs < 1 or (args.limit is not None and args.limit < 1):
        raise ValueError(f"--limit is {args.limit} and --jobs {args.jobs}: at least 1")
    if args.write and args.language_model:
        raise ValueError("--write with --language-model would tune the bundle for a model that it does not hold")
    mode = "chunked" if args.chunked else "whole"
    setting = Setting(find_bundle(args.bundle), mode, language_model=args.language_model)
    recognition = setting.load()
    trials = choices(args, recognition.bundle.decoding)
    for options in trials:  # so that a lexicon which is not there is found before the work
        BeamSearch(options, recognition.bundle.alphabet, recognition.bundle.language_model)
    utterances = read_manifest(args.manifest)[: args.limit]
    with tempfile.TemporaryDirectory(prefix="earsight-tune-") as folder:
        cache = Path(folder) / "outputs.npz"
        run_network(recognition, utterances, cache)
        task = functools.partial(try_options, setting, cache)
        found = list(tqdm(spread(task, trials, args.jobs), "trials", len(trials), disable=None))
    return sorted(found, key=lambda trial: trial.rank)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.tune_decoder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", required=True, help="a bundle's folder, or the name of a shipped one")
    parser.add_argument(
        "--manifest", type=Path, required=True, metavar="FILE", help="held-out utterances, not the test"
    )
    grid = parser.add_argument_group("what to try")
    grid.add_argument(
        "--alpha",
        type=float,
        nargs="+",
        default=[0.25, 0.5, 1.0, 1.5, 2.0, 2.5],
        metavar="A",
        help="default: %(default)s",
    )
    grid.add_argument(
        "--beta", type=float, nargs="+", default=[-1.0, 0.0, 1.0, 2.0, 4.0], metavar="B", help="default: %(default)s"
    )
    grid.add_argument("--beam-width", type=int, nargs="+", metavar="N", help="default: the bundle's")
    grid.add_argument("--lexicon", nargs="+", choices=SWITCH, help="only words of the list (default: the bundle's)")
    grid.add_argument("--random", type=int, metavar="N", help="N random trials instead of the grid")
    grid.add_argument("--seed", type=int, default=0, help="of the random trials (default 0)")
    grid.add_argument("--language-model", metavar="FILE", help="instead of the bundle's")
    parser.add_argument("--chunked", action="store_true", help="the network as in a stream (default: whole recordings)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N utterances")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument("--write", action="store_true", help="put the best options into the bundle")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        trials = tune(args)
        if args.write:
            write_options(find_bundle(args.bundle), trials[0].options)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; nothing was written\n")
    best = trials[0]
    print("\n".join([HEADING, *(trial.row() for trial in trials[:SHOWN])]))
    print(f"best of {len(trials)}: {best.options}")
    if args.json:
        figures = {"wer": best.words.rate, "cer": best.characters.rate, "trials": len(trials)}
        print(json.dumps({**figures, "decoding": asdict(best.options)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
