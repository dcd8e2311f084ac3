"""What a comparison of decoders found: as a table, as figures by name, as bars that are met or not, and as a plot."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

BEAM = 100  # the beam of the figures by name
PEERS = ("pyctcdecode", "flashlight")

Figures: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One decoder with one beam on one task."""

    task: str
    decoder: str
    beam: int
    us_per_frame: float  # processor time, the best of the repeats
    wer: float  # per cent


def table(rows: Sequence[Row], task: str) -> str:
    """A line for each beam, a column for each decoder: microseconds per frame and WER."""
    mine = [row for row in rows if row.task == task]
    decoders = list(dict.fromkeys(row.decoder for row in mine))
    lines = ["beam".rjust(6) + "".join(f"{name:>22}" for name in decoders)]
    lines.append(" " * 6 + "us/frame   WER %".rjust(22) * len(decoders))
    for beam in sorted({row.beam for row in mine}):
        cells = {row.decoder: f"{row.us_per_frame:.1f} {row.wer:7.2f}" for row in mine if row.beam == beam}
        lines.append(f"{beam:6}" + "".join(cells.get(name, "-").rjust(22) for name in decoders))
    return "\n".join(lines)


def figures(rows: Iterable[Row], task: str) -> Figures:
    """At beam 100 ours, and each peer beside it: `ratio_` says how many times faster than the peer ours is."""
    found = {row.decoder: row for row in rows if row.task == task and row.beam == BEAM}
    ours = found.get("ours")
    named: Figures = {}
    if ours:
        named |= {f"us_per_frame_beam{BEAM}": ours.us_per_frame, f"wer_beam{BEAM}": ours.wer}
    for name in PEERS:
        if name in found:
            named[f"us_per_frame_{name}_beam{BEAM}"] = found[name].us_per_frame
            named[f"wer_{name}_beam{BEAM}"] = found[name].wer
            if ours:
                named[f"ratio_{name}_beam{BEAM}"] = found[name].us_per_frame / ours.us_per_frame
    return named


@dataclass(frozen=True)
class Bar:
    """What a figure has to reach; text says it for a reader."""

    text: str
    key: str
    at_least: float = -float("inf")
    at_most: float = float("inf")

    def met(self, figures: Mapping[str, float]) -> bool:
        return self.at_least <= figures[self.key] <= self.at_most


def bars(figures: Mapping[str, float], synthetic: bool) -> list[Bar]:
    """Those of the figures that were measured."""
    peer_wer = figures.get(f"wer_pyctcdecode_beam{BEAM}", float("inf"))
    wanted = [
        Bar("times faster than pyctcdecode: at least 10", f"ratio_pyctcdecode_beam{BEAM}", at_least=10),
        Bar("times faster than flashlight: at least 4", f"ratio_flashlight_beam{BEAM}", at_least=4),
    ]
    if f"wer_pyctcdecode_beam{BEAM}" in figures:
        wanted.append(Bar(f"WER: no worse than pyctcdecode's {peer_wer:.2f}", f"wer_beam{BEAM}", at_most=peer_wer))
    if synthetic:
        wanted.append(Bar("us per frame: at most 30", f"us_per_frame_beam{BEAM}", at_most=30))
    wanted.append(Bar("extra time of 1,000 hot words: at most 0.2", "hot_words_1000_extra", at_most=0.2))
    wanted.append(Bar("100 streams in turn over one: at most 1.1", "streams_100_ratio", at_most=1.1))
    return [bar for bar in wanted if bar.key in figures]


def plot(rows: Sequence[Row], path: Path) -> None:
    """WER against time, a panel for each task; ValueError when matplotlib is missing or does not know the suffix."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatter, LogLocator, NullLocator
    except ImportError as error:
        raise ValueError("--plot needs matplotlib: pip install 'earsight[train]'") from error
    tasks = list(dict.fromkeys(row.task for row in rows))
    figure = Figure(figsize=(6 * len(tasks), 4.5), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for name in dict.fromkeys(row.decoder for row in rows):
            points = sorted((row for row in rows if row.task == task and row.decoder == name), key=lambda row: row.beam)
            axes.plot([row.us_per_frame for row in points], [row.wer for row in points], "o-", label=name)
            for row in points:
                at = (row.us_per_frame, row.wer)
                axes.annotate(str(row.beam), at, xytext=(3, 4), textcoords="offset points", fontsize=7)
        axes.set(xscale="log", xlabel="processor time, us per frame", ylabel="WER, %", title=task)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(99, 99)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
