"""Labelled image folders for training: decoded once, kept in memory as uint8, cut into seeded batches.

Layout: FOLDER/<class>/<image>, as torchvision's ImageFolder. Dimension letters: B batch, S side of the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from training.trainer import rank_and_world
from vision_zoo.images import decode
from vision_zoo.transforms import Preprocessing, resize_and_crop

MEMORY_LIMIT = 4 << 30  # bytes of pixels


@dataclass(frozen=True)
class LabelledImages:
    """images: uint8 (N, 3, S, S); targets: int64 (N,), indices into labels."""

    images: Tensor
    targets: Tensor
    labels: tuple[str, ...]

    def take(self, indices: Tensor) -> LabelledImages:
        return LabelledImages(self.images[indices], self.targets[indices], self.labels)


def load_folder(folder: Path, preprocessing: Preprocessing) -> LabelledImages:
    """Decodes every image with the serving path's decoder. ValueError names a folder or file that will not do."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; it must hold one folder of images per class")
    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} must hold one folder of images per class: {error}") from None
    size = preprocessing.size
    if (needed := len(found.samples) * 3 * size * size) > MEMORY_LIMIT:
        raise ValueError(
            f"{len(found.samples)} images of {size} pixels need {needed >> 20} MiB; at most {MEMORY_LIMIT >> 20}"
        )
    images = torch.empty(len(found.samples), 3, size, size, dtype=torch.uint8)

    def place(index: int) -> None:
        path = Path(found.samples[index][0])
        try:
            pixels = decode(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        images[index] = resize_and_crop(pixels, preprocessing)

    with ThreadPoolExecutor() as pool:
        list(tqdm(pool.map(place, range(len(images))), f"reading {folder.name}", len(images), disable=None, unit="img"))
    return LabelledImages(images, torch.tensor(found.targets), tuple(found.classes))


def hold_out(data: LabelledImages, count: int, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """-> (the rest, `count` images drawn by seed)."""
    if not 0 < count < len(data.targets):
        raise ValueError(f"--validation {count} must be above 0 and below the number of images, {len(data.targets)}")
    order = torch.randperm(len(data.targets), generator=torch.Generator().manual_seed(seed))
    return data.take(order[count:]), data.take(order[:count])


class SeededBatches:
    """Indices of each batch: a permutation by (seed, epoch), cut into equal shares for the ranks.

    Every rank gets the same number of full batches; the images left over come in another epoch's order.
    """

    def __init__(self, count: int, batch_size: int, seed: int, shuffle: bool) -> None:
        self.count, self.seed, self.shuffle, self.epoch = count, seed, shuffle, 0
        self.rank, self.world = rank_and_world()
        self.batch_size = batch_size
        if shuffle and batch_size * self.world > count:
            raise ValueError(f"batch size {batch_size} on {self.world} processes exceeds the {count} training images")

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return self.count // (self.batch_size * self.world)
        return math.ceil(len(range(self.rank, self.count, self.world)) / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shuffle:
            for start in range(self.rank, self.count, self.world * self.batch_size):
                stop = min(self.count, start + self.world * self.batch_size)
                yield torch.arange(start, stop, self.world)
            return
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed * 100_003 + self.epoch))
        step = self.batch_size * self.world
        for start in range(0, len(self) * step, step):
            yield order[start + self.rank : start + step : self.world]


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, data: LabelledImages) -> None:
        self.data = data

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.data.images[indices], self.data.targets[indices]


class VisionData(pl.LightningDataModule):
    """Batches of (images uint8 (B, 3, S, S), targets int64 (B,)). Augmentation belongs to the step, not to the data."""

    def __init__(self, train: LabelledImages, validation: LabelledImages, batch_size: int, seed: int) -> None:
        super().__init__()
        self.train, self.validation, self.batch_size, self.seed = train, validation, batch_size, seed

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader(self.validation, 256, shuffle=False)

    def _loader(self, data: LabelledImages, batch_size: int, shuffle: bool) -> DataLoader[tuple[Tensor, Tensor]]:
        batches = SeededBatches(len(data.targets), batch_size, self.seed, shuffle)
        return DataLoader(_Batches(data), sampler=batches, batch_size=None)
