"""`python -m training.evaluate vision`: how often a bundle is right on a folder of labelled images.

Files take the serving path: the same decoder, the same preprocessing, the bundle as it is.
Dimension letters: B batch, S side of the input, K classes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vision_zoo import bundle, images
from vision_zoo.bundle import VisionBundle
from vision_zoo.transforms import normalise, resize_and_crop

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


@dataclass(frozen=True)
class Sample:
    """One file and the index of its label in the bundle."""

    path: Path
    target: int


@dataclass(frozen=True)
class Figures:
    """top1 and top5 in percent; seconds of wall time for decoding and the network together."""

    top1: float
    top5: float
    images: int
    images_per_second: float
    seconds: float
    parameters: int
    flip: bool
    bundle: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, help="a bundle's folder, or the name of a shipped one")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="one folder of images per class, named as the labels"
    )
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode (default: %(default)s)")
    parser.add_argument(
        "--flip", action="store_true", help="average the probabilities of each image and its mirror image"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")


def run(args: argparse.Namespace) -> None:
    if args.batch_size < 1 or args.workers < 1:
        raise ValueError(f"--batch-size {args.batch_size} and --workers {args.workers} must be at least 1")
    loaded = bundle.load(find_bundle(args.bundle))
    figures = evaluate(loaded, samples(args.data, loaded.labels), args.batch_size, args.workers, args.flip)
    print(
        f"{figures.bundle}: top-1 {figures.top1:.2f} %, top-5 {figures.top5:.2f} % of {figures.images} images, "
        f"{figures.images_per_second:.0f} images/s, {figures.parameters:,} parameters"
    )
    if args.json:
        print(json.dumps(asdict(figures)))


def find_bundle(name: str) -> Path:
    """A folder, or the shipped bundle of that name."""
    if Path(name).is_dir():
        return Path(name)
    shipped = bundle.find(bundle.SHIPPED) if bundle.SHIPPED.is_dir() else []
    for folder in shipped:
        if folder.name == name:
            return folder
    raise ValueError(f"bundle {name!r} is neither a folder nor shipped; shipped are {[each.name for each in shipped]}")


def samples(data: Path, labels: tuple[str, ...]) -> list[Sample]:
    """Every image under DATA/<label>/, the class folders matched to the labels by name."""
    if not data.is_dir():
        raise ValueError(f"data folder {data} does not exist")
    folders = sorted(path for path in data.iterdir() if path.is_dir() and not path.name.startswith("."))
    if unknown := [folder.name for folder in folders if folder.name not in labels]:
        raise ValueError(f"{data} has folders {unknown[:5]} that the bundle has no label for; its labels are {labels}")
    found = [
        Sample(path, labels.index(folder.name))
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in EXTENSIONS
    ]
    if not found:
        raise ValueError(f"{data} holds no images; expected {data}/<label>/<image>, with labels {labels}")
    return found


@torch.inference_mode()
def evaluate(of: VisionBundle, found: list[Sample], batch_size: int, workers: int, flip: bool) -> Figures:
    """Raises ValueError naming a file that cannot be decoded."""
    start = time.perf_counter()
    top1 = top5 = 0
    with tqdm(total=len(found), unit="image", desc=of.name) as bar:
        for pixels, targets in _batches(of, found, batch_size, workers):
            ranked = _probabilities(of, pixels, flip).topk(min(5, len(of.labels))).indices  # (B, 5)
            hits = ranked == targets[:, None]
            top1 += int(hits[:, 0].sum())
            top5 += int(hits.sum())
            bar.update(len(targets))
    seconds = time.perf_counter() - start
    count = len(found)
    rate = round(count / seconds, 1)
    return Figures(100 * top1 / count, 100 * top5 / count, count, rate, round(seconds, 2), of.parameters, flip, of.name)


def _probabilities(of: VisionBundle, pixels: Tensor, flip: bool) -> Tensor:
    """uint8 (B, 3, S, S) -> (B, K)."""
    x = normalise(pixels.to(memory_format=torch.channels_last), of.preprocessing)
    probabilities: Tensor = of.model(x).softmax(dim=1)
    return (probabilities + of.model(x.flip(3)).softmax(dim=1)) / 2 if flip else probabilities


def _batches(of: VisionBundle, found: list[Sample], size: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """uint8 (B, 3, S, S) and targets (B,); while the network works on one batch the next is being decoded."""

    def read(sample: Sample) -> Tensor:
        try:
            return resize_and_crop(images.decode(sample.path.read_bytes()), of.preprocessing)
        except ValueError as error:
            raise ValueError(f"{sample.path}: {error}") from error

    groups = [found[start : start + size] for start in range(0, len(found), size)]
    with ThreadPoolExecutor(workers, "decode", torch.set_num_threads, (1,)) as pool:
        ahead = [pool.submit(read, sample) for sample in groups[0]]
        for group, following in zip(groups, [*groups[1:], []], strict=True):
            current, ahead = ahead, [pool.submit(read, sample) for sample in following]
            yield torch.stack([each.result() for each in current]), torch.tensor([each.target for each in group])
