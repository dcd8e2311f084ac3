"""Photographs for training: of each, in each epoch, another crop, mirrored or not, in slightly other colours.

Source of the crops: Szegedy et al. 2014, section 6 (here with a larger smallest area, for small sets). What is drawn
for an image is a function of (seed, epoch, index), whoever reads it. Letters: B batch, S side of the network's input.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

from training.vision_data import MEMORY_LIMIT, Batch, read_each, read_image
from training.vision_files import ImageFiles
from vision_zoo.transforms import Preprocessing

ROOM = 1.5  # shorter side of a kept photograph over S: a crop of half the picture is then still not enlarged
LONGEST = 3.0  # longer side over the shorter one; the ends of what is longer are cut off


@dataclass(frozen=True)
class PhotoOptions:
    """crop_area: smallest share of the picture that a crop shows. colour: brightness, contrast and saturation vary by
    this share to both sides. rotation: degrees to both sides."""

    crop_area: float = 0.35
    flip: bool = True
    colour: float = 0.2
    rotation: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.crop_area <= 1:
            raise ValueError(f"crop area {self.crop_area} must be above 0 and at most 1")
        if not 0 <= self.colour < 1 or not 0 <= self.rotation <= 180:
            raise ValueError(f"colour {self.colour} must be 0 to 1, rotation {self.rotation} 0 to 180 degrees")

    def transform(self, size: int) -> v2.Transform:
        """uint8 (3, H, W) -> uint8 (3, S, S), by torch's generator."""
        steps: list[v2.Transform] = [v2.RandomResizedCrop(size, (self.crop_area, 1.0), antialias=True)]
        if self.rotation:
            steps.append(v2.RandomRotation(self.rotation, InterpolationMode.BILINEAR))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.colour:
            steps.append(v2.ColorJitter(self.colour, self.colour, self.colour))
        return v2.Compose(steps)


@dataclass(frozen=True)
class Photos:
    """Kept decoded where they fit into the memory limit, else read from their files each time."""

    files: ImageFiles
    size: int
    seed: int
    options: PhotoOptions
    kept: tuple[Tensor, ...] = field(default=(), repr=False)  # uint8 (3, H, W) each, or none

    def __len__(self) -> int:
        return len(self.files)

    def read(self, epoch: int, indices: Tensor) -> Batch:
        """-> uint8 (B, 3, S, S), int64 (B,)."""
        transform = self.options.transform(self.size)
        images = [self._draw(transform, epoch, index) for index in indices.tolist()]
        return torch.stack(images), torch.tensor([self.files.targets[index] for index in indices.tolist()])

    def _draw(self, transform: v2.Transform, epoch: int, index: int) -> Tensor:
        pixels = (
            self.kept[index] if self.kept else shrink(read_image(self.files.paths[index], _side(self.size)), self.size)
        )
        with torch.random.fork_rng(devices=[]):  # the step's own draws do not depend on who read its images
            torch.manual_seed(((self.seed * 1_000_003 + epoch) * 10_000_019 + index) % 2**63)
            drawn: Tensor = transform(pixels)
        return drawn


def load_photos(
    files: ImageFiles, preprocessing: Preprocessing, options: PhotoOptions, seed: int, limit: int = MEMORY_LIMIT
) -> Photos:
    """limit: bytes of pixels that may be kept. ValueError names a file that will not do, where all are read at once."""
    size = preprocessing.size
    if len(files) * 3 * _side(size) ** 2 * 4 / 3 > limit:  # of the usual proportions
        return Photos(files, size, seed, options)
    kept: list[Tensor] = [torch.empty(0)] * len(files)
    read_each(files, lambda index, path: kept.__setitem__(index, shrink(read_image(path, _side(size)), size)))
    return Photos(files, size, seed, options, tuple(kept))


def shrink(image: Tensor, size: int) -> Tensor:
    """uint8 (3, H, W) -> the same with a shorter side of at most ROOM x size and a longer one of LONGEST times that."""
    shorter = min(image.shape[1:])
    cut = round(LONGEST * shorter)
    if max(image.shape[1:]) > cut:
        image = v2.functional.center_crop(image, [min(side, cut) for side in image.shape[1:]])
    if shorter <= _side(size):
        return image.contiguous()
    shape = [round(side * _side(size) / shorter) for side in image.shape[1:]]
    return F.interpolate(image[None], shape, mode="bilinear", antialias=True)[0]


def _side(size: int) -> int:
    return round(ROOM * size)
