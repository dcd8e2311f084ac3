"""How many callers one machine carries: real speech, paced in real time, streamed to a server over loopback.

python -m benchmarks.streaming
python -m benchmarks.streaming --manifest an4-dev.jsonl --json
python -m benchmarks.streaming --loads bundled --levels 1,64,128 --seconds 10 --no-pocketsphinx

Server and load generator are processes of their own and share the machine's cores. At each level so many streams speak
without a break, in chunks of 100 ms, one call a recording, with interim results (benchmarks.schedule says when,
benchmarks.calls what a latency is). Levels go up to the first that does not hold: a call failed, or the 95th percentile
of final latencies reached --limit. Two loads: `bundled` is the shipped model with its language model, `2048` the
paper's width with nine frames of context and random weights, which cost what trained ones cost.

Before the levels every recording is streamed alone; WER and texts under load are compared with those. Beside it
pocketsphinx in a process a core hears the same recordings on the same timetable.

--manifest is a file of JSON lines as for training; without it the shipped sample speaks over and over.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import levels, machine, recordings, sphinx_load, streaming_bundles
from benchmarks.calls import failures
from benchmarks.levels import HEADER, Level, Moment
from benchmarks.load_generator import call_of
from benchmarks.recordings import Recording
from benchmarks.results import Bar
from benchmarks.schedule import CHUNK_SECONDS, Pace
from benchmarks.server_process import ServerProcess, command, free_port, increase
from benchmarks.workers import Worker

LOADS = ("2048", "bundled")
LEVELS = (1, 8, 16, 32, 64, 96, 128, 150, 192, 256, 384, 512)
BARS = (
    Bar("streams of the 2048-wide model: at least 96", "streams_2048", at_least=96),
    Bar("streams of the shipped model with its language model: at least 150", "streams_bundled", at_least=150),
)
LEAD = 1.0  # seconds from the order to a level's beginning
SCALED_ON = 8  # recordings that random weights are scaled on


@dataclass
class Bench:
    """One server, one generator, and the levels measured with them."""

    server: ServerProcess
    generator: Worker
    speech: Sequence[Recording]
    limit: float  # ms
    meaningful: bool  # whether the words are worth counting
    levels: list[Level] = field(default_factory=list)
    _alone: list[str] = field(default_factory=list)

    def hear_alone(self) -> None:
        """The texts that those under load are compared with; also what a server needs to be warm."""
        calls = [call_of(each) for each in self.generator.ask({"alone": True})]
        if failed := failures(calls):
            raise ValueError(f"of {len(calls)} recordings streamed alone failed: {levels.listed(failed)}")
        self._alone = [call.text for call in calls]

    def measure(self, pace: Pace) -> Level:
        begin = time.monotonic() + LEAD
        self.generator.tell({**asdict(pace), "begin": begin})
        _sleep_until(begin + pace.window[0])
        start, counters = self._moment(), self.server.counters()
        _sleep_until(begin + pace.window[1])
        end = self._moment()
        counters = increase(counters, self.server.counters())
        calls = [call_of(each) for each in self.generator.reply()]
        level = levels.of_calls(calls, pace, self.speech, self._alone, self.meaningful)
        first = self.levels[0] if self.levels else None
        load: dict[str, Any] = levels.of_machine(start, end, pace, first)
        self.levels.append(replace(level, **load, counters=counters))
        return self.levels[-1]

    def _moment(self) -> Moment:
        return Moment(self.server.usage(), machine.cpu_seconds(self.generator.pid), machine.busy_seconds())


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def run_load(name: str, args: argparse.Namespace, speech: Sequence[Recording], folder: Path) -> dict[str, Any]:
    """One server under rising load; it prints as it goes."""
    make = streaming_bundles.shipped if name == "bundled" else _random(speech, args.seed)
    models, model = make(folder / name)
    metrics = free_port() if args.metrics else None
    # A call is still finishing as the stream's next begins; what is too slow should show as latency.
    words = command(models, 4 * max(args.levels) + 16, metrics)
    url = f"http://127.0.0.1:{metrics}/metrics" if metrics else None
    with ServerProcess(words, folder / f"{name}-server.log", url) as server:
        print(f"\n{name}: {model}, ready after {server.ready_seconds:.1f} s", flush=True)
        arguments = ["--server", server.address, "--recordings", str(folder / "recordings"), "--model", model]
        with Worker("benchmarks.load_generator", arguments, folder / f"{name}-generator.log") as generator:
            bench = Bench(server, generator, speech, args.limit, meaningful=name == "bundled")
            bench.hear_alone()
            print(HEADER, flush=True)
            streams = levels.search(args.levels, _measuring(bench, args), args.refine)
    holding = [level for level in bench.levels if level.streams == streams]
    for line in levels.bound((holding or bench.levels)[-1], machine.cores()):
        print(line)
    print(f"streams_{name}: {streams}", flush=True)
    return {
        f"streams_{name}": streams,
        f"levels_{name}": [asdict(level) for level in bench.levels],
        f"ready_seconds_{name}": server.ready_seconds,
    }


def _measuring(bench: Bench, args: argparse.Namespace) -> Callable[[int], bool]:
    def holds(streams: int) -> bool:
        level = bench.measure(Pace(streams, args.warmup, args.seconds))
        print(levels.row(level, args.limit), flush=True)
        return not level.verdict(args.limit)

    return holds


def _random(speech: Sequence[Recording], seed: int) -> Callable[[Path], tuple[Path, str]]:
    audio = [torch.from_numpy(np.frombuffer(each.audio, "<i2") / np.float32(32768)) for each in speech[:SCALED_ON]]
    return lambda folder: streaming_bundles.random(folder, audio, seed=seed)


def run_pocketsphinx(args: argparse.Namespace, speech: Sequence[Recording], folder: Path) -> dict[str, Any]:
    print(f"\npocketsphinx: {machine.cores()} processes\nstreams   final p50   p95   p99", flush=True)

    def say(level: sphinx_load.SphinxLevel) -> None:
        verdict = "" if level.holds(args.limit) else "  gave up" if level.gave_up else "  too late"
        cells = f"{level.final_p50:12.0f}{level.final_p95:6.0f}{level.final_p99:6.0f}"
        print(f"{level.streams:7}{cells}{verdict}", flush=True)

    pace = Pace(1, args.warmup, args.seconds)
    found = sphinx_load.measure(speech, folder / "recordings", machine.cores(), pace, args.limit, say)
    factor = f"real-time factor {found.real_time_factor:.3f} with every core busy, WER {found.wer:.2f} %"
    print(f"{factor}\nstreams_pocketsphinx: {found.streams}", flush=True)
    return {
        "streams_pocketsphinx": found.streams,
        "rtf_pocketsphinx": found.real_time_factor,
        "wer_pocketsphinx": found.wer,
        "levels_pocketsphinx": [asdict(level) for level in found.levels],
    }


def run(args: argparse.Namespace) -> None:
    speech = recordings.read(args.manifest, args.recordings)
    found: dict[str, Any] = {"machine": machine.facts(), "chunk_ms": 1000 * CHUNK_SECONDS, "limit_ms": args.limit}
    found |= {"recordings": len(speech), "seconds": args.seconds, "warmup": args.warmup}
    print(", ".join(f"{name} {value}" for name, value in machine.facts().items()))
    print(f"{len(speech)} recordings, {sum(each.duration for each in speech):.0f} s of speech; times in ms, RSS in MiB")
    with tempfile.TemporaryDirectory(prefix="earsight-streaming-") as name:
        folder = Path(name)
        recordings.write(speech, folder / "recordings")
        for load in args.loads:
            found |= run_load(load, args, speech, folder)
        if args.pocketsphinx and sphinx_load.installed():
            found |= run_pocketsphinx(args, speech, folder)
        elif args.pocketsphinx:
            print("\npocketsphinx is not installed: pip install pocketsphinx")
    for bar in BARS:
        if bar.key in found:
            print(f"{'met   ' if bar.met(found) else 'MISSED'} {bar.text}: {found[bar.key]}")
    if args.json:
        print(json.dumps(rounded(found)))


def rounded(value: Any) -> Any:
    """Figures as JSON has them: four decimals, and null for what is infinite because nothing came."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value


def numbers(text: str) -> list[int]:
    """Comma-separated, each at least 1."""
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers of streams with commas between, each at least 1")
    return found


def build_parser() -> argparse.ArgumentParser:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--loads", nargs="+", choices=LOADS, default=list(LOADS), help="default: both")
    add("--levels", type=numbers, default=list(LEVELS), metavar="N,N", help=f"default: {','.join(map(str, LEVELS))}")
    add("--refine", action="store_true", help="after the first level that fails, halve the gap to the last that held")
    add("--seconds", type=float, default=20.0, help="measured at each level (default: %(default)g)")
    add("--warmup", type=float, default=5.0, metavar="SECONDS", help="before that (default: %(default)g)")
    add("--limit", type=float, default=500.0, metavar="MS", help="for p95 of final latencies (default: %(default)g)")
    add("--manifest", type=Path, metavar="FILE", help="recorded speech, JSON lines")
    add("--recordings", type=int, default=60, metavar="N", help="at most so many of them (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")
    add("--no-metrics", dest="metrics", action="store_false", help="without the server's own counters of its work")
    add("--no-pocketsphinx", dest="pocketsphinx", action="store_false", help="without the peer")
    add("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        run(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
