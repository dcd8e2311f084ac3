"""The pictures of a report on a classifier, PNGs: confusion matrix, reliability, worst images, training curves."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training import reliability_plot
from training.calibration_fit import Array, Cases
from training.vision_data import read_image
from training.vision_figures import Answers

WRITTEN = 20  # classes whose names and counts still fit into the confusion matrix
COLUMNS = 6  # of the contact sheet
THUMBNAIL = 160  # pixels that both sides of a worst image keep at least


@dataclass(frozen=True)
class _Drawn:
    kind: str
    cases: Cases
    before: Array
    after: Array


def confusion(answers: Answers, path: Path) -> None:
    """Shares of each row's images in colour; names and counts where they fit."""
    counts = answers.confusion
    shares = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    side = 4 + 0.35 * min(len(counts), WRITTEN)
    figure = Figure(figsize=(side + 1, side), dpi=120, layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(counts) <= WRITTEN:
        places = range(len(counts))
        axes.set_xticks(places, answers.files.labels, rotation=90, parse_math=False)
        axes.set_yticks(places, answers.files.labels, parse_math=False)
        for i, j in counts.nonzero().tolist():
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(int(counts[i, j])), ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlabel="predicted", ylabel="label")
    figure.colorbar(drawn, ax=axes, label="share of the label's images")
    figure.savefig(path)


def reliability(answers: Answers, path: Path) -> None:
    """Before and after the bundle's temperature."""
    raw, scaled = answers.cases(1.0), answers.cases(answers.temperature)
    finding = _Drawn("first choices", raw, raw.confidence, scaled.confidence)
    reliability_plot.draw([finding], f"temperature {answers.temperature:.3f}", path)


def contact_sheet(answers: Answers, chosen: Sequence[int], path: Path) -> None:
    """The images by their indices, with label, choice and the choice's probability."""
    rows = -(-len(chosen) // COLUMNS)
    figure = Figure(figsize=(2.1 * COLUMNS, 2.5 * rows), dpi=100, layout="constrained")
    for axes, index in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, chosen, strict=False):
        axes.imshow(read_image(answers.files.paths[index], THUMBNAIL).permute(1, 2, 0).numpy())
        label, choice = (answers.files.labels[int(of[index])] for of in (answers.targets, answers.choices))
        said = f"{label}, called\n{choice}: {answers.calibrated[index].max():.0%}"
        axes.set_title(said, fontsize=8, parse_math=False)
    for axes in figure.axes:
        axes.axis("off")
    figure.savefig(path)


def curves(run: Path, path: Path) -> None:
    """Of the folder that training.fit wrote to. Raises ValueError without its logs."""
    rows = _logged(run)
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    _curve(losses, rows, "train_loss", "training")
    _curve(losses, rows, "val_loss", "validation")
    _curve(accuracy, rows, "val_top1", "validation")
    losses.set(xlabel="step", ylabel="loss")
    accuracy.set(xlabel="step", ylabel="top-1, %")
    losses.legend(frameon=False)
    figure.savefig(path)


def _curve(axes: Axes, rows: dict[int, dict[str, float]], name: str, label: str) -> None:
    points = [(step, row[name]) for step, row in sorted(rows.items()) if name in row]
    axes.plot([step for step, _ in points], [value for _, value in points], marker=".", markersize=3, label=label)


def _logged(run: Path) -> dict[int, dict[str, float]]:
    """step -> figures. A resumed run has a file for each start; the later one counts where both know a step."""
    found = sorted(run.glob("csv/version_*/metrics.csv"), key=lambda each: int(each.parent.name.rpartition("_")[2]))
    if not found:
        raise ValueError(f"{run} has no csv/version_*/metrics.csv; --curves takes the --out of training.fit")
    rows: dict[int, dict[str, float]] = {}
    for metrics in found:
        with metrics.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                rows.setdefault(int(row["step"]), {}).update(
                    {name: float(value) for name, value in row.items() if value and name not in ("step", "epoch")}
                )
    return rows
