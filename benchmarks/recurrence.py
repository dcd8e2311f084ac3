"""Our clipped-ReLU recurrence beside torch.nn.RNN(nonlinearity="relu") at equal sizes, forward and backward.

    python -m benchmarks.recurrence
    python -m benchmarks.recurrence --frames 200 --batch 16 --hidden 512 1024 --repeats 3 --json
    python -m benchmarks.recurrence --device cuda --json

Both compute h_t = g(W_ih x_t + b + W_hh h_{t-1}) and all gradients: the product with the inputs, which is a part of
nn.RNN, is given to ours as torch.nn.functional.linear. They take turns in one run with the same threads, and the
medians count. Two more rows where the processor multiplies bfloat16: both under autocast.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from asr_server.native import core
from asr_server.recurrence import recur
from benchmarks import machine

CLIP = 20.0


@dataclass(frozen=True)
class Size:
    """Of one comparison."""

    frames: int
    batch: int
    hidden: int


@dataclass(frozen=True)
class Row:
    """Medians in milliseconds, and how many times longer ours takes."""

    size: Size
    arithmetic: str
    ours_forward: float
    ours_backward: float
    rnn_forward: float
    rnn_backward: float

    @property
    def ratio(self) -> float:
        """Of the whole: forward and backward."""
        return (self.ours_forward + self.ours_backward) / (self.rnn_forward + self.rnn_backward)


Layer = Callable[[Tensor], Tensor]


class Ours(nn.Module):
    """One direction of the network's layer 4."""

    def __init__(self, other: nn.RNN) -> None:
        super().__init__()
        weights = [weight.detach().clone() for weight in other.parameters()]  # W_ih, W_hh, b_ih, b_hh
        self.inputs, self.weight = nn.Parameter(weights[0]), nn.Parameter(weights[1])
        self.bias = nn.Parameter(weights[2] + weights[3])

    def forward(self, inputs: Tensor) -> Tensor:
        """(T, B, H) -> (T, B, H)."""
        start = inputs.new_zeros(inputs.shape[1:])
        return recur(functional.linear(inputs, self.inputs, self.bias), self.weight, start, CLIP)


def pair(size: Size, device: str) -> tuple[Layer, Layer, Tensor]:
    """Ours and torch's layer with the same weights, and inputs that leave the states far below the clip."""
    torch.manual_seed(0)
    rnn = nn.RNN(size.hidden, size.hidden, nonlinearity="relu").to(device)
    inputs = torch.randn(size.frames, size.batch, size.hidden, device=device, requires_grad=True)
    return Ours(rnn), lambda x: rnn(x)[0], inputs


def seconds(layer: Layer, inputs: Tensor, arithmetic: str) -> tuple[float, float]:
    """Of one forward and one backward pass."""
    begin = _now(inputs)
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=arithmetic == "bf16"):
        outputs = layer(inputs)
    middle = _now(inputs)
    outputs.float().sum().backward()
    return middle - begin, _now(inputs) - middle


def _now(inputs: Tensor) -> float:
    if inputs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(size: Size, arithmetic: str, device: str, repeats: int) -> Row:
    """Medians of as many turns after one that does not count."""
    ours, rnn, inputs = pair(size, device)
    turns = [(seconds(ours, inputs, arithmetic), seconds(rnn, inputs, arithmetic)) for _ in range(repeats + 1)][1:]
    mine, theirs = zip(*turns, strict=True)
    medians = [1000 * statistics.median(part) for times in (mine, theirs) for part in zip(*times, strict=True)]
    return Row(size, arithmetic, *medians)


def arithmetics(device: str) -> list[str]:
    """What this machine computes with: on a CPU bf16 only where the native core has its products."""
    fast = device != "cpu" or (core is not None and core.bf16_supported())
    return ["fp32", "bf16"] if fast else ["fp32"]


def table(rows: Sequence[Row]) -> str:
    head = "     T    B     H  type   ours: forward backward   nn.RNN: forward backward   ms   ratio"
    lines = [
        f"{row.size.frames:6}{row.size.batch:5}{row.size.hidden:6}  {row.arithmetic}"
        f"{row.ours_forward:16.1f}{row.ours_backward:9.1f}{row.rnn_forward:18.1f}{row.rnn_backward:9.1f}{row.ratio:13.2f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recurrence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[200, 400], help="default: %(default)s")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32], help="default: %(default)s")
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 1024, 2048], help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each; default: %(default)s")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(arguments)
    counts = (*args.frames, *args.batch, *args.hidden, args.repeats, args.threads)
    if min(counts) < 1:
        parser.error(f"{min(counts)} is too small: frames, batch, hidden, repeats and threads are at least 1")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch finds no such device here. Select cpu")
    torch.set_num_threads(args.threads)
    sizes = [Size(frames, batch, hidden) for hidden in args.hidden for frames in args.frames for batch in args.batch]
    work = [(size, arithmetic) for size in sizes for arithmetic in arithmetics(args.device)]
    rows = [compare(*each, args.device, args.repeats) for each in tqdm(work, "sizes", disable=None, leave=False)]
    print(table(rows))
    worst = {name: max(row.ratio for row in rows if row.arithmetic == name) for name in arithmetics(args.device)}
    print("largest ratio: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in worst.items()))
    if args.json:
        named = [{**asdict(row.size), **asdict(row), "ratio": row.ratio} for row in rows]
        facts = {**machine.facts(), "device": args.device, "threads": args.threads}
        print(json.dumps({**facts, "largest_ratio": worst, "rows": named}))


if __name__ == "__main__":
    main()
