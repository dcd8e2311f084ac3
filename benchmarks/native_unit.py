"""How much faster the native CPU kernel trains a NASNet than the plain torch code: both in one run, as a ratio.

    python benchmarks/native_unit.py
    python benchmarks/native_unit.py --backbone nasnet-a-2@384 --threads 2 --json

The two take turns, and each one's best step counts, because shared machines only ever add time.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from vision_zoo import zoo
from vision_zoo.native import accelerate


def step_seconds(network: nn.Module, images: Tensor, targets: Tensor) -> float:
    """One forward and backward pass in CPU seconds of this process."""
    network.zero_grad(set_to_none=True)
    begin = time.process_time()
    F.cross_entropy(network(images), targets).backward()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="nasnet-a-1@768", help="default: %(default)s")
    parser.add_argument("--stem-stride", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=8, help="of each kind (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    architecture = zoo.architecture(args.backbone, num_classes=10)
    if not isinstance(architecture, zoo.NASNetArchitecture):
        parser.error(f"--backbone {args.backbone}: the native kernel is for NASNets")
    config = replace(architecture.config, stem_stride=args.stem_stride, auxiliary=False)
    plain = zoo.build(replace(architecture, config=config)).to(memory_format=torch.channels_last)
    native = copy.deepcopy(plain)
    accelerate(native)
    images = torch.randn(args.batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (args.batch_size,))
    for network in (plain, native):
        step_seconds(network.train(), images, targets)
    times: dict[str, list[float]] = {"plain": [], "native": []}
    for _ in tqdm(range(args.steps), "steps", disable=None):
        times["plain"].append(step_seconds(plain, images, targets))
        times["native"].append(step_seconds(native, images, targets))
    best = {name: min(values) for name, values in times.items()}
    rates = {name: args.batch_size / seconds for name, seconds in best.items()}
    ratio = best["plain"] / best["native"]
    for name, rate in rates.items():
        print(f"{name:7} {rate:8.1f} images per CPU second, forward and backward")
    print(f"native is {ratio:.2f} times as fast as plain")
    if args.json:
        print(json.dumps({"backbone": args.backbone, "images_per_cpu_second": rates, "speedup": ratio}))


if __name__ == "__main__":
    main()
