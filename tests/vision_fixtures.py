"""Toy bundles whose answers can be worked out by hand, and images in every format."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vision_zoo import zoo
from vision_zoo.bundle import VisionBundle
from vision_zoo.nasnet import NASNetConfig
from vision_zoo.transforms import Preprocessing

COLOURS = ("red", "green", "blue")
PIXELS: dict[str, tuple[int, int, int]] = {"red": (250, 5, 5), "green": (5, 250, 5), "blue": (5, 5, 250)}
TINY = NASNetConfig(cells=1, filters=24, num_classes=3, stem_stride=2, auxiliary=False)


class MeanColour(nn.Module):
    """Logits are ten times the mean of each channel: the label is the image's strongest colour."""

    def forward(self, images: Tensor) -> Tensor:
        return 10 * images.mean(dim=(2, 3))


def colour_bundle(name: str = "colours", model: nn.Module | None = None) -> VisionBundle:
    return VisionBundle(
        name=name,
        version="3",
        folder=Path(name),
        architecture=zoo.NASNetArchitecture(TINY),
        model=(model or MeanColour()).eval(),
        labels=COLOURS,
        preprocessing=Preprocessing(size=8, normalisation="mean-std"),
        card="",
    )


def picture(colour: str = "red", size: tuple[int, int] = (20, 12), kind: str = "PNG", **settings: Any) -> bytes:
    """The bytes of a plain picture of width x height."""
    return encoded(Image.new("RGB", size, PIXELS[colour]), kind, **settings)


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels_of(image: Image.Image) -> Tensor:
    """uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
