"""Decoded images to what a network reads: resize, crop, scale; serving and training call the same functions.

Dimension letters: B batch, H height, W width, S side of the network's square input.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

RESIZE_MODES = ("exact", "shorter-side")
INTERPOLATIONS = ("bilinear", "bicubic")
NORMALISATIONS = ("whitening", "mean-std")


@dataclass(frozen=True)
class Preprocessing:
    """Everything between uint8 pixels and the network's input; kept in the bundle and restated nowhere.

    size: S in pixels. resize "exact" squeezes the image to S x S; "shorter-side" keeps the proportions, brings the
    shorter side to round(S / crop) and cuts the centre out. normalisation "whitening" subtracts each image's own mean
    and divides by its own deviation (CIFAR); "mean-std" uses the fixed `mean` and `std` of pixels in [0, 1].
    """

    size: int = 32
    resize: str = "exact"
    crop: float = 1.0
    interpolation: str = "bicubic"
    normalisation: str = "whitening"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        _choose("resize", self.resize, RESIZE_MODES)
        _choose("interpolation", self.interpolation, INTERPOLATIONS)
        _choose("normalisation", self.normalisation, NORMALISATIONS)
        if not 1 <= self.size <= 4096:
            raise ValueError(f"size {self.size} must be 1 to 4096 pixels")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop {self.crop} must be above 0 and at most 1")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} need three channels each, every std above 0")

    @property
    def identity(self) -> str:
        """SHA-256, in hexadecimal, of the fields as JSON: equal where two models read the same pixels."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _choose(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} {value!r} is unknown; choose from {choices}")


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, H, W), the memory format kept."""
    x = images.to(torch.float32) / 255
    if preprocessing.normalisation == "mean-std":
        mean = x.new_tensor(preprocessing.mean).view(1, 3, 1, 1)
        return (x - mean) / x.new_tensor(preprocessing.std).view(1, 3, 1, 1)
    std, mean = torch.std_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    # A flat image has no deviation; the floor is that of one pixel value in 3HW (as in TensorFlow's standardisation).
    return (x - mean) / std.clamp_min(x[0].numel() ** -0.5)


def resize_and_crop(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, S, S)."""
    size = preprocessing.size
    if preprocessing.resize == "exact":
        return _resize(image, size, preprocessing.interpolation)
    # Cut the square out first: the work then does not grow with the proportions (a 1 x 10,000 image is legal).
    image = _centre(image, min(image.shape[1:]))
    return _centre(_resize(image, round(size / preprocessing.crop), preprocessing.interpolation), size)


def _centre(image: Tensor, side: int) -> Tensor:
    """(3, H, W) -> (3, side, side)."""
    top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
    return image[:, top : top + side, left : left + side]


def _resize(image: Tensor, side: int, interpolation: str) -> Tensor:
    """(3, H, W) -> (3, side, side). The longer axis goes first, so that nothing between is larger than either end."""
    height, width = image.shape[1:]
    for shape in ((side, width) if height > width else (height, side), (side, side)):
        if image.shape[1:] != shape:
            image = F.interpolate(image[None], shape, mode=interpolation, antialias=True)[0]
    return image
