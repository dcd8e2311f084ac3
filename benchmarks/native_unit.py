"""How much faster the native CPU kernels train a NASNet than the plain torch code, in fp32 and under bf16 autocast.

    python benchmarks/native_unit.py
    python benchmarks/native_unit.py --backbone nasnet-a-2@384 --precision bf16-mixed --batch-size 128 --json

All take turns, and each one's best step counts, because shared machines only ever add time. The JSON's keys: backbone,
batch_size, threads; images_per_cpu_second and speedup (native to plain), each by precision, the first then by code.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from vision_zoo import zoo
from vision_zoo.native import accelerate

PRECISIONS = ("fp32", "bf16-mixed")


def step_seconds(network: nn.Module, images: Tensor, targets: Tensor, precision: str) -> float:
    """One forward and backward pass in CPU seconds of this process."""
    network.zero_grad(set_to_none=True)
    begin = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = F.cross_entropy(network(images), targets)
    loss.backward()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="nasnet-a-1@768", help="default: %(default)s")
    parser.add_argument("--stem-stride", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=PRECISIONS, help="default: both")
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
    networks = {"plain": plain.train(), "native": native.train()}
    best = {precision: dict.fromkeys(networks, math.inf) for precision in args.precision}
    for step in tqdm(range(args.steps + 1), "steps", disable=None):
        for precision, seconds in best.items():
            for name, network in networks.items():
                taken = step_seconds(network, images, targets, precision)
                if step:  # the first one warms up
                    seconds[name] = min(seconds[name], taken)
    rates = {
        precision: {name: args.batch_size / value for name, value in seconds.items()}
        for precision, seconds in best.items()
    }
    ratios = {precision: rate["native"] / rate["plain"] for precision, rate in rates.items()}
    for precision, rate in rates.items():
        for name, value in rate.items():
            print(f"{precision:10} {name:6} {value:8.1f} images per CPU second, forward and backward")
        print(f"{precision:10} native is {ratios[precision]:.2f} times as fast as plain")
    if args.json:
        asked = {"backbone": args.backbone, "batch_size": args.batch_size, "threads": args.threads}
        print(json.dumps({**asked, "images_per_cpu_second": rates, "speedup": ratios}))


if __name__ == "__main__":
    main()
