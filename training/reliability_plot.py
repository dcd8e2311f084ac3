"""Reliability diagrams: in each bin of confidences the share that was right, and below how many there were.

Bins are of equal mass, so that each dot stands for as many cases as any other; the bars are Wilson's 95 % intervals
(1927), as if cases were independent, and the diagonal is perfect. Confidences crowd near 1, hence the counts below.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.calibration_fit import Array, Cases
from training.reliability import bins, calibration_error

BINS = 10
NORMAL = 1.96  # standard deviations to both sides hold 95 %
LOOKS = (("before", "tab:orange", "s"), ("after", "tab:blue", "o"))


class Drawn(Protocol):
    """What is drawn of a kind of confidences."""

    @property
    def kind(self) -> str: ...
    @property
    def cases(self) -> Cases: ...
    @property
    def before(self) -> Array: ...
    @property
    def after(self) -> Array: ...


def draw(findings: Sequence[Drawn], title: str, path: Path) -> None:
    """As .png or .svg, by the ending of `path`."""
    figure = Figure(figsize=(5 * len(findings), 6), dpi=150, layout="constrained")
    rows = figure.subplots(2, len(findings), squeeze=False, height_ratios=(4, 1), sharex=True)
    for finding, above, below in zip(findings, *rows, strict=True):
        _draw_shares(above, finding)
        columns = [finding.before, finding.after]
        colours = [colour for _, colour, _ in LOOKS]
        below.hist(columns, np.linspace(0, 1, BINS + 1), color=colours)
        below.set_xlabel("confidence")
        below.set_ylabel(finding.kind)
    figure.suptitle(title)
    figure.savefig(path)


def _draw_shares(axes: Axes, finding: Drawn) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    right = finding.cases.right
    for (name, colour, marker), column in zip(LOOKS, (finding.before, finding.after), strict=True):
        found = bins(column, right, BINS, equal_mass=True)
        places = [each.confidence for each in found]
        shares = np.array([each.right for each in found])
        low, high = np.array([wilson(each.right, each.count) for each in found]).T
        bars = (np.maximum(shares - low, 0), np.maximum(high - shares, 0))
        label = f"{name}: ECE {calibration_error(column, right, BINS):.3f}"
        axes.errorbar(places, shares, bars, color=colour, marker=marker, linewidth=0.8, capsize=2, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that was right", title=finding.kind)
    axes.legend(loc="upper left", frameon=False)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The interval of a share of `count` independent cases."""
    slack = NORMAL**2 / count
    centre = (share + slack / 2) / (1 + slack)
    half = NORMAL / (1 + slack) * math.sqrt(share * (1 - share) / count + slack / (4 * count))
    return centre - half, centre + half
