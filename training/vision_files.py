"""Which labelled images there are: a folder per class or a CSV table; split by class, and weighed by class.

FOLDER/<class>/<image>, nested as deep as one likes, or FILE.csv with the columns `path` (relative to the file) and
`label`. Nothing is decoded here. Dimension letters: N images, K classes.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
COLUMNS = ["path", "label"]


@dataclass(frozen=True)
class ImageFiles:
    """paths[i] shows labels[targets[i]]."""

    paths: tuple[Path, ...]
    targets: tuple[int, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Sequence[int]) -> ImageFiles:
        return ImageFiles(
            tuple(self.paths[index] for index in indices), tuple(self.targets[index] for index in indices), self.labels
        )


def read_files(source: Path, labels: Sequence[str] | None = None) -> ImageFiles:
    """A folder or a CSV file. labels: those allowed, in their order; None: those found, sorted. Raises ValueError."""
    if source.suffix.lower() == ".csv":
        rows = _table(source)
        named = {label for _, label in rows}
    else:
        rows, named = _folder(source)
    known = tuple(sorted(named) if labels is None else labels)
    if unknown := sorted(named - set(known)):
        what = "rows with labels" if source.suffix.lower() == ".csv" else "folders"
        raise ValueError(f"{source} has {what} {unknown[:5]} that the bundle has no label for; its labels are {known}")
    if not rows:
        shown = f", with labels {known}" if labels is not None else ""
        raise ValueError(f"{source} holds no images; expected {source}/<label>/<image>{shown}")
    if labels is None and (empty := sorted(named - {label for _, label in rows})):
        raise ValueError(f"{source} has folders without images: {empty[:5]}; every class needs some")
    index = {label: place for place, label in enumerate(known)}
    return ImageFiles(tuple(path for path, _ in rows), tuple(index[label] for _, label in rows), known)


def write_files(files: ImageFiles, path: Path) -> None:
    """A CSV file that `read_files` reads, with absolute paths."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for image, target in zip(files.paths, files.targets, strict=True):
            writer.writerow([image.resolve(), files.labels[target]])


def held_out(count: float, images: int) -> int:
    """`--validation`: a share below 1, or a number of images -> a number of images. Raises ValueError."""
    number = round(count * images) if 0 < count < 1 else int(count)
    if not 0 < number < images:
        raise ValueError(f"--validation {count:g} must be above 0 and below the number of images, {images}")
    return number


def split(files: ImageFiles, count: float, seed: int) -> tuple[ImageFiles, ImageFiles]:
    """-> (the rest, about `count` images drawn by seed), each class in its proportion. Raises ValueError.

    Every class keeps an image for training, and where `count` allows it a class of at least two is on both sides.
    """
    number = held_out(count, len(files))
    shares = _shares(Counter(files.targets), number, len(files))
    chosen: set[int] = set()
    draw = random.Random(seed)
    for target, share in sorted(shares.items()):
        chosen.update(draw.sample([i for i, other in enumerate(files.targets) if other == target], share))
    return files.take([i for i in range(len(files)) if i not in chosen]), files.take(sorted(chosen))


def class_weights(files: ImageFiles) -> Tensor:
    """(K,): the loss of a class counts in inverse proportion to its images; their mean over the images is 1."""
    counts = torch.bincount(torch.tensor(files.targets), minlength=len(files.labels))
    if (missing := [label for label, n in zip(files.labels, counts.tolist(), strict=True) if n == 0])[:1]:
        raise ValueError(f"class weights need images of every class; there are none of {missing[:5]}")
    return len(files) / (len(files.labels) * counts.float())


def _shares(sizes: Counter[int], number: int, total: int) -> dict[int, int]:
    """Of `number` images those of each class: never all of them, and where `number` allows it at least one."""
    exact = {target: size * number / total for target, size in sizes.items()}
    least = int(number >= len(sizes))
    shares = {target: min(max(least, int(exact[target])), size - 1) for target, size in sizes.items()}
    while (missing := number - sum(shares.values())) > 0:
        open_to = [target for target, size in sizes.items() if shares[target] < size - 1]
        if not open_to:
            raise ValueError(
                f"--validation {number} leaves classes without training images; {total - len(sizes)} can be"
            )
        ranked = sorted(open_to, key=lambda each: (shares[each] - exact[each], each))
        for target in ranked[:missing]:
            shares[target] += 1
    while sum(shares.values()) > number:
        shares[max(shares, key=lambda each: (shares[each] - exact[each] if shares[each] > least else -1.0, -each))] -= 1
    return shares


def _folder(source: Path) -> tuple[list[tuple[Path, str]], set[str]]:
    """-> (path, label) of every image, and the names of all class folders."""
    if not source.is_dir():
        raise ValueError(f"data folder {source} does not exist; give one folder of images per class, or a .csv file")
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [(path, folder.name) for folder in folders for path in _images(folder)], {each.name for each in folders}


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in EXTENSIONS)


def _table(source: Path) -> list[tuple[Path, str]]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = sorted(set(COLUMNS) - set(reader.fieldnames or []))
            # what a short row lacks is None
            rows = [(source.parent / (row.get("path") or ""), row.get("label") or "") for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{source} cannot be read: {reason}") from None
    if missing:
        raise ValueError(f"{source} has no column {missing}; its first line must name {COLUMNS}")
    for line, (path, label) in enumerate(rows, start=2):
        if not label or not path.is_file():
            raise ValueError(f"{source}, line {line}: {path} is not a file, or has no label ({label!r})")
    return rows
