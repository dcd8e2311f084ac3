"""`python -m training.evaluate vision`: how often a bundle is right on labelled images, and a report on how it errs.

python -m training.evaluate vision --bundle nasnet-a-cifar10 --data cifar10/test --json
python -m training.evaluate vision --bundle runs/vision/bundle --data test.csv --report runs/vision/report
python -m training.evaluate vision --bundle runs/vision/bundle --data test.csv --precision bf16

Files take the serving path: the same decoder, the same preprocessing, the bundle as it is. In another precision than
eager the network is the one that would be served in it, and its labels are compared with those of eager.
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
from torch import Tensor, nn
from tqdm import tqdm

from training import vision_report
from training.vision_figures import Answers
from training.vision_files import ImageFiles, read_files
from vision_zoo import bundle, images, precision
from vision_zoo.bundle import VisionBundle
from vision_zoo.transforms import normalise, resize_and_crop


@dataclass(frozen=True)
class Sample:
    """One file and the index of its label in the bundle."""

    path: Path
    target: int


@dataclass(frozen=True)
class Figures:
    """top1 and top5 in percent; seconds of wall time for decoding and the network together.

    ece: expected calibration error, 0 to 1, of the probabilities as they are served, at `temperature`.
    agreement: percent of the images with the same first label in `precision` as eager; None for eager itself.
    """

    top1: float
    top5: float
    images: int
    images_per_second: float
    seconds: float
    parameters: int
    flip: bool
    bundle: str
    ece: float
    temperature: float
    precision: str
    agreement: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, help="a bundle's folder, or the name of a shipped one")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR|CSV",
        help="one folder of images per class, named as the labels, or a table with the columns path and label",
    )
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode (default: %(default)s)")
    parser.add_argument(
        "--flip", action="store_true", help="average the probabilities of each image and its mirror image"
    )
    parser.add_argument(
        "--precision",
        choices=(precision.AUTO, *precision.PRECISIONS),
        default=precision.EAGER,
        help="auto: what this machine serves it in (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write pictures, tables and a page to this folder")
    parser.add_argument("--worst", type=int, default=24, help="images on the contact sheet (default: %(default)s)")
    parser.add_argument("--curves", type=Path, metavar="DIR", help="the training's --out, for its curves in the report")


def run(args: argparse.Namespace) -> None:
    if args.batch_size < 1 or args.workers < 1 or args.worst < 1:
        raise ValueError(
            f"--batch-size {args.batch_size}, --workers {args.workers} and --worst {args.worst} must be at least 1"
        )
    loaded = bundle.load(find_bundle(args.bundle))
    files = read_files(args.data, loaded.labels)
    network, served = precision.for_serving(loaded.model, loaded.preprocessing.size, args.precision)
    start = time.perf_counter()
    answers = answer(loaded, files, args.batch_size, args.workers, args.flip, network)
    seconds, agreement = time.perf_counter() - start, None
    if served != precision.EAGER:
        exact = answer(loaded, files, args.batch_size, args.workers, args.flip)
        agreement = 100 * float((answers.choices == exact.choices).double().mean())
    figures = measure(loaded, answers, seconds, args.flip, served, agreement)
    print(
        f"{figures.bundle}: top-1 {figures.top1:.2f} %, top-5 {figures.top5:.2f} % of {figures.images} images, "
        f"{figures.images_per_second:.0f} images/s, {figures.parameters:,} parameters, "
        f"calibration error {figures.ece:.4f}"
    )
    if agreement is not None:
        print(f"{served}: the first label is that of eager for {agreement:.2f} % of the images")
    if args.report:
        vision_report.write(answers, f"{loaded.name} on {args.data.name}", args.report, args.worst, args.curves)
        print(f"wrote {args.report / 'report.html'}")
    if args.json:
        print(json.dumps(asdict(figures)))


def find_bundle(name: str) -> Path:
    """A folder, or the shipped bundle of that name."""
    if (folder := bundle.locate(name)) is None:
        names = [each.name for each in bundle.shipped()]
        raise ValueError(f"bundle {name!r} is neither a folder nor shipped; shipped are {names}")
    return folder


def samples(data: Path, labels: tuple[str, ...]) -> list[Sample]:
    """Every image of `data`, with the index of its label. Raises ValueError."""
    files = read_files(data, labels)
    return [Sample(path, target) for path, target in zip(files.paths, files.targets, strict=True)]


def evaluate(of: VisionBundle, found: list[Sample], batch_size: int, workers: int, flip: bool) -> Figures:
    """Raises ValueError naming a file that cannot be decoded."""
    files = ImageFiles(tuple(each.path for each in found), tuple(each.target for each in found), of.labels)
    start = time.perf_counter()
    answers = answer(of, files, batch_size, workers, flip)
    return measure(of, answers, time.perf_counter() - start, flip, precision.EAGER, None)


@torch.inference_mode()
def answer(
    of: VisionBundle,
    files: ImageFiles,
    batch_size: int,
    workers: int,
    flip: bool = False,
    network: nn.Module | None = None,
) -> Answers:
    """What the bundle says of every file. Raises ValueError naming a file that cannot be decoded.

    network: the bundle's in another precision; None for the bundle as it is.
    """
    network = network or of.model
    found = []
    with tqdm(total=len(files), unit="image", desc=of.name, disable=None) as bar:
        for pixels in _batches(of, files, batch_size, workers):
            found.append(_probabilities(of, network, pixels, flip).log().clamp_min(torch.finfo(torch.float32).min))
            bar.update(len(pixels))
    return Answers(files, torch.cat(found).clone(), of.temperature)


def measure(
    of: VisionBundle, answers: Answers, seconds: float, flip: bool, served: str, agreement: float | None
) -> Figures:
    count = len(answers.files)
    return Figures(
        top1=answers.top(1),
        top5=answers.top(5),
        images=count,
        images_per_second=round(count / seconds, 1),
        seconds=round(seconds, 2),
        parameters=of.parameters,
        flip=flip,
        bundle=of.name,
        ece=answers.calibration_error(of.temperature),
        temperature=of.temperature,
        precision=served,
        agreement=agreement,
    )


def _probabilities(of: VisionBundle, network: nn.Module, pixels: Tensor, flip: bool) -> Tensor:
    """uint8 (B, 3, S, S) -> float64 (B, K), without the bundle's temperature."""
    x = normalise(pixels.to(memory_format=torch.channels_last), of.preprocessing)
    probabilities: Tensor = network(x).double().softmax(dim=1)
    return (probabilities + network(x.flip(3)).double().softmax(dim=1)) / 2 if flip else probabilities


def _batches(of: VisionBundle, files: ImageFiles, size: int, workers: int) -> Iterator[Tensor]:
    """uint8 (B, 3, S, S); while the network works on one batch the next is being decoded."""
    at_least = 2 * round(of.preprocessing.size / of.preprocessing.crop)  # as Classifier.read

    def read(path: Path) -> Tensor:
        try:
            return resize_and_crop(images.decode(path.read_bytes(), at_least=at_least), of.preprocessing)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    groups = [files.paths[start : start + size] for start in range(0, len(files), size)]
    with ThreadPoolExecutor(workers, "decode", torch.set_num_threads, (1,)) as pool:
        ahead = [pool.submit(read, path) for path in groups[0]]
        for following in [*groups[1:], ()]:
            current, ahead = ahead, [pool.submit(read, path) for path in following]
            yield torch.stack([each.result() for each in current])
