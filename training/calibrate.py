"""Calibrate a bundle's confidences on held-out data: of the words that get 0.8, 80 % shall be right.

python -m training.calibrate --bundle runs/bundle --manifest dev.jsonl --language-model other-speakers.binary --json
python -m training.calibrate --bundle runs/bundle --manifest dev.jsonl --plot reliability.png --write
python -m training.calibrate --bundle runs/bundle --manifest test.jsonl --measure --json

The network works in chunks and words are committed after each, as in the server; hesitations end no utterance. A word
is right when the alignment of word_edits pairs it with itself, an utterance when its whole text is what was said. Empty
texts have no confidence and are left out. The form of each map is chosen, and its parameters are fitted, without the
speakers that it is measured on: they take turns (recordings do, where a manifest has no speakers). --write keeps the
maps that are fitted on everything. --measure fits nothing and measures what the bundle has: for the test set.

A manifest is held out only when neither the network nor the language model has seen its speakers' sentences. Where the
bundle's own model has, name one of the other sentences with --language-model, or words look surer than they are.
Calibration belongs to the decoding options and the language model: calibrate again, last, after tuning them.

Figures: expected calibration error and the rest of training/reliability.py as fractions; [low, high] is a 95 % interval
of a bootstrap over speakers; by_chance is what perfectly calibrated confidences would measure on as little data.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from asr_server.beam_search import BeamSearch
from asr_server.bundle import CALIBRATION, DESCRIPTION
from asr_server.calibration import Calibration, ConfidenceMap
from asr_server.decoding import Hypothesis, Word
from training import network_outputs, reliability
from training.calibration_fit import FORMS, Array, Cases, fit, held_out, select
from training.recognition import LogProbs, Recognition, Setting, find_bundle
from training.speech_manifest import Utterance, read_manifest
from training.tune_decoder import PICTURES, description

Cost: TypeAlias = tuple[int, int, int, int]  # errors, insertions, deletions, substitutions


@dataclass(frozen=True)
class Finding:
    """One kind of confidences, before and after a map. `form` and `losses` are empty when the map was there before."""

    kind: str  # a field of Calibration
    cases: Cases
    before: Array
    after: Array  # held out
    chosen: ConfidenceMap
    form: str
    losses: dict[str, float]

    def figures(self) -> dict[str, Any]:
        cases, columns = self.cases, [self.before, self.after]
        intervals = reliability.intervals(columns, cases.right, cases.group)
        before, after = (
            {name: [value, *interval[name]] for name, value in asdict(reliability.measure(column, cases.right)).items()}
            for column, interval in zip(columns, intervals[:2], strict=True)
        )
        found = {
            "before": before,
            "after": after,
            "change": intervals[2],
            "by_chance": reliability.by_chance(self.after),
        }
        counts = {"count": len(cases), "right": round(float(cases.right.mean()), 4)}
        rounded = {part: {name: _rounded(values) for name, values in each.items()} for part, each in found.items()}
        return {**counts, "form": self.form, "map": asdict(self.chosen), "forms": _losses(self.losses), **rounded}


def calibrate(args: argparse.Namespace) -> list[Finding]:
    """ValueError for what cannot be done, before the work begins."""
    check(args)
    setting = Setting(find_bundle(args.bundle), mode="chunked", language_model=args.language_model)
    recognition = setting.load()
    utterances = read_manifest(args.manifest)[: args.limit]
    groups = speakers(utterances)
    if not args.measure and max(groups) < 1:
        raise ValueError(f"{args.manifest}: all of it is of one speaker; fitting and measuring need one each")
    path = network_outputs.keep(recognition, utterances, args.cache or network_outputs.default_folder())
    heard = [hear(recognition, log_probs) for log_probs in network_outputs.load(path)]
    both = {"words": word_cases(utterances, heard, groups), "utterances": text_cases(utterances, heard, groups)}
    if not len(both["utterances"]):
        raise ValueError(f"{args.manifest}: the bundle hears nothing in any of its {len(utterances)} recordings")
    there = recognition.bundle.calibration if args.measure else None
    return [find(kind, cases, args.folds, there) for kind, cases in both.items()]


def find(kind: str, cases: Cases, count: int, there: Calibration | None) -> Finding:
    """Measure the map that is `there`, or fit one."""
    before = cases.apply(ConfidenceMap())
    if there is not None:
        chosen: ConfidenceMap = getattr(there, kind)
        return Finding(kind, cases, before, cases.apply(chosen), chosen, "", {})
    form, losses = select(cases, count)
    return Finding(kind, cases, before, held_out(cases, count), fit(cases, FORMS[form]), form, losses)


def speakers(utterances: Sequence[Utterance]) -> list[int]:
    """Of each a number, from 0; recordings without a speaker stand alone."""
    numbers: dict[str, int] = {}
    names = (f"speaker {each.speaker}" if each.speaker else f"file {each.audio}" for each in utterances)
    return [numbers.setdefault(name, len(numbers)) for name in names]


def hear(recognition: Recognition, log_probs: LogProbs) -> Hypothesis:
    """The best text of (T, V) in the server's steps, with the words that it committed on the way."""
    bundle = recognition.bundle
    search = BeamSearch(replace(bundle.decoding, n_best=1), bundle.alphabet, bundle.language_model)
    committed: list[Word] = []
    size = bundle.model.config.chunk or max(1, len(log_probs))
    for start in range(0, len(log_probs), size):
        search.advance(log_probs[start : start + size])
        committed += search.take_committed()
    best = search.finish()[0]
    return replace(best, words=(*committed, *best.words))


def word_cases(utterances: Sequence[Utterance], heard: Sequence[Hypothesis], groups: Sequence[int]) -> Cases:
    return _cases(
        (word.confidence, right, group)
        for utterance, best, group in zip(utterances, heard, groups, strict=True)
        for word, right in zip(best.words, matches(utterance.text.split(), best.text.split()), strict=True)
    )


def text_cases(utterances: Sequence[Utterance], heard: Sequence[Hypothesis], groups: Sequence[int]) -> Cases:
    return _cases(
        (best.confidence, best.text.split() == utterance.text.split(), group)
        for utterance, best, group in zip(utterances, heard, groups, strict=True)
        if best.words
    )


def _cases(rows: Iterable[tuple[float, bool, int]]) -> Cases:
    confidence, right, group = np.array(list(rows), np.float64).reshape(-1, 3).T
    return Cases(confidence, right.astype(bool), group.astype(np.int64))


def matches(said: Sequence[str], heard: Sequence[str]) -> list[bool]:
    """For each word heard, whether the alignment pairs it with the same word said. Ties as in error_rate.edits."""
    rows: list[list[Cost]] = [[(column, column, 0, 0) for column in range(len(heard) + 1)]]
    for count, word in enumerate(said, 1):
        row: list[Cost] = [(count, 0, count, 0)]
        for column, other in enumerate(heard):
            row.append(min(_ways(rows[-1][column], rows[-1][column + 1], row[-1], word != other)))
        rows.append(row)
    right = [False] * len(heard)
    i, j = len(said), len(heard)
    while i and j:  # what is left then was inserted or deleted
        ways = _ways(rows[i - 1][j - 1], rows[i - 1][j], rows[i][j - 1], said[i - 1] != heard[j - 1])
        way = ways.index(rows[i][j])
        right[j - 1] = way == 0 and said[i - 1] == heard[j - 1]
        i, j = i - (way != 2), j - (way != 1)
    return right


def _ways(diagonal: Cost, above: Cost, left: Cost, wrong: bool) -> tuple[Cost, Cost, Cost]:
    """A pair, a deletion, an insertion."""
    errors, insertions, deletions, substitutions = diagonal
    pair = (errors + wrong, insertions, deletions, substitutions + wrong)
    errors, insertions, deletions, substitutions = above
    deletion = (errors + 1, insertions, deletions + 1, substitutions)
    errors, insertions, deletions, substitutions = left
    return pair, deletion, (errors + 1, insertions + 1, deletions, substitutions)


def check(args: argparse.Namespace) -> None:
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit is {args.limit}: at least 1")
    if args.folds < 2:
        raise ValueError(f"--folds is {args.folds}: at least 2")
    if args.measure and args.write:
        raise ValueError("--measure fits nothing that --write could keep: select one of them")
    if args.plot and args.plot.suffix not in PICTURES:
        raise ValueError(f"--plot is {str(args.plot)!r}: select a name that ends in one of {PICTURES}")
    if args.plot and not args.plot.parent.is_dir():
        raise ValueError(f"--plot is {str(args.plot)!r}: there is no folder {str(args.plot.parent)!r}")


def write_calibration(bundle: Path, calibration: Calibration) -> None:
    """Put it into a bundle's description, whole or not at all."""
    path = bundle / DESCRIPTION
    new = path.with_suffix(".new")
    calibrated = {**description(bundle), CALIBRATION: asdict(calibration)}
    new.write_text(json.dumps(calibrated, indent=2) + "\n", encoding="utf-8")
    new.replace(path)


def table(figures: dict[str, Any]) -> str:
    """A row for each kind and figure; below them the maps."""
    lines = [f"{'':24}{'before':>8}{'95 %':>18}{'after':>8}{'95 %':>18}{'by chance':>11}"]
    for kind, found in figures.items():
        for name, (value, low, high) in found["before"].items():
            after, lowest, highest = found["after"][name]
            spread, spreads = f"{low:.3f} to {high:.3f}", f"{lowest:.3f} to {highest:.3f}"
            chance = found["by_chance"][name][0]
            lines.append(f"{kind:<12}{name:<12}{value:8.4f}{spread:>18}{after:8.4f}{spreads:>18}{chance:11.4f}")
    for kind, found in figures.items():
        share = f"{100 * found['right']:.1f} % of {found['count']} right"
        lines.append(f"{kind}: {share}; {found['form'] or 'as in the bundle'}: {found['map']}")
    return "\n".join(lines)


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _losses(losses: dict[str, float]) -> dict[str, float]:
    return {name: round(loss, 4) for name, loss in losses.items()}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", required=True, help="a bundle's folder, or the name of a shipped one")
    parser.add_argument("--manifest", type=Path, required=True, metavar="FILE", help="held-out utterances")
    parser.add_argument("--language-model", metavar="FILE", help="instead of the bundle's; 'none' for no model")
    parser.add_argument("--folds", type=int, default=10, metavar="N", help="at most, of whole speakers (default 10)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N utterances")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="for the network's outputs (default: earsight/network-outputs in $XDG_CACHE_HOME or ~/.cache)",
    )
    parser.add_argument("--measure", action="store_true", help="fit nothing: how good is what the bundle has?")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the reliability diagrams, as .png or .svg")
    parser.add_argument("--write", action="store_true", help="put the maps, fitted on everything, into the bundle")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        findings = calibrate(args)
        folder = find_bundle(args.bundle)
        if args.plot:
            from training import reliability_plot  # matplotlib takes a while to load

            reliability_plot.draw(findings, f"{description(folder)['name']} on {args.manifest.name}", args.plot)
        if args.write:
            write_calibration(folder, Calibration(**{found.kind: found.chosen for found in findings}))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; nothing was written\n")
    figures = {found.kind: found.figures() for found in findings}
    print(table(figures))
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
