"""Word and character error rates of a speech bundle on a manifest of transcribed audio.

Recordings take the serving path: the bundle's features, network, beam search and tuned options. By default the network
sees each recording to its end; --chunked cuts it as a stream would, --streaming feeds it piece by piece through the
server's recogniser, --compare-streaming does both and demands equal texts. --all is four ways in one run, offline and
streaming, greedy and with the language model; streams have no greedy search, so its row is the chunked pass, which
equals a stream.

Rates are percentages of all words and characters of the manifest, with 95 % intervals from a bootstrap that draws
speakers. RTF is seconds of recognition, without reading files, per second of audio; with --jobs 1 --threads 2 it is one
stream's on two threads. --report writes everything into a folder, with pictures.

Several --bundle average their output probabilities, --jitter those of a recording and its shifts by 5 ms.
"""

import argparse
import json
from pathlib import Path

from asr_server.options import PRECISIONS
from training.evaluation import Evaluation, Way
from training.hearing import Task, hear_all, recognition_of
from training.outputs import check_file, check_folder
from training.recognition import Setting, find_bundle
from training.speech_manifest import read_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle", required=True, action="append", help="a bundle's folder or a shipped one's name; several: ensemble"
    )
    parser.add_argument("--manifest", type=Path, required=True, metavar="FILE", help="JSON lines of transcribed audio")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--chunked", action="store_true", help="offline, with the backward recurrence cut as in a stream")
    how.add_argument("--streaming", action="store_true", help="through the server's recogniser, piece by piece")
    how.add_argument(
        "--compare-streaming", action="store_true", help="as --streaming, and compare each text with --chunked"
    )
    how.add_argument("--all", action="store_true", help="greedy and with the language model, offline and streaming")
    parser.add_argument("--endpointing", action="store_true", help="let pauses end utterances, with --streaming")
    parser.add_argument("--piece", type=float, default=0.1, metavar="SECONDS", help="message of a stream (default 0.1)")
    parser.add_argument("--greedy", action="store_true", help="the likeliest symbol of each frame, no beam, no words")
    parser.add_argument(
        "--jitter", action="store_true", help="average over shifts of 5 ms to the left and to the right"
    )
    add_decoding_arguments(parser)
    _add_running_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write each utterance and its text as JSON lines")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="write figures, tables, a page and pictures")
    parser.add_argument("--worst", type=int, default=20, metavar="N", help="utterances in the report (default 20)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """What replaces the bundle's tuned decoding options."""
    parser.add_argument("--language-model", metavar="FILE", help="instead of the bundle's; 'none' for no model")
    parser.add_argument("--beam-width", type=int, metavar="N", help="prefixes kept (default: the bundle's)")
    parser.add_argument("--alpha", type=float, help="weight of the language model (default: the bundle's)")
    parser.add_argument("--beta", type=float, help="reward for a word (default: the bundle's)")
    parser.add_argument("--gamma", type=float, help="reward for a letter (default: the bundle's)")
    parser.add_argument(
        "--lexicon",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="complete only words of the language model's list (default: the bundle's)",
    )


def _add_running_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="fp32", help="default: %(default)s")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N utterances")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the network in each process")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="keep the network's outputs of offline ways for the next time; there is no RTF then",
    )


def run(args: argparse.Namespace) -> None:
    check(args)
    settings = settings_of(args)
    utterances = read_manifest(args.manifest)[: args.limit]
    task = Task(tuple(settings.values()), args.compare_streaming, args.threads)
    loaded = recognition_of(task.settings[0], task.threads)  # finds errors early
    heard = hear_all(task, utterances, args.jobs, args.cache, loaded.bundle.name)
    ways = (Way(name, setting, each, args.seed) for (name, setting), each in zip(settings.items(), heard, strict=True))
    evaluation = Evaluation(loaded.bundle, args.manifest, tuple(ways), args.seed)
    if args.out:
        args.out.write_text("".join(f"{json.dumps(line)}\n" for line in evaluation.lines()), encoding="utf-8")
    if args.report:
        from training import speech_report  # matplotlib takes a while to load

        speech_report.write(evaluation, args.report, args.worst)
    print(evaluation.table())
    if args.json:
        print(json.dumps(evaluation.as_json()))
    if different := evaluation.ways[0].figures.different:
        raise ValueError(f"{len(different)} streams differ from the offline pass in the same chunks, see above")


def check(args: argparse.Namespace) -> None:
    numbers = {name: getattr(args, name) for name in ("limit", "jobs", "threads", "worst")}
    if any(value is not None and value < 1 for value in numbers.values()):
        raise ValueError(", ".join(f"--{name} is {value}" for name, value in numbers.items()) + ": at least 1")
    if args.all and args.greedy:
        raise ValueError("--all with --greedy: the four ways have two greedy ones among them")
    if args.out:
        check_file("--out", args.out)
    if args.report:
        check_folder("--report", args.report)
    if args.cache:
        check_folder("--cache", args.cache)


def settings_of(args: argparse.Namespace) -> dict[str, Setting]:
    """By the names of the ways."""
    mode = "streaming" if args.streaming or args.compare_streaming else "chunked" if args.chunked else "whole"
    if args.endpointing:
        if not args.streaming:
            raise ValueError("--endpointing needs --streaming: only a stream is cut at pauses")
        mode = "endpointed"
    names = ("beam_width", "alpha", "beta", "gamma", "lexicon")
    replaced = tuple((name, getattr(args, name)) for name in names if getattr(args, name) is not None)
    first, *others = map(find_bundle, args.bundle)
    rest = (args.language_model, replaced, args.piece, tuple(others), args.jitter, args.precision)
    if not args.all:
        return {f"{mode} greedy" if args.greedy else mode: Setting(first, mode, args.greedy, *rest)}
    return {
        "offline greedy": Setting(first, "whole", True, *rest),
        "offline, beam": Setting(first, "whole", False, *rest),
        "streaming greedy": Setting(first, "chunked", True, *rest),
        "streaming, beam": Setting(first, "streaming", False, *rest),
    }
