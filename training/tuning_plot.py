"""The word error rate over alpha and beta as a picture.

The trials lie where the sampler put them, so the surface between them is a thin-plate spline: the smoothest one
through scattered points (Duchon 1977), with some slack, because the error rate of a small manifest goes in steps.

Dimension letters: N trials, G points of the surface along each axis.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from training.decoding_trial import Trial, Trials

Array = NDArray[np.float64]
GRID = 160  # points along each axis
SLACK = 1e-3  # of the spline: 0 goes through every point
LEVELS = 14
COLOURS = "viridis"
HIGHEST = 0.9  # the share of the trials that have colours of their own; cliffs at the rim would take all of them


def draw(trials: Trials, title: str, path: Path) -> None:
    """As .png or .svg, by the ending of `path`."""
    figure = Figure(figsize=(7.2, 5.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    _draw_surface(figure, axes, trials)
    _draw_trials(axes, trials)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    axes.set_title(f"{title}, {len(trials.made)} trials", fontsize=11)
    axes.set_xlabel("alpha: weight of the language model")
    axes.set_ylabel("beta: reward for a word")
    figure.savefig(path)


def _draw_surface(figure: Figure, axes: Axes, trials: Trials) -> None:
    shown = trials.ranked  # what is over the budget has the errors of another beam
    places, rates = _places(shown), np.array([trial.words.rate for trial in shown])
    low, high = _frame(_places(trials.made))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    best = float(rates.min())
    cliff = max(float(np.quantile(rates, HIGHEST)), best + 0.1)
    x, y = np.meshgrid(np.linspace(low[0], high[0], GRID), np.linspace(low[1], high[1], GRID))  # (G, G)
    wanted = np.stack([x.ravel(), y.ravel()], axis=1)
    heights = spline((places - low) / (high - low), rates.clip(best, cliff), (wanted - low) / (high - low))
    z, levels = heights.clip(best, cliff).reshape(x.shape), np.linspace(best, cliff, LEVELS)
    filled = axes.contourf(x, y, z, levels, cmap=COLOURS)
    axes.contour(x, y, z, levels[1:-1], colors="white", linewidths=0.4, alpha=0.5)
    bar = figure.colorbar(filled, ax=axes, label=f"word error rate, % ({cliff:.1f} and more have one colour)")
    bar.locator = MaxNLocator(8)
    bar.update_ticks()


def _draw_trials(axes: Axes, trials: Trials) -> None:
    alpha, beta = _places(trials.ranked).T
    axes.scatter(alpha, beta, s=14, c="white", edgecolors="black", linewidths=0.6)
    slow = [trial for trial in trials.made if not trials.allows(trial)]
    if slow:
        alpha, beta = _places(slow).T
        axes.scatter(alpha, beta, s=18, c="black", marker="x", linewidths=0.8, label="over the budget")
    for trial, name, marker, size, colour in (
        (trials.before, "before", "D", 60, "white"),
        (trials.best, "best", "*", 240, "orangered"),
    ):
        options = trial.options
        label = f"{name}: alpha {options.alpha:.3g}, beta {options.beta:.3g}, WER {trial.words.rate:.2f} %"
        axes.scatter(
            options.alpha, options.beta, s=size, c=colour, marker=marker, edgecolors="black", label=label, zorder=3
        )


def _places(trials: Sequence[Trial]) -> Array:
    """Of each trial alpha and beta, (N, 2)."""
    return np.array([(trial.options.alpha, trial.options.beta) for trial in trials])


def _frame(places: Array) -> tuple[Array, Array]:
    """The lower left and the upper right corner, with room around the places also where they are all the same."""
    low, high = places.min(axis=0), places.max(axis=0)
    room = np.maximum(0.04 * (high - low), 0.05)
    return low - room, high + room


def spline(known: Array, heights: Array, wanted: Array) -> Array:
    """The thin-plate spline through `heights` (N,) at `known` (N, 2), at `wanted` (M, 2) -> (M,)."""
    count = len(known)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _bending(known, known) + SLACK * np.eye(count)
    system[:count, count:] = plane = np.column_stack([np.ones(count), known])
    system[count:, :count] = plane.T
    # Least squares, because few or repeated trials leave the system singular.
    weights = np.linalg.lstsq(system, np.append(heights, np.zeros(3)), rcond=None)[0]
    found: Array = _bending(wanted, known) @ weights[:count]
    found += weights[count] + wanted @ weights[count + 1 :]
    return found


def _bending(points: Array, centres: Array) -> Array:
    """r^2 ln r of every distance r: (M, 2), (N, 2) -> (M, N)."""
    squares = ((points[:, None] - centres[None]) ** 2).sum(axis=2)
    bent: Array = 0.5 * squares * np.log(np.maximum(squares, 1e-12))
    return bent
