"""One manifest, heard in one way or several: everything that is printed and written about it."""

import itertools
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import torch

from asr_server.bundle import SpeechBundle
from training.bootstrap import Interval
from training.heard import Heard
from training.recognition import Setting
from training.speech_figures import HEADING, Breakdown, Figures, breakdowns, change, summarise


@dataclass(frozen=True)
class Way:
    """How the utterances were heard, and what was heard. `seed` of the bootstrap."""

    name: str
    setting: Setting
    heard: list[Heard]
    seed: int = 0

    @cached_property
    def figures(self) -> Figures:
        return summarise(self.heard, self.seed)

    @cached_property
    def breakdowns(self) -> tuple[Breakdown, ...]:
        return breakdowns(self.heard, self.seed)


@dataclass(frozen=True)
class Change:
    """The second way's word error rate less the first one's, in points."""

    first: str
    second: str
    points: float
    interval: Interval

    def __str__(self) -> str:
        return f"{self.second} less {self.first}: {self.points:+.2f} points of WER ({self.interval})"


@dataclass(frozen=True)
class Evaluation:
    bundle: SpeechBundle  # the first one, whose language model and options decode
    manifest: Path
    ways: tuple[Way, ...]
    seed: int = 0

    @property
    def main(self) -> Way:
        """What users get, where all ways were measured."""
        return self.ways[-1]

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Between ways that differ in one thing: in the search, or in how much of a recording the network sees."""
        pairs = [pair for pair in itertools.combinations(self.ways, 2) if _comparable(*pair)]
        return tuple(
            Change(first.name, second.name, *change(first.heard, second.heard, self.seed)) for first, second in pairs
        )

    def table(self) -> str:
        rows = [way.figures.row(way.name) for way in self.ways]
        return "\n".join([HEADING, *rows, *self.main.figures.remarks(), *map(str, self.changes)])

    def circumstances(self, way: Way) -> dict[str, object]:
        setting, decoding = way.setting, self.bundle.decoding
        names = () if setting.greedy else ("beam_width", "alpha", "beta", "gamma")
        searched = {name: getattr(decoding, name) for name in names}
        return {
            "bundle": self.bundle.name,
            "mode": setting.mode,
            "greedy": setting.greedy,
            "precision": setting.precision,
            "jitter": setting.jitter,
            "ensemble": 1 + len(setting.others),
            **searched,
        }

    def as_json(self) -> dict[str, object]:
        """Of one way its figures, of several one object for each, by name."""
        found = {way.name: {**way.figures.as_json(), **self.circumstances(way)} for way in self.ways}
        if len(found) == 1:
            return found[self.main.name]
        changes = [{**asdict(each), "interval": each.interval.as_json()} for each in self.changes]
        return {"ways": found, "changes": changes}

    def lines(self) -> Iterator[dict[str, object]]:
        """One for each utterance and way."""
        for way in self.ways:
            for heard in way.heard:
                yield heard.as_json() | ({"way": way.name} if len(self.ways) > 1 else {})


def _comparable(first: Way, second: Way) -> bool:
    same_view = (first.setting.mode == "whole") == (second.setting.mode == "whole")
    return same_view != (first.setting.greedy == second.setting.greedy)


def made() -> dict[str, object]:
    """When, with what command and on what a figure was measured."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "command": " ".join(["python -m training.evaluate", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": next(models, platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
