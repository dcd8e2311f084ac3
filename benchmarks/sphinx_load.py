"""How many real-time streams pocketsphinx carries on this machine: a process for each core, streams dealt to them."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.calls import percentiles
from benchmarks.levels import error_rate
from benchmarks.recordings import Recording
from benchmarks.schedule import Pace
from benchmarks.workers import Worker

MODULE = "benchmarks.peers.pocketsphinx_peer"


@dataclass(frozen=True)
class SphinxLevel:
    """Latencies in ms."""

    streams: int
    final_p50: float
    final_p95: float
    final_p99: float
    gave_up: bool  # a process fell so far behind that it stopped

    def holds(self, limit: float) -> bool:
        return not self.gave_up and self.final_p95 < limit


@dataclass(frozen=True)
class SphinxLoad:
    """real_time_factor: processor seconds for a second of audio, all cores at work. wer in per cent."""

    streams: int
    real_time_factor: float
    wer: float
    levels: tuple[SphinxLevel, ...]


def installed() -> bool:
    return find_spec("pocketsphinx") is not None


def deal(streams: int, workers: int) -> list[list[int]]:
    """Streams to processes, as evenly as can be."""
    return [list(range(worker, streams, workers)) for worker in range(workers)]


def climb(start: int, holds: Callable[[int], bool]) -> int:
    """The largest number that holds, near `start`: up while it holds, or down until it does."""
    if holds(start):
        while holds(start + 1):
            start += 1
        return start
    while start > 1:
        start -= 1
        if holds(start):
            return start
    return 0


def measure(
    recordings: Sequence[Recording],
    folder: Path,
    workers: int,
    pace: Pace,
    limit: float,
    say: Callable[[SphinxLevel], None],
) -> SphinxLoad:
    """`folder` has the recordings as *.raw; pace: how long a level takes; limit in ms. `say` hears of each level."""
    levels: list[SphinxLevel] = []
    with ExitStack() as stack:
        arguments = ["--recordings", str(folder)]
        logs = [folder.parent / f"pocketsphinx-{index}.log" for index in range(workers)]
        peers = [stack.enter_context(Worker(MODULE, arguments, log)) for log in logs]
        alone = _ask_all(peers, [{"rtf": True}] * workers)
        factor = max(reply["seconds"] for reply in alone) / sum(each.duration for each in recordings)

        def holds(streams: int) -> bool:
            levels.append(_level(peers, Pace(streams, pace.warm_up, pace.seconds)))
            say(levels[-1])
            return levels[-1].holds(limit)

        streams = climb(max(1, math.floor(workers / factor)), holds)
    wer = error_rate([each.text for each in recordings], alone[0]["texts"])
    return SphinxLoad(streams, factor, wer, tuple(levels))


def _level(peers: Sequence[Worker], pace: Pace) -> SphinxLevel:
    shares = deal(pace.streams, len(peers))
    _ask_all(peers, [{"prepare": len(share)} for share in shares])
    job = {"streams": pace.streams, "warm_up": pace.warm_up, "seconds": pace.seconds, "begin": time.monotonic() + 0.5}
    replies = _ask_all(peers, [{**job, "numbers": share} for share in shares])
    finals = [1000 * each for reply in replies for each in reply["finals"]]
    final = percentiles(finals)
    return SphinxLevel(pace.streams, final.p50, final.p95, final.p99, any(reply["gave_up"] for reply in replies))


def _ask_all(peers: Sequence[Worker], requests: Sequence[dict[str, Any]]) -> list[Any]:
    """All work at the same time."""
    for peer, request in zip(peers, requests, strict=True):
        peer.tell(request)
    return [peer.reply() for peer in peers]
