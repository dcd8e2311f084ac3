"""Find the beam search's alpha, beta and gamma, and with a time budget its beam, on held-out data.

python -m training.tune_decoder --bundle runs/bundle --manifest dev.jsonl --write
python -m training.tune_decoder --bundle runs/bundle --manifest dev.jsonl --trials 200 --jobs 4 --plot surface.png
python -m training.tune_decoder --bundle runs/bundle --manifest dev.jsonl --trials 200 --budget 20 --chunked --write

The network runs once over the manifest and its outputs are kept for the next time; each trial is a search over them.
The first trial is what the bundle has now, with what the command line fixes; Optuna's tree-structured Parzen estimator
places the others where the earlier ones were good. Best is the lowest word error rate, then character error rate, then
the narrower beam, then the earlier trial: the outcome is never worse than what was there. The same seed and number of
jobs give the same trials again.

With --budget the width of the beam and its two pruning thresholds are searched too, and a trial can only win when its
search took at most so many microseconds of processor time per frame of the network's output. A frame lasts as long as
the features' hop times the network's stride: 20 ms in the shipped bundle, so that 20 microseconds are a thousandth of a
processor core for each stream. Two measurements of time differ a little, and so do two runs under a budget.

Use speakers that the model was not trained on, and never the test manifest: options chosen on the test set make its
result worthless.
"""

import argparse
import functools
import json
import math
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from tqdm import tqdm

from asr_server.bundle import CALIBRATION, DESCRIPTION
from asr_server.decoding import DecodingOptions
from training import network_outputs
from training.decoding_trial import HEADING, Trial, Trials, try_options
from training.hearing import end_with_parent
from training.recognition import Setting, find_bundle
from training.speech_manifest import read_manifest

SHOWN = 10  # rows of the table
SWITCH = {"on": True, "off": False}
PICTURES = (".png", ".svg")

Space: TypeAlias = dict[str, FloatDistribution | IntDistribution]  # by the names of DecodingOptions
Evaluate: TypeAlias = Callable[[DecodingOptions], Trial]
Map: TypeAlias = Callable[[Evaluate, Sequence[DecodingOptions]], Iterable[Trial]]

# What weighs words and letters against the sound, and where the search looks for it.
REWARDS = {"alpha": (0.0, 3.0), "beta": (-2.0, 6.0), "gamma": (0.0, 2.0)}
# What costs time: searched under a budget only, because without one more is always better.
COSTS: Space = {
    "beam_width": IntDistribution(4, 1024, log=True),
    "token_min_log_prob": FloatDistribution(-15.0, -3.0),
    "beam_prune_log_prob": FloatDistribution(-30.0, -6.0),
}


def search_space(args: argparse.Namespace, usual: DecodingOptions) -> Space:
    """What may vary, and how far."""
    space: Space = {}
    for name in REWARDS:
        low, high = getattr(args, name)
        for end in (low, high):
            replace(usual, **{name: end})  # it says what is wrong with it
        if low > high:
            raise ValueError(f"--{name} is {low:g} {high:g}: LOW is at most HIGH")
        space[name] = FloatDistribution(low, high)
    if args.budget is not None:
        space |= COSTS
    if args.beam_width is not None:
        space.pop("beam_width", None)
    return space


def search(
    evaluate: Evaluate, usual: DecodingOptions, space: Space, args: argparse.Namespace, run: Map = map
) -> Trials:
    """`usual`, then what the sampler asks for, --jobs at a time; told in the order of asking, so always the same."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # no line for every trial
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=args.seed))
    study.enqueue_trial({name: _within(getattr(usual, name), allowed) for name, allowed in space.items()})
    made: list[Trial] = []
    with tqdm(total=args.trials, desc="trials", disable=None) as bar:
        while len(made) < args.trials:
            asked = [study.ask(dict(space)) for _ in range(min(args.jobs, args.trials - len(made)))]
            for question, trial in zip(asked, run(evaluate, [_options(usual, each) for each in asked]), strict=True):
                if args.budget is not None:
                    question.set_constraint("us_per_frame", trial.us_per_frame - args.budget)  # kept up to 0
                study.tell(question, trial.value)
                made.append(trial)
                bar.set_postfix_str(f"WER {min(each.words.rate for each in made):.2f} %", refresh=False)
                bar.update()
    return Trials(tuple(made), args.budget)


def _within(value: float, allowed: FloatDistribution | IntDistribution) -> float:
    """Optuna is told that the first trial lies in the ranges, even where the bundle's own options do not."""
    return min(max(value, allowed.low), allowed.high)


def _options(usual: DecodingOptions, asked: optuna.Trial) -> DecodingOptions:
    chosen = {name: round(value, 3) for name, value in asked.params.items()}
    return usual if asked.number == 0 else replace(usual, **chosen)


@contextmanager
def processes(jobs: int) -> Iterator[Map]:
    """`map` in this process, or in `jobs` others."""
    if jobs == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, context, _begin) as pool:
        yield pool.map


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends the others
    end_with_parent()


def tune(args: argparse.Namespace) -> Trials:
    """ValueError for what cannot be done, before the work begins."""
    check(args)
    fixed = {"beam_width": args.beam_width, "lexicon": SWITCH.get(args.lexicon)}
    setting = Setting(
        find_bundle(args.bundle),
        mode="chunked" if args.chunked else "whole",
        language_model=args.language_model,
        decoding=tuple((name, value) for name, value in fixed.items() if value is not None),
    )
    recognition = setting.load()
    usual = recognition.bundle.decoding
    space = search_space(args, usual)
    utterances = read_manifest(args.manifest)[: args.limit]
    outputs = network_outputs.keep(recognition, utterances, args.cache or network_outputs.default_folder())
    evaluate = functools.partial(try_options, setting, outputs, [utterance.text for utterance in utterances])
    with processes(args.jobs) as run:
        return search(evaluate, usual, space, args, run)


def check(args: argparse.Namespace) -> None:
    for name in ("trials", "jobs", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: at least 1")
    if args.budget is not None and not 0 < args.budget < math.inf:
        raise ValueError(f"--budget is {args.budget}: microseconds per frame, above 0")
    if args.budget is not None and args.jobs > 1:
        raise ValueError(f"--budget with --jobs {args.jobs}: processes slow each other down; times need --jobs 1")
    if args.write and args.language_model:
        raise ValueError("--write with --language-model would tune the bundle for a model that it does not hold")
    if args.plot and args.plot.suffix not in PICTURES:
        raise ValueError(f"--plot is {str(args.plot)!r}: select a name that ends in one of {PICTURES}")
    if args.plot and not args.plot.parent.is_dir():
        raise ValueError(f"--plot is {str(args.plot)!r}: there is no folder {str(args.plot.parent)!r}")


def description(bundle: Path) -> dict[str, Any]:
    """As it is written, and no more: a loaded bundle has defaults filled in."""
    found: dict[str, Any] = json.loads((bundle / DESCRIPTION).read_text(encoding="utf-8"))
    return found


def write_options(bundle: Path, options: DecodingOptions) -> None:
    """Replace the decoding options in a bundle's description, whole or not at all.

    A calibration belongs to the options it was fitted with, so it goes: run training.calibrate again.
    """
    path = bundle / DESCRIPTION
    new = path.with_suffix(".new")
    tuned = {**description(bundle), "decoding": asdict(options)}
    tuned.pop(CALIBRATION, None)
    new.write_text(json.dumps(tuned, indent=2) + "\n", encoding="utf-8")
    new.replace(path)


def table(trials: Trials) -> str:
    ranked, made = trials.ranked, len(trials.made)
    kept = f"{len(ranked)} of {made} trials within the budget" if trials.budget else f"{made} trials"
    rows = [HEADING, *(trial.row() for trial in ranked[:SHOWN])]
    return "\n".join([*rows, f"{trials.before.row()}  before", f"best of {kept}: {trials.best.options}"])


def figures(trials: Trials) -> dict[str, object]:
    best = trials.best
    return {
        "wer": round(best.words.rate, 4),
        "cer": round(best.characters.rate, 4),
        "us_per_frame": round(best.us_per_frame, 1),
        "wer_before": round(trials.before.words.rate, 4),
        "trials": len(trials.made),
        "decoding": asdict(best.options),
    }


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
    what = parser.add_argument_group("what to try")
    for name, usual in REWARDS.items():
        default = "default: {:g} {:g}".format(*usual)
        what.add_argument(f"--{name}", type=float, nargs=2, default=usual, metavar=("LOW", "HIGH"), help=default)
    what.add_argument("--trials", type=int, default=60, metavar="N", help="with the bundle's own (default %(default)s)")
    what.add_argument("--seed", type=int, default=0, help="of the sampler (default 0)")
    what.add_argument(
        "--budget",
        type=float,
        metavar="MICROSECONDS",
        help="of processor time per frame: search the beam's width and pruning as well, and let no slower one win",
    )
    what.add_argument("--beam-width", type=int, metavar="N", help="fixed (default: the bundle's, or searched)")
    what.add_argument("--lexicon", choices=SWITCH, help="only words of the list (default: the bundle's)")
    what.add_argument("--language-model", metavar="FILE", help="instead of the bundle's; 'none' for no model")
    parser.add_argument("--chunked", action="store_true", help="the network as in a stream (default: whole recordings)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N utterances")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials at a time (default 1)")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="for the network's outputs (default: earsight/network-outputs in $XDG_CACHE_HOME or ~/.cache)",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw WER over alpha and beta, whatever gamma, as .png or .svg"
    )
    parser.add_argument("--write", action="store_true", help="put the best options into the bundle")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        trials = tune(args)
        found, folder = table(trials), find_bundle(args.bundle)
        if args.plot:
            from training import tuning_plot  # matplotlib takes a while to load

            tuning_plot.draw(trials, f"{description(folder)['name']} on {args.manifest.name}", args.plot)
        if args.write:
            write_options(folder, trials.best.options)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; nothing was written\n")
    print(found)
    if args.json:
        print(json.dumps(figures(trials)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
