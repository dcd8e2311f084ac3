"""What a server needs before anybody speaks, and what each caller adds: seconds until ready, and memory.

python -m benchmarks.footprint
python -m benchmarks.footprint --streams 200 --seconds 20 --json

The server is `asr-server serve` with the shipped bundles in a process of its own; "ready" is when it says so, after its
models have run once. Then so many streams speak in real time (benchmarks.load_generator). What a stream adds is the
most memory that is seen meanwhile, less what is there once every recording has been heard alone, over their number.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from asr_server.bundle import SHIPPED as SPEECH
from benchmarks import machine, recordings
from benchmarks.calls import failures
from benchmarks.levels import listed
from benchmarks.load_generator import call_of
from benchmarks.results import Bar
from benchmarks.schedule import Pace
from benchmarks.server_process import ServerProcess, command
from benchmarks.workers import Worker
from vision_zoo.bundle import SHIPPED as VISION

BARS = (
    Bar("seconds until ready: at most 10", "ready_seconds", at_most=10),
    Bar("resident memory in MB before anybody speaks: at most 1500", "resident_mb", at_most=1500),
    Bar("MB for each live stream: at most 2", "stream_mb", at_most=2),
    Bar("calls that failed, so that fewer streams were live: none", "failed_calls", at_most=0),
)
LEAD = 1.0  # seconds from the order to the load's beginning
MB = 1.048576  # in a MiB


def serve_shipped(calls: int) -> list[str]:
    """Both kinds of bundles."""
    return [*command(SPEECH, calls, None), "--models", str(VISION)]


def measure(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    speech = recordings.read(args.manifest, args.recordings)
    recordings.write(speech, folder / "recordings")
    with ServerProcess(serve_shipped(4 * args.streams + 16), folder / "server.log") as server:
        found = {"ready_seconds": server.ready_seconds, "resident_mb": MB * server.usage().resident}
        arguments = ["--server", server.address, "--recordings", str(folder / "recordings"), "--model", ""]
        with Worker("benchmarks.load_generator", arguments, folder / "generator.log") as generator:
            generator.ask({"alone": True})
            before = server.usage().resident
            pace = Pace(args.streams, 5.0, args.seconds)
            begin = time.monotonic() + LEAD
            generator.tell({**asdict(pace), "begin": begin})
            most = before
            while time.monotonic() < begin + pace.window[1]:
                time.sleep(0.5)
                most = max(most, server.usage().resident)
            failed = failures([call_of(each) for each in generator.reply()])
            if failed:
                print(f"failed: {listed(failed)}")
        found |= {"failed_calls": sum(failed.values())}
        found |= {"streams": args.streams, "loaded_mb": MB * most, "stream_mb": MB * (most - before) / args.streams}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--streams", type=int, default=200, help="default: %(default)s")
    add("--seconds", type=float, default=20.0, help="that they all speak (default: %(default)g)")
    add("--manifest", type=Path, metavar="FILE", help="recorded speech, JSON lines (default: the shipped sample)")
    add("--recordings", type=int, default=20, metavar="N", help="at most so many of them (default: %(default)s)")
    add("--json", action="store_true", help="print the figures as one JSON object on the last line")
    args = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="earsight-footprint-") as folder:
            found = measure(args, Path(folder))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(", ".join(f"{name} {value}" for name, value in machine.facts().items()))
    for name, value in found.items():
        print(f"{name:14}{value:8.2f}")
    for bar in BARS:
        print(f"{'met   ' if bar.met(found) else 'MISSED'} {bar.text}: {found[bar.key]:.2f}")
    if args.json:
        print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    return 0 if all(bar.met(found) for bar in BARS) else 1


if __name__ == "__main__":
    sys.exit(main())
