"""Hours in minutes: a server at most of its capacity, and whether anything grows.

python -m benchmarks.soak --streams 100 --minutes 20
python -m benchmarks.soak --streams 8 --minutes 1 --warm-up 0.2

The shipped model with its language model; so many streams speak in real time, round after round, each round over new
connections. Every few seconds the server's memory, descriptors and threads are noted. After --warm-up minutes memory
must stay: the mean of the last quarter within --growth per cent of the first quarter's, and so must the highest value.
Descriptors must be as many in the end as they were before the first round. No call may fail.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from benchmarks import levels, machine, recordings
from benchmarks.calls import OK, failures, percentile
from benchmarks.footprint import LEAD, serve_shipped
from benchmarks.load_generator import call_of
from benchmarks.schedule import Pace
from benchmarks.server_process import ServerProcess
from benchmarks.workers import Worker

EVERY = 5.0  # seconds between two looks
SETTLED = 30.0  # seconds after the last round in which its connections have to be closed
HEADER = "minute   calls  final p50   p95    MiB  descriptors  threads"


@dataclass(frozen=True)
class Look:
    """At the server. Memory in MiB."""

    minute: float
    resident: float
    descriptors: int
    threads: int


def look(pid: int, since: float) -> Look:
    descriptors, threads = (len(list((machine.PROC / str(pid) / name).iterdir())) for name in ("fd", "task"))
    return Look((time.monotonic() - since) / 60, machine.status(pid).get("VmRSS", 0.0), descriptors, threads)


def slope(looks: Sequence[Look]) -> float:
    """MiB a minute, of the straight line nearest to all."""
    minutes, resident = [each.minute for each in looks], [each.resident for each in looks]
    middle, mean = fmean(minutes), fmean(resident)
    spread = sum((minute - middle) ** 2 for minute in minutes)
    return sum((a - middle) * (b - mean) for a, b in zip(minutes, resident, strict=True)) / spread if spread else 0.0


@dataclass(frozen=True)
class Growth:
    """Of memory after the warm-up, in MiB."""

    first: float  # mean of the first quarter
    last: float
    highest: float
    per_minute: float

    @property
    def per_cent(self) -> float:
        """The larger of what the last quarter and the highest look are above the first quarter."""
        return 100 * (max(self.last, self.highest) / self.first - 1)


def growth(looks: Sequence[Look], warm_up: float) -> Growth:
    """ValueError where too little was seen."""
    warm = [each for each in looks if each.minute >= warm_up]
    quarter = len(warm) // 4
    if not quarter:
        raise ValueError(f"only {len(warm)} looks after {warm_up:g} minutes of warm-up: at least 4 are needed")
    first, last = (fmean(each.resident for each in part) for part in (warm[:quarter], warm[-quarter:]))
    return Growth(first, last, max(each.resident for each in warm), slope(warm))


class Soak:
    """One server, one generator, and what was seen."""

    def __init__(self, server: ServerProcess, generator: Worker) -> None:
        self.looks: list[Look] = []
        self.finals: list[float] = []  # latencies, ms
        self.failed: Counter[str] = Counter()  # by status
        self._server, self._generator = server, generator
        self._begun = time.monotonic()

    def round(self, pace: Pace) -> None:
        begin = time.monotonic() + LEAD
        self._generator.tell({**asdict(pace), "begin": begin})
        while (left := begin + pace.window[1] - time.monotonic()) > 0:
            time.sleep(min(EVERY, left))
            if time.monotonic() > begin + pace.window[0]:  # with all streams there
                self.looks.append(self.look())
        calls = [call_of(each) for each in self._generator.reply()]
        now, final = self.looks[-1], [1000 * call.final_latency for call in calls if call.code == OK]
        print(
            f"{now.minute:6.1f}{len(calls):8}{percentile(final, 0.5):11.0f}{percentile(final, 0.95):6.0f}"
            f"{now.resident:7.0f}{now.descriptors:13}{now.threads:9}",
            flush=True,
        )
        self.finals += final
        self.failed.update(failures(calls))

    def look(self) -> Look:
        self._server.usage()  # ValueError where it has ended
        return look(self._server.pid, self._begun)


def run(args: argparse.Namespace) -> int:
    speech = recordings.read(args.manifest, args.recordings)
    print(", ".join(f"{name} {value}" for name, value in machine.facts().items()))
    with tempfile.TemporaryDirectory(prefix="earsight-soak-") as name:
        folder = Path(name)
        recordings.write(speech, folder / "recordings")
        with ServerProcess(serve_shipped(4 * args.streams + 16), folder / "server.log") as server:
            before = look(server.pid, time.monotonic())
            arguments = ["--server", server.address, "--recordings", str(folder / "recordings"), "--model", ""]
            with Worker("benchmarks.load_generator", arguments, folder / "generator.log") as generator:
                generator.ask({"alone": True})
                soak, end = Soak(server, generator), time.monotonic() + 60 * args.minutes
                print(HEADER, flush=True)
                while (left := end - time.monotonic()) > 10:
                    soak.round(Pace(args.streams, 3.0, min(args.round, left)))
            settled = time.monotonic() + SETTLED
            while (after := soak.look()).descriptors > before.descriptors and time.monotonic() < settled:
                time.sleep(0.5)
    return judge(args, soak, before, after)


def judge(args: argparse.Namespace, soak: Soak, before: Look, after: Look) -> int:
    """Exit status; says what was found."""
    grown = growth(soak.looks, args.warm_up)
    print(
        f"memory after {args.warm_up:g} minutes: first quarter {grown.first:.0f} MiB, last {grown.last:.0f}, highest "
        f"{grown.highest:.0f} ({grown.per_cent:+.1f} %), slope {grown.per_minute:+.2f} MiB a minute"
    )
    print(f"descriptors: {before.descriptors} before, {after.descriptors} after; threads {after.threads}")
    latency = f"p50 {percentile(soak.finals, 0.5):.0f}, p95 {percentile(soak.finals, 0.95):.0f} ms"
    print(f"final latencies of {len(soak.finals)} calls: {latency}")
    wrong = [levels.listed(soak.failed)] if soak.failed else []
    wrong += [f"memory grew by {grown.per_cent:.1f} %"] if grown.per_cent > args.growth else []
    wrong += ["descriptors stayed open"] if after.descriptors > before.descriptors else []
    print(f"FAILED: {', '.join(wrong)}" if wrong else f"held: {args.streams} streams for {args.minutes:g} minutes")
    return 1 if wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--streams", type=int, default=100, help="70 %% of what benchmarks.streaming found (default: %(default)s)")
    add("--minutes", type=float, default=20.0, help="default: %(default)g")
    add("--warm-up", type=float, default=2.0, metavar="MINUTES", help="before growth counts (default: %(default)g)")
    add("--round", type=float, default=60.0, metavar="SECONDS", help="over the same connections (default: %(default)g)")
    add("--growth", type=float, default=5.0, metavar="PER CENT", help="of memory, at most (default: %(default)g)")
    add("--manifest", type=Path, metavar="FILE", help="recorded speech, JSON lines (default: the shipped sample)")
    add("--recordings", type=int, default=60, metavar="N", help="at most so many of them (default: %(default)s)")
    try:
        return run(parser.parse_args(arguments))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
