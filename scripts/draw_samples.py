#!/usr/bin/env python3
"""Draw the sample images of vision_zoo/samples, so that the package ships pictures that belong to nobody else.

    python scripts/draw_samples.py [--out DIR]

Each is drawn at four times its size and shrunk, with a little noise, so that it looks more like a photograph than
like clip art: a classifier trained on photographs has never seen a flat colour.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE, SCALE = 128, 4
SAMPLES = Path(__file__).resolve().parent.parent / "vision_zoo" / "samples"
Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


class Picture:
    """A canvas whose coordinates run from 0 to 1 in both directions, y downwards."""

    def __init__(self, top: Colour, bottom: Colour) -> None:
        rows = np.linspace(0.0, 1.0, SIDE * SCALE)[:, None, None]
        gradient = np.array(top) * (1 - rows) + np.array(bottom) * rows
        self.image = Image.fromarray(np.broadcast_to(gradient, (SIDE * SCALE,) * 2 + (3,)).astype(np.uint8))
        self.random = np.random.default_rng(7)

    def polygon(self, points: Points, colour: Colour) -> None:
        ImageDraw.Draw(self.image).polygon([self._at(*point) for point in points], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, radius: float = 0.0) -> None:
        corners = (*self._at(left, top), *self._at(right, bottom))
        ImageDraw.Draw(self.image).rounded_rectangle(corners, radius * SIDE * SCALE, fill=colour)

    def ellipse(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """Centre and full width and height."""
        corners = (*self._at(x - width / 2, y - height / 2), *self._at(x + width / 2, y + height / 2))
        ImageDraw.Draw(self.image).ellipse(corners, fill=colour)

    def line(self, points: Points, colour: Colour, width: float) -> None:
        pixels = max(1, round(width * SIDE * SCALE))
        ImageDraw.Draw(self.image).line(
            [self._at(*point) for point in points], fill=colour, width=pixels, joint="curve"
        )

    def clouds(self, top: float, bottom: float, count: int, strength: float = 0.35) -> None:
        """Soft bright patches."""
        veil = Image.new("L", self.image.size)
        draw = ImageDraw.Draw(veil)
        for _ in range(count):
            x, y = self.random.uniform(0, 1), self.random.uniform(top, bottom)
            for _ in range(6):
                dx, dy = self.random.normal(0, 0.07), self.random.normal(0, 0.02)
                w, h = self.random.uniform(0.08, 0.2), self.random.uniform(0.03, 0.07)
                draw.ellipse((*self._at(x + dx - w, y + dy - h), *self._at(x + dx + w, y + dy + h)), fill=255)
        veil = veil.filter(ImageFilter.GaussianBlur(0.035 * SIDE * SCALE)).point(lambda v: int(v * strength))
        self.image.paste(Image.new("RGB", self.image.size, (250, 250, 252)), mask=veil)

    def waves(self, top: float, bottom: float, colours: Sequence[Colour], count: int) -> None:
        """Short flat strokes, longer towards the viewer."""
        for _ in range(count):
            y = top + (bottom - top) * self.random.uniform(0, 1)
            near = (y - top) / (bottom - top)
            x, length = self.random.uniform(-0.05, 1), 0.02 + 0.08 * near * self.random.uniform(0.5, 1.5)
            colour = colours[int(self.random.integers(len(colours)))]
            self.line([(x, y), (x + length / 2, y - 0.004), (x + length, y)], colour, 0.003 + 0.004 * near)

    def soften(self, radius: float) -> None:
        """Blurs what is drawn so far: the background."""
        self.image = self.image.filter(ImageFilter.GaussianBlur(radius * SIDE * SCALE))

    def finished(self) -> Image.Image:
        small = self.image.filter(ImageFilter.GaussianBlur(0.4 * SCALE)).resize((SIDE, SIDE), Image.Resampling.BOX)
        noise = self.random.normal(0, 3.0, (SIDE, SIDE, 1))
        return Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return x * SIDE * SCALE, y * SIDE * SCALE


def airplane() -> Picture:
    """A jet in the sky, from below its left side."""
    p = Picture((70, 120, 190), (176, 205, 232))
    p.clouds(0.55, 1.0, 6, 0.5)
    p.soften(0.01)
    light, mid, dark = (236, 238, 242), (190, 196, 205), (110, 118, 132)
    p.polygon([(0.46, 0.47), (0.60, 0.45), (0.42, 0.22), (0.36, 0.23)], mid)  # far wing
    p.polygon([(0.14, 0.44), (0.24, 0.48), (0.17, 0.38), (0.12, 0.38)], mid)  # far tailplane
    p.polygon([(0.12, 0.50), (0.28, 0.48), (0.15, 0.24), (0.08, 0.24)], (52, 84, 150))  # fin
    back: Points = [(0.08, 0.505), (0.22, 0.455), (0.80, 0.46), (0.90, 0.49), (0.935, 0.525)]
    belly: Points = [(0.90, 0.555), (0.80, 0.57), (0.30, 0.57), (0.14, 0.53)]
    shade: Points = [(0.10, 0.512), (0.30, 0.545), (0.80, 0.545), (0.935, 0.525)]
    p.polygon([*back, *belly], light)  # fuselage
    p.polygon([*shade, *belly], mid)  # its shaded side
    p.polygon([(0.87, 0.483), (0.905, 0.495), (0.895, 0.507), (0.86, 0.503)], (40, 48, 62))  # cockpit
    for index in range(17):
        p.ellipse(0.30 + 0.031 * index, 0.502, 0.011, 0.015, (60, 72, 92))  # windows
    p.polygon([(0.42, 0.55), (0.62, 0.55), (0.36, 0.86), (0.28, 0.86)], mid)  # near wing
    p.polygon([(0.42, 0.55), (0.47, 0.55), (0.31, 0.86), (0.28, 0.86)], dark)
    p.ellipse(0.485, 0.655, 0.12, 0.05, light)  # engine
    p.ellipse(0.535, 0.655, 0.02, 0.045, (50, 56, 66))
    p.polygon([(0.12, 0.525), (0.24, 0.54), (0.10, 0.64), (0.05, 0.64)], mid)  # near tailplane
    return p


def ship() -> Picture:
    """A cargo ship on the sea, from the side."""
    p = Picture((150, 188, 224), (214, 226, 236))
    p.clouds(0.05, 0.4, 5)
    p.box(-0.1, 0.58, 1.1, 1.1, (42, 84, 122))
    p.box(-0.1, 0.58, 1.1, 0.62, (84, 122, 152))
    p.soften(0.012)
    p.waves(0.60, 1.0, [(60, 104, 142), (30, 68, 104), (108, 146, 176)], 260)
    hull, red, white, shade = (38, 44, 58), (150, 44, 38), (238, 238, 234), (196, 200, 204)
    p.polygon([(0.06, 0.50), (0.96, 0.47), (0.885, 0.695), (0.115, 0.70)], hull)
    p.polygon([(0.095, 0.64), (0.905, 0.635), (0.885, 0.695), (0.115, 0.70)], red)
    p.line([(0.06, 0.50), (0.96, 0.47)], white, 0.008)
    p.box(0.11, 0.30, 0.30, 0.50, white)  # superstructure
    p.box(0.13, 0.23, 0.28, 0.31, shade)
    p.box(0.10, 0.27, 0.32, 0.295, white)
    p.box(0.155, 0.13, 0.225, 0.23, (196, 70, 40))  # funnel
    p.box(0.155, 0.13, 0.225, 0.155, hull)
    for row in range(3):
        for column in range(5):
            left, top = 0.125 + 0.034 * column, 0.335 + 0.048 * row
            p.box(left, top, left + 0.02, top + 0.022, (54, 70, 92))
    stacks: list[Colour] = [(176, 60, 46), (52, 104, 150), (190, 150, 70), (78, 120, 88), (158, 158, 162)]
    for column in range(8):
        for row in range(2 + (column % 3 > 0)):
            left, top = 0.34 + 0.068 * column, 0.445 - 0.048 * row - 0.002 * column
            p.box(left, top, left + 0.064, top + 0.045, stacks[(3 * column + 2 * row) % 5])
    p.line([(0.905, 0.47), (0.905, 0.30)], shade, 0.008)  # mast
    p.waves(0.69, 0.73, [(222, 232, 238), (150, 180, 202)], 40)  # foam along the water line
    p.polygon([(0.885, 0.695), (0.95, 0.705), (0.86, 0.72)], (226, 234, 240))  # bow wave
    return p


def truck() -> Picture:
    """A lorry with a red cab on a road, from its right side."""
    p = Picture((168, 196, 222), (220, 226, 228))
    p.clouds(0.0, 0.3, 4)
    p.box(-0.1, 0.56, 1.1, 0.70, (96, 118, 74))
    p.box(-0.1, 0.69, 1.1, 1.1, (98, 98, 102))
    p.soften(0.015)
    p.line([(-0.1, 0.93), (1.1, 0.93)], (206, 206, 200), 0.012)
    p.ellipse(0.5, 0.83, 0.95, 0.06, (62, 62, 66))  # shadow
    red, deep, dark = (190, 34, 30), (140, 22, 22), (34, 36, 40)
    p.box(0.06, 0.20, 0.66, 0.70, (232, 232, 228))  # the box
    p.box(0.06, 0.20, 0.66, 0.235, (200, 202, 202))
    for index in range(7):
        p.line([(0.14 + 0.074 * index, 0.24), (0.14 + 0.074 * index, 0.70)], (212, 212, 208), 0.004)
    p.box(0.05, 0.695, 0.92, 0.755, dark)  # chassis
    p.polygon([(0.68, 0.33), (0.83, 0.33), (0.90, 0.50), (0.945, 0.54), (0.945, 0.74), (0.68, 0.74)], red)
    p.polygon([(0.68, 0.62), (0.945, 0.62), (0.945, 0.74), (0.68, 0.74)], deep)
    p.polygon([(0.74, 0.37), (0.82, 0.37), (0.872, 0.50), (0.74, 0.50)], (66, 86, 104))  # window
    p.line([(0.725, 0.36), (0.725, 0.73)], deep, 0.006)  # door
    p.box(0.75, 0.545, 0.785, 0.558, (226, 226, 226))
    p.ellipse(0.935, 0.63, 0.028, 0.05, (250, 236, 180))  # lamp
    p.box(0.90, 0.71, 0.97, 0.755, (176, 178, 180))  # bumper
    for x in (0.18, 0.32, 0.80):
        p.ellipse(x, 0.765, 0.145, 0.145, (26, 26, 28))
        p.ellipse(x, 0.765, 0.075, 0.075, (168, 170, 172))
        p.ellipse(x, 0.765, 0.03, 0.03, (80, 82, 84))
    return p


DRAWINGS: dict[str, Callable[[], Picture]] = {"airplane": airplane, "ship": ship, "truck": truck}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw the sample images.")
    parser.add_argument("--out", type=Path, default=SAMPLES, help="default: %(default)s")
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        draw().finished().save(out / f"{name}.png")
        print(out / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
