"""Seeded batches of labelled images: pixels decoded once with the serving decoder and kept in memory as uint8.

Where they do not fit, they are read from their files each time. Small images are kept as the network reads them, and
augmentation belongs to the step (vision_module.py); photographs are kept larger and cropped at random as they are read
(vision_photos.py).

Dimension letters: B batch, N images, S side of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from training.trainer import LateLoader, rank_and_world
from training.vision_files import ImageFiles
from vision_zoo.images import decode
from vision_zoo.transforms import Preprocessing, resize_and_crop

MEMORY_LIMIT = 4 << 30  # bytes of pixels
VALIDATION_BATCH = 256
Batch = tuple[Tensor, Tensor]


class Readable(Protocol):
    """Images by index. What comes back depends on the epoch and the indices only."""

    def __len__(self) -> int: ...
    def read(self, epoch: int, indices: Tensor) -> Batch: ...


@dataclass(frozen=True)
class LabelledImages:
    """images: uint8 (N, 3, S, S); targets: int64 (N,), indices into labels."""

    images: Tensor
    targets: Tensor
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, epoch: int, indices: Tensor) -> Batch:
        """The same in every epoch."""
        return self.images[indices], self.targets[indices]


def read_image(path: Path, at_least: int) -> Tensor:
    """-> uint8 (3, H, W), a JPEG shrunk as serving shrinks it; ValueError names the file."""
    try:
        return decode(path.read_bytes(), at_least=at_least)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from None


def read_each(files: ImageFiles, place: Callable[[int, Path], object]) -> None:
    """place(index, path) of every file, on several threads, with a bar."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = pool.map(place, range(len(files)), files.paths)
        list(tqdm(found, "reading images", len(files), disable=None, unit="img"))


@dataclass(frozen=True)
class FiledImages:
    """Read from their files each time. ValueError names a file that will not do."""

    files: ImageFiles
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.files)

    def read(self, epoch: int, indices: Tensor) -> Batch:
        """uint8 (B, 3, S, S), int64 (B,); the same in every epoch."""
        chosen = indices.tolist()
        images = [as_served(self.files.paths[index], self.preprocessing) for index in chosen]
        return torch.stack(images), torch.tensor([self.files.targets[index] for index in chosen])


def load_images(
    files: ImageFiles, preprocessing: Preprocessing, limit: int = MEMORY_LIMIT
) -> LabelledImages | FiledImages:
    """Every image as the server would feed it to the network, kept decoded where all fit into `limit` bytes.

    ValueError names a file that will not do, where they are read at once.
    """
    size = preprocessing.size
    if len(files) * 3 * size * size > limit:
        return FiledImages(files, preprocessing)
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    read_each(files, lambda index, path: images[index].copy_(as_served(path, preprocessing)))
    return LabelledImages(images, torch.tensor(files.targets), files.labels)


def as_served(path: Path, preprocessing: Preprocessing) -> Tensor:
    """-> uint8 (3, S, S)."""
    return resize_and_crop(read_image(path, 2 * round(preprocessing.size / preprocessing.crop)), preprocessing)


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


class EpochBatches(SeededBatches):
    """Each batch with its epoch, because the data may be read in another process, which has no other way to know it."""

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:  # type: ignore[override]
        return ((self.epoch, indices) for indices in super().__iter__())


class _Batches(Dataset[Batch]):
    def __init__(self, data: Readable) -> None:
        self.data = data

    def __getitem__(self, draw: tuple[int, Tensor]) -> Batch:
        return self.data.read(*draw)


class VisionData(pl.LightningDataModule):
    """Batches of (images uint8 (B, 3, S, S), targets int64 (B,)). workers: processes that read, 0 for none."""

    def __init__(self, train: Readable, validation: Readable, batch_size: int, seed: int, workers: int = 0) -> None:
        super().__init__()
        self.train, self.validation, self.batch_size, self.seed = train, validation, batch_size, seed
        self.workers = workers

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.train, self.batch_size, shuffle=True, workers=self.workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        workers = self.workers if isinstance(self.validation, FiledImages) else 0
        return self._loader(self.validation, VALIDATION_BATCH, shuffle=False, workers=workers)

    def _loader(self, data: Readable, batch_size: int, shuffle: bool, workers: int) -> DataLoader[Batch]:
        batches = EpochBatches(len(data), batch_size, self.seed, shuffle)
        return LateLoader(
            _Batches(data), sampler=batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0
        )
