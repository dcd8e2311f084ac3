"""The pictures of an evaluation: error rates with their intervals, what they depend on, and speed. PNG files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.bootstrap import Array, Interval
from training.evaluation import Evaluation, Way
from training.speech_figures import Breakdown, Row

KINDS = (("substitutions", "tab:blue"), ("deletions", "tab:orange"), ("insertions", "tab:green"))
TITLES = {"speaker": "by speaker", "source": "by source", "kind": "by background", "snr": "by signal-to-noise ratio"}
LABELLED = 45  # rows that still have names below them


def draw(evaluation: Evaluation, folder: Path) -> dict[str, str]:
    """File names by what they show."""
    way = evaluation.main
    title = f"{evaluation.bundle.name} on {evaluation.manifest.name}"
    names = {"errors": _save(folder, "errors", title, lambda axes: _errors(axes, evaluation))}
    for part in way.breakdowns:
        about = f"{title}, {way.name}, {TITLES.get(part.by, 'by length')}"
        names[part.by] = _save(folder, part.by, about, lambda axes, part=part: _breakdown(axes, part))  # type: ignore[misc]
    about = f"{title}, {way.name}"
    names["utterances"] = _save(folder, "utterances", about, lambda axes: _utterances(axes, way))
    timed = [each for each in evaluation.ways if each.figures.rtf is not None]
    if timed:
        names["rtf"] = _save(folder, "rtf", title, lambda axes: _speeds(axes, timed))
    return names


def _save(folder: Path, name: str, title: str, fill: Callable[[Axes], None]) -> str:
    figure = Figure(figsize=(8, 4.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    fill(axes)
    figure.savefig(folder / f"{name}.png")
    return f"{name}.png"


def _errors(axes: Axes, evaluation: Evaluation) -> None:
    """WER by kinds of errors, and CER, of each way."""
    ways = evaluation.ways
    places = np.arange(len(ways), dtype=np.float64)
    below = np.zeros(len(ways))
    for kind, colour in KINDS:
        words = [way.figures.words for way in ways]
        heights = np.array([100 * getattr(each, kind) / max(1, each.reference) for each in words])
        axes.bar(places - 0.2, heights, 0.38, bottom=below, color=colour, label=f"words: {kind}")
        below += heights
    characters = np.array([way.figures.characters.rate for way in ways])
    axes.bar(places + 0.2, characters, 0.38, color="silver", label="characters")
    bounds = ([way.figures.wer for way in ways], [way.figures.cer for way in ways])
    for shift, heights, intervals in zip((-0.2, 0.2), (below, characters), bounds, strict=True):
        _bars(axes, places + shift, heights, intervals)
    axes.set_xticks(places, [f"{way.name}\n{way.figures.words.rate:.2f} %" for way in ways])
    axes.set_ylabel("errors per hundred, 95 %")
    axes.set_xlim(-0.8, len(ways) - 0.2)
    axes.legend(frameon=False, fontsize=8)


def _breakdown(axes: Axes, part: Breakdown) -> None:
    """WER of each row; speakers, who have no order, by rising rate."""
    rows = sorted(part.rows, key=_rate) if part.by == "speaker" else list(part.rows)
    rates = np.array([_rate(row) for row in rows])
    places = np.arange(len(rows), dtype=np.float64)
    axes.bar(places, rates, color="tab:blue", alpha=0.6)
    _bars(axes, places, rates, [row.figures.wer for row in rows])
    few = len(rows) <= 10
    names = [row.name.rpartition(":")[2] for row in rows]  # "corpus:speaker"
    labels = [f"{name}\n{row.figures.utterances} utt." if few else name for row, name in zip(rows, names, strict=True)]
    axes.set_xticks(places if len(rows) <= LABELLED else [], labels if len(rows) <= LABELLED else [])
    axes.tick_params(axis="x", rotation=0 if few else 90, labelsize=8)
    axes.set_ylabel("word error rate, %, 95 %")
    axes.set_xlabel(part.by)


def _bars(axes: Axes, places: Array, heights: Array, intervals: Sequence[Interval]) -> None:
    low, high = np.array([(each.low, each.high) for each in intervals]).T
    lengths = np.maximum([heights - low, high - heights], 0)
    axes.errorbar(places, heights, lengths, color="black", linewidth=0.9, capsize=3, linestyle="none")


def _rate(row: Row) -> float:
    return row.figures.words.rate


def _utterances(axes: Axes, way: Way) -> None:
    """How few utterances have how many of the errors."""
    errors = np.sort([each.words.errors for each in way.heard])[::-1]
    shares = 100 * np.concatenate([[0], np.cumsum(errors)]) / max(1, errors.sum())
    axes.plot(100 * np.arange(len(shares)) / len(errors), shares, color="tab:blue")
    right = 100 * float((errors == 0).mean())
    axes.axvline(100 - right, color="grey", linestyle="--", linewidth=0.8, label=f"without an error: {right:.0f} %")
    axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="% of the utterances, worst first", ylabel="% of all word errors")
    axes.legend(frameon=False, loc="lower right")


def _speeds(axes: Axes, ways: list[Way]) -> None:
    """Real-time factors of all utterances by their length."""
    for way in ways:
        lengths = [each.audio_seconds for each in way.heard]
        factors = [each.real_time_factor or 0.0 for each in way.heard]
        label = f"{way.name}: median {way.figures.rtf_median:.4f}"
        axes.scatter(lengths, factors, s=8, alpha=0.6, label=label)
    axes.set(xlabel="seconds of audio", ylabel="real-time factor", yscale="log")
    axes.legend(frameon=False, fontsize=8)
