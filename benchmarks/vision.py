"""How fast images are classified: timm's network as its user runs it, ours, and ours over gRPC, with the same weights.

python -m benchmarks.vision --images PHOTOGRAPHS --weights nasnetalarge.safetensors --json
python -m benchmarks.vision --json
python -m benchmarks.vision --filters 192 --image-size 64 --repeats 3 --agreement-images 16    # a rehearsal

Three contestants take turns in one run on --cores cores, so that other work on the machine hits all alike; a turn is
one batch, and medians count:

timm_eager    timm.create_model(NAME).eval(), inference_mode, fp32, contiguous: pixels to probabilities
ours          the bundle in-process, by the classifier that serves it: from the same pixels, through its queue
grpc          JPEG files from a client process to a server process with that bundle: a call an image, all of a batch at
              once, so with decoding, resizing and the network's loopback

ratio_timm_eager is the throughput of ours over timm's, the lower of both batch sizes; grpc_overhead is how much longer
an image takes over gRPC than in-process, the higher of both. agreement is the share of images for which the two
networks have the same most probable label. Without --weights they are random, scaled so that every logit has variance 1
over some pictures: answers then differ between images, but are closer to each other than those of a trained network,
so roundings change more of them. Only with trained weights and photographs is agreement what a user would see.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import machine, vision_images, vision_networks
from benchmarks.results import Bar
from benchmarks.server_process import ServerProcess, command
from benchmarks.streaming import numbers, rounded
from benchmarks.workers import Worker
from vision_zoo import precision
from vision_zoo.bundle import VisionBundle
from vision_zoo.classifier import Classifier
from vision_zoo.nasnet import LARGE
from vision_zoo.transforms import Preprocessing, normalise

THEIRS, THEIRS_CHANNELS_LAST, OURS, GRPC = "timm_eager", "timm_channels_last", "ours", "grpc"
SCALED_ON = 16  # pictures that random weights are scaled on
BARS = (
    Bar("times timm eager's throughput: at least 2.5", "ratio_timm_eager", at_least=2.5),
    Bar("added by gRPC: at most 0.1", "grpc_overhead", at_most=0.1),
    Bar("same most probable label as timm's in fp32: at least 0.99", "agreement", at_least=0.99),
)

Turn: TypeAlias = Callable[[Sequence[int]], float]  # classifies the images of these numbers together -> seconds


@dataclass(frozen=True)
class Images:
    """Files, and each as the networks read it: uint8 (3, S, S)."""

    files: Sequence[bytes]
    pixels: Sequence[Tensor]


class Theirs:
    """A network of timm in the memory format that is asked for."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, memory_format: torch.memory_format) -> None:
        self._model, self._preprocessing, self._format = model, preprocessing, memory_format

    @torch.inference_mode()
    def probabilities(self, pixels: Sequence[Tensor]) -> Tensor:
        """B times uint8 (3, S, S) -> (B, K)."""
        images = normalise(torch.stack([*pixels]), self._preprocessing).contiguous(memory_format=self._format)
        logits: Tensor = self._model(images)
        return logits.softmax(dim=1)


def in_process(classifier: Classifier, pixels: Sequence[Tensor]) -> Tensor:
    """B times uint8 (3, S, S) -> (B, K), as served."""
    return torch.stack([future.result() for future in [classifier.submit(each) for each in pixels]])


def timed(probabilities: Callable[[Sequence[Tensor]], Tensor], images: Images) -> Turn:
    def turn(chosen: Sequence[int]) -> float:
        pixels = [images.pixels[number] for number in chosen]
        begin = time.perf_counter()
        probabilities(pixels)
        return time.perf_counter() - begin

    return turn


def take_turns(turns: Mapping[str, Turn], batches: Sequence[int], images: int, repeats: int) -> dict[str, list[float]]:
    """Seconds an image of every turn, by `NAME_batchN`, after one turn each that does not count."""
    found: dict[str, list[float]] = {}
    for repeat in tqdm(range(repeats + 1), "turns", disable=None, leave=False):
        for batch in batches:
            chosen = [(repeat * batch + number) % images for number in range(batch)]
            for name, turn in turns.items():
                seconds = turn(chosen) / batch
                if repeat:
                    found.setdefault(f"{name}_batch{batch}", []).append(seconds)
    return found


def figures(seconds: Mapping[str, Sequence[float]], batches: Sequence[int]) -> dict[str, Any]:
    """Medians, and what they say."""
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    found: dict[str, Any] = {f"seconds_{name}": median for name, median in medians.items()}
    ratios = {batch: medians[f"{THEIRS}_batch{batch}"] / medians[f"{OURS}_batch{batch}"] for batch in batches}
    added = {batch: medians[f"{GRPC}_batch{batch}"] / medians[f"{OURS}_batch{batch}"] - 1 for batch in batches}
    found |= {f"ratio_timm_eager_batch{batch}": ratio for batch, ratio in ratios.items()}
    found |= {f"grpc_overhead_batch{batch}": share for batch, share in added.items()}
    return found | {"ratio_timm_eager": min(ratios.values()), "grpc_overhead": max(added.values())}


def agreement(theirs: Theirs, classifier: Classifier, pixels: Sequence[Tensor], batch: int) -> dict[str, Any]:
    """How often both have the same first label, and how far the probabilities of the first label are apart at most."""
    same, apart, labels = 0, 0.0, set()
    for start in tqdm(range(0, len(pixels), batch), "agreement", disable=None, leave=False):
        expected = theirs.probabilities(pixels[start : start + batch])
        found = in_process(classifier, pixels[start : start + batch])
        first = expected.argmax(1)
        same += int((found.argmax(1) == first).sum())
        apart = max(apart, float((found - expected).gather(1, first[:, None]).abs().max()))
        labels |= {*first.tolist()}
    return {
        "agreement": same / len(pixels),
        "agreement_images": len(pixels),
        "agreement_labels": len(labels),
        "largest_difference_of_probability": apart,
    }


@contextmanager
def confined(cores: int) -> Iterator[None]:
    """This process, and those that it starts, to so many cores. ValueError where there are fewer."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    if not 1 <= cores <= len(before):
        raise ValueError(f"--cores is {cores}: 1 to {len(before)}, which this process may use")
    os.sched_setaffinity(0, sorted(before)[:cores])
    torch.set_num_threads(cores)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, before)


def make_bundle(args: argparse.Namespace, folder: Path) -> tuple[nn.Module, VisionBundle]:
    """timm's network, and ours with its weights."""
    theirs = vision_networks.create_theirs(args.model, args.weights, args.filters)
    made = vision_networks.create_ours(theirs, folder, args.image_size)
    if args.weights is None:
        pixels = _read(vision_images.photographs(args.images, SCALED_ON, args.seed), made)
        vision_networks.spread(theirs, torch.stack([*pixels]), made.preprocessing)
        made = vision_networks.create_ours(theirs, folder, args.image_size)
    return theirs, made


def _read(files: Sequence[bytes], bundle: VisionBundle) -> list[Tensor]:
    with closing(Classifier(bundle, precision="eager")) as classifier:
        return [classifier.read(file) for file in tqdm(files, "images", disable=None, leave=False)]


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model, bundle = make_bundle(args, folder / "models" / "network")
    count = max(args.agreement_images, *args.batches)
    files = vision_images.photographs(args.images, count, args.seed)
    images = Images(files, _read(files, bundle))
    (folder / "images").mkdir()
    for number, file in enumerate(files[: max(args.batches) * 4]):
        (folder / "images" / f"{number:04}.jpg").write_bytes(file)
    timed_images = min(len(files), max(args.batches) * 4)
    eager = Theirs(model, bundle.preprocessing, torch.contiguous_format)
    server = ["env", f"OMP_NUM_THREADS={args.cores}", *command(folder / "models", 4 * max(args.batches), None)]
    server += ["--vision-precision", args.precision]
    with (
        closing(Classifier(bundle, precision=args.precision, threads=args.cores)) as classifier,
        ServerProcess(server, folder / "server.log") as serving,
        Worker(
            "benchmarks.vision_client",
            ["--server", serving.address, "--images", str(folder / "images"), "--model", bundle.name],
            folder / "client.log",
        ) as client,
    ):
        turns: dict[str, Turn] = {THEIRS: timed(eager.probabilities, images)}
        if args.channels_last:
            # of a copy: the plain network has to stay contiguous
            copied = vision_networks.create_theirs(args.model, None, args.filters)
            copied.load_state_dict(model.state_dict())
            rearranged = copied.to(memory_format=torch.channels_last)
            other = Theirs(rearranged, bundle.preprocessing, torch.channels_last)
            turns[THEIRS_CHANNELS_LAST] = timed(other.probabilities, images)
        turns[OURS] = timed(lambda pixels: in_process(classifier, pixels), images)
        turns[GRPC] = lambda chosen: float(client.ask({"images": [*chosen]})["seconds"])
        found = {"precision": classifier.precision, "parameters": bundle.parameters}
        found |= figures(take_turns(turns, args.batches, timed_images, args.repeats), args.batches)
        first = [*range(max(args.batches))]
        served = client.ask({"images": [number % timed_images for number in first]})["labels"]
        here = in_process(classifier, [images.pixels[number % timed_images] for number in first]).argmax(1).tolist()
        found["grpc_agreement"] = sum(map(int.__eq__, served, here)) / len(first)
        return found | agreement(eager, classifier, images.pixels[: args.agreement_images], max(args.batches))


def report(found: Mapping[str, Any], batches: Sequence[int]) -> None:
    names = [
        name for name in (THEIRS, THEIRS_CHANNELS_LAST, OURS, GRPC) if f"seconds_{name}_batch{batches[0]}" in found
    ]
    print("seconds an image".ljust(20) + "".join(f"{f'batch {batch}':>12}" for batch in batches))
    for name in names:
        label = f"{name}, {found['precision']}" if name in (OURS, GRPC) else name
        print(f"{label:20}" + "".join(f"{found[f'seconds_{name}_batch{batch}']:12.4f}" for batch in batches))
    apart = f"probabilities at most {found['largest_difference_of_probability']:.4f} apart"
    print(
        f"agreement over {found['agreement_images']} {found['agreement_on']}, {found['weights']} weights: "
        f"{found['agreement_labels']} different labels, {apart}"
    )
    for bar in BARS:
        print(f"{'met   ' if bar.met(found) else 'MISSED'} {bar.text}: {found[bar.key]:.4f}")


def build_parser() -> argparse.ArgumentParser:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vision", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--model", default=vision_networks.NASNET_LARGE, metavar="NAME", help="of timm (default: %(default)s)")
    add("--weights", type=Path, metavar="FILE", help="its state dict, .safetensors or torch (default: random)")
    add("--images", type=Path, metavar="FOLDER", help="of photographs (default: made-up pictures)")
    add("--image-size", type=int, metavar="PIXELS", help="default: the published size of the network")
    add("--filters", type=int, default=LARGE.filters, help="of nasnetalarge's last layer (default: %(default)s)")
    add("--batches", type=numbers, default=[1, 8], metavar="N,N", help="default: 1,8")
    add("--repeats", type=int, default=10, help="turns of each that count (default: %(default)s)")
    add("--agreement-images", type=int, default=200, metavar="N", help="at most so many (default: %(default)s)")
    add("--cores", type=int, default=2, help="for everything together (default: %(default)s)")
    add(
        "--precision",
        choices=(precision.AUTO, *precision.PRECISIONS),
        default=precision.AUTO,
        help="of ours, in-process and served (default: %(default)s)",
    )
    add("--channels-last", action="store_true", help="timm's network in that memory format as a contestant too")
    add("--seed", type=int, default=0, help="of random weights and pictures (default: %(default)s)")
    add("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser


def run(args: argparse.Namespace) -> None:
    for name in ("repeats", "agreement_images"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}: at least 1")
    found: dict[str, Any] = {
        "machine": {**machine.facts(), "timm": version("timm")},
        "model": args.model,
        "filters": args.filters if args.model == vision_networks.NASNET_LARGE else None,
        "weights": "random" if args.weights is None else args.weights.name,
        "agreement_on": "made-up pictures" if args.images is None else "photographs",
        "cores": args.cores,
        "repeats": args.repeats,
    }
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    torch.manual_seed(args.seed)
    with tempfile.TemporaryDirectory(prefix="earsight-vision-") as name, confined(args.cores):
        found |= measure(args, Path(name))
    report(found, args.batches)
    if args.json:
        print(json.dumps(rounded(found)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        run(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
