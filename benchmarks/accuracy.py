"""How well a bundle and pocketsphinx hear the same recordings, and what noise costs each of them.

python -m benchmarks.accuracy --manifest noisy-test/clean.jsonl noisy-test/noisy.jsonl --bundle deepspeech-en --json
python -m benchmarks.accuracy --manifest an4-test.jsonl --bundle deepspeech-an4 --limit 20 --jobs 2
python -m benchmarks.accuracy --manifest an4-test.jsonl --only peer

The noisy test is made by training.noisy_speech. Ours is heard as it is served, a stream with the bundle's language
model and options; pocketsphinx 5 has its own en-us model and default settings and gets whole utterances
(benchmarks.sphinx_transcripts). Intervals are 95 % by a bootstrap that draws speakers, the same ones for both sides of
a difference. RTF is seconds of recognition per second of audio, one stream a process.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asr_server.options import PRECISIONS
from benchmarks import machine, sphinx_load, sphinx_transcripts
from training.bootstrap import Interval
from training.heard import Heard
from training.hearing import Task, hear_all
from training.recognition import Setting, find_bundle
from training.speech_figures import HEADING, change, summarise
from training.speech_manifest import Utterance, read_manifest

PEER = sphinx_transcripts.NAME

Transcripts = Mapping[str, Mapping[str, list[Heard]]]  # by system, by manifest


@dataclass(frozen=True)
class Difference:
    """`points`: what has to be added to the first word error rate to get the second."""

    what: str
    points: float
    interval: Interval

    def __str__(self) -> str:
        return f"{self.what}: {self.points:+.2f} points ({self.interval})"

    def as_json(self) -> dict[str, object]:
        return {"what": self.what, "points": round(self.points, 4), "interval": self.interval.as_json()}


def transcribe(args: argparse.Namespace) -> Transcripts:
    """ValueError for what cannot be done, before the work begins."""
    manifests = read(args)
    found: dict[str, dict[str, list[Heard]]] = {}
    if args.only != "peer":
        setting = Setting(find_bundle(args.bundle), "whole" if args.offline else "streaming", precision=args.precision)
        task = Task((setting,), threads=args.threads)
        ours = setting.bundle.name
        found[ours] = {name: hear_all(task, said, args.jobs, name=ours)[0] for name, said in manifests.items()}
    if args.only != "ours":
        found[PEER] = {name: sphinx_transcripts.hear_all(said, args.jobs) for name, said in manifests.items()}
    return found


def read(args: argparse.Namespace) -> dict[str, list[Utterance]]:
    """The manifests' utterances by their names."""
    for name in ("jobs", "limit", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: at least 1")
    if args.only != "peer" and args.bundle is None:
        raise ValueError("--bundle is missing: the name or folder of ours, or --only peer")
    if args.only != "ours" and not sphinx_load.installed():
        raise ValueError("pocketsphinx is not installed: pip install pocketsphinx, or --only ours")
    names = [path.stem for path in args.manifest]
    if len(set(names)) < len(names):
        raise ValueError(f"--manifest has files of the same name, {names}: the table is by their names")
    return {path.stem: read_manifest(path)[: args.limit] for path in args.manifest}


def differences(found: Transcripts) -> Iterator[Difference]:
    """From the first manifest to each other one, for every system; on each manifest from ours to the peer."""
    for system, heard in found.items():
        first, *others = heard
        for other in others:
            yield Difference(f"{system}, from {first} to {other}", *change(heard[first], heard[other]))
    if len(found) > 1:
        ours, peer = found
        for name in found[ours]:
            yield Difference(f"{name}, from {ours} to {peer}", *change(found[ours][name], found[peer][name]))


def table(found: Transcripts) -> str:
    rows = [
        summarise(heard).row(f"{name}, {system}"[:40].ljust(40))
        for system, each in found.items()
        for name, heard in each.items()
    ]
    return "\n".join([" " * 18 + HEADING, *rows, *map(str, differences(found))])


def as_json(found: Transcripts) -> dict[str, object]:
    figures = {
        system: {name: summarise(heard).as_json() for name, heard in each.items()} for system, each in found.items()
    }
    return {
        "machine": machine.facts(),
        "figures": figures,
        "differences": [each.as_json() for each in differences(found)],
    }


def build_parser() -> argparse.ArgumentParser:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--manifest", type=Path, required=True, nargs="+", metavar="FILE", help="JSON lines of transcribed audio")
    add("--bundle", help="ours: a bundle's folder, or the name of a shipped one")
    add("--only", choices=("ours", "peer"), help="one of the two")
    add("--offline", action="store_true", help="ours sees whole recordings, too")
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="of ours (default: as the server chooses)")
    add("--limit", type=int, metavar="N", help="only the first N utterances of each manifest")
    add("--jobs", type=int, default=1, metavar="N", help="processes (default 1)")
    add("--threads", type=int, metavar="N", help="of our network in each process")
    add("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        found = transcribe(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted\n")
    print(", ".join(f"{name} {value}" for name, value in machine.facts().items()))
    print(table(found))
    if args.json:
        print(json.dumps(as_json(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
