"""The learning-rate range test: the loss of a short run whose rate grows exponentially, and where it falls fastest.

Source: Smith 2017, "Cyclical learning rates for training neural networks", section 3.3; Lightning does the search.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from matplotlib.figure import Figure
from pytorch_lightning.tuner.tuning import Tuner

LOWEST, HIGHEST = 1e-6, 1.0
STEPS = 100


@dataclass(frozen=True)
class Found:
    """rates and losses (smoothed) of the steps made. suggestion: the rate at the steepest fall."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


def find(trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, steps: int) -> Found:
    """The module's weights are afterwards as before. Every group of parameters learns at the tried rate.

    Raises ValueError where the loss shows no fall.
    """
    finder = Tuner(trainer).lr_find(
        module, datamodule=data, min_lr=LOWEST, max_lr=HIGHEST, num_training=steps, update_attr=False
    )
    suggestion = None if finder is None else finder.suggestion()
    if finder is None or suggestion is None:
        raise ValueError(f"--find-lr: in {steps} steps from {LOWEST:g} to {HIGHEST:g} the loss shows no fall")
    return Found(tuple(finder.results["lr"]), tuple(finder.results["loss"]), float(suggestion))


def write(found: Found, folder: Path) -> None:
    """lr.csv and lr.png"""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lr.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["learning_rate", "loss"])
        writer.writerows(zip(found.rates, found.losses, strict=True))
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses)
    axes.axvline(found.suggestion, color="tab:orange", label=f"steepest fall: {found.suggestion:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss, smoothed")
    axes.legend(frameon=False)
    figure.savefig(folder / "lr.png")
