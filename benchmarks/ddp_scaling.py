"""Hours of audio per minute that speech training takes in, with one and with several processes of one thread each.

    python -m benchmarks.ddp_scaling --processes 1 2
    python -m benchmarks.ddp_scaling --processes 1 2 --width 64 --seconds 2 --batch 2 --steps 4 --json

Each run is the recipe's own module under the recipe's own trainer, started by torchrun as a user starts it, on batches
of synthetic spectra that need no preparation: network, loss, gradients' exchange and optimiser are measured, reading
and augmenting are not. One process with as many threads as the largest number of processes is measured beside them.
The kinds of run take turns, and the median over the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from asr_server.alphabet import Alphabet
from asr_server.features import FeatureConfig
from asr_server.model import DeepSpeechConfig
from benchmarks import machine
from training.speech_data import Batch
from training.speech_module import OptimiserOptions, SpeechModule
from training.trainer import add_trainer_arguments, build_trainer

SYMBOLS_PER_SECOND = 14  # of read English
WARM_UP = 2  # steps that do not count


@dataclass(frozen=True)
class Kind:
    """Of run: how many processes of how many threads."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads}"


class Spectra(Dataset[Batch]):
    """The same batch of noise again and again; each process has its own, as large as the others'."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.count: int = args.steps + WARM_UP
        frames, symbols = round(args.seconds * 100), max(1, round(args.seconds * SYMBOLS_PER_SECOND))
        generator = torch.Generator().manual_seed(int(os.environ.get("RANK", "0")))
        targets = torch.randint(1, len(Alphabet()), (args.batch, symbols), generator=generator)
        spectra = torch.randn(args.batch, frames, FeatureConfig().size, generator=generator)
        lengths = torch.full((args.batch,), frames), torch.full((args.batch,), symbols)
        self.batch = Batch(spectra, lengths[0], targets, lengths[1])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return self.batch


class Clock(pl.Callback):
    """Seconds between the end of the warm-up and the end of the training."""

    begin = end = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.end = time.perf_counter()
        if batch_idx == WARM_UP - 1:
            self.begin = self.end


def one_process(args: argparse.Namespace) -> None:
    """What torchrun starts: train, and let the first process write how many seconds the steps took."""
    with tempfile.TemporaryDirectory() as folder:
        parser = argparse.ArgumentParser()
        add_trainer_arguments(parser, epochs=1)
        strategy = "ddp" if args.of > 1 else "auto"
        devices = ["--accelerator", "cpu", "--devices", str(args.of), "--strategy", strategy]
        options = ["--out", folder, "--quiet", "--threads", str(args.threads), "--precision", args.precision, *devices]
        clock = Clock()
        trainer = build_trainer(parser.parse_args(options), monitor="train_loss", callbacks=[clock])
        network = DeepSpeechConfig(width=args.width, recurrent_layers=args.recurrent_layers)
        module = SpeechModule(FeatureConfig(), network, Alphabet(), OptimiserOptions())
        trainer.fit(module, DataLoader(Spectra(args), batch_size=None))
        if trainer.is_global_zero:
            args.result.write_text(repr(clock.end - clock.begin))


def measure(kind: Kind, args: argparse.Namespace) -> float:
    """Hours of audio per minute of one run."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "seconds")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={kind.processes}"]
        sizes = ["--width", "--recurrent-layers", "--seconds", "--batch", "--steps", "--precision"]
        values = [str(getattr(args, name[2:].replace("-", "_"))) for name in sizes]
        options = [text for pair in zip(sizes, values, strict=True) for text in pair]
        place = ["--threads", str(kind.threads), "--of", str(kind.processes), "--result", str(result)]
        command = [*launcher, "-m", "benchmarks.ddp_scaling", *options, *place]
        environment = {**os.environ, "OMP_NUM_THREADS": str(kind.threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode or not result.exists():
            raise ChildProcessError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        hours: float = args.batch * args.seconds * args.steps * kind.processes / 3600
        return hours / (float(result.read_text()) / 60)


def scaling(rates: dict[Kind, float]) -> dict[Kind, float]:
    """How many times the rate of the smallest run each one has."""
    smallest = min(rates, key=lambda kind: (kind.processes * kind.threads, kind.processes))
    return {kind: rate / rates[smallest] for kind, rate in rates.items()}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ddp_scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="default: %(default)s")
    parser.add_argument("--width", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--recurrent-layers", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=12.0, help="of an utterance; default: %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="utterances a process and step; default: %(default)s")
    parser.add_argument("--steps", type=int, default=10, help=f"after {WARM_UP} that warm up; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind; default: %(default)s")
    parser.add_argument("--precision", default="32-true", help="of the trainer; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    for name, kind in (("--threads", int), ("--of", int), ("--result", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)  # what a process of a run is told
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.result:
        return one_process(args)
    if min(*args.processes, args.batch, args.steps, args.rounds) < 1 or args.seconds < 0.1:
        parser.error("processes, batch, steps and rounds are at least 1, seconds at least 0.1")
    most = max(args.processes)
    kinds = list(dict.fromkeys([*(Kind(processes, 1) for processes in args.processes), Kind(1, most)]))
    rounds = [{kind: measure(kind, args) for kind in kinds} for _ in range(args.rounds)]
    rates = {kind: statistics.median(rates[kind] for rates in rounds) for kind in kinds}
    ratios = scaling(rates)
    print("processes x threads   hours of audio per minute   times the smallest")
    for kind in kinds:
        print(f"{kind!s:>19}{rates[kind]:28.3f}{ratios[kind]:21.2f}")
    if args.json:
        rows = [{"processes": k.processes, "threads": k.threads, "rate": rates[k], "ratio": ratios[k]} for k in kinds]
        print(json.dumps({**machine.facts(), "width": args.width, "precision": args.precision, "rows": rows}))
    return None


if __name__ == "__main__":
    main()
