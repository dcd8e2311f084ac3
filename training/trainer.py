"""The Lightning trainer both recipes share: checkpoints, logs, precision, devices, and exact resume.

Exact resume: the order of the data is a function of (seed, epoch), every random draw inside a step a function of
(seed, step, rank), and a checkpoint is written at the end of each epoch. A run that was killed starts again at the
last finished epoch and ends with the same weights as one that was not.
"""

from __future__ import annotations

import argparse
import logging
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning_fabric.utilities.seed as lightning_seed
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.warnings import disable_possible_user_warnings
from pytorch_lightning import callbacks as lightning_callbacks
from pytorch_lightning import loggers
from torch.utils.data import DataLoader

Item = TypeVar("Item")

LAST = "last.ckpt"


class StepSeed(pl.Callback):
    """Seeds torch before every training step, so that a step's random draws do not depend on the run's history."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(((self.seed * 1_000_003 + trainer.global_step) * 1_009 + trainer.global_rank) % 2**63)


class LateLoader(DataLoader[Item]):
    """Begins, and its workers with it, when the first item is asked for.

    Lightning asks for the iterator before it has restored the steps and the epoch of a resumed run. Workers fetch ahead
    from that moment on, so they would begin with epoch 0's batches.
    """

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        yield from super().__iter__()


def add_trainer_arguments(parser: argparse.ArgumentParser, epochs: int, out: str | None = None) -> None:
    """epochs 0: the recipe has a default of its own. out: what says of the default folder; None: one must be named."""
    run = parser.add_argument_group("run")
    where = "folder for checkpoints and logs" + (f" (default: {out})" if out else "")
    run.add_argument("--out", type=Path, required=out is None, metavar="DIR", help=where)
    usual = "default: %(default)s" if epochs else "default: the recipe's"
    run.add_argument("--epochs", type=int, default=epochs, help=f"passes over the training data ({usual})")
    run.add_argument("--resume", action="store_true", help=f"continue from DIR/{LAST} where it exists")
    run.add_argument("--seed", type=int, default=1, help="of weights, order and augmentation (default: %(default)s)")
    run.add_argument("--clip", type=float, default=5.0, help="largest gradient norm, 0 for none (default: %(default)s)")
    run.add_argument(
        "--precision",
        default="32-true",
        choices=["32-true", "bf16-mixed", "16-mixed"],
        help="arithmetic of forward and backward passes (default: %(default)s)",
    )
    run.add_argument("--threads", type=int, help="CPU threads for tensor arithmetic (default: torch's choice)")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    devices = parser.add_argument_group("devices", "torchrun's environment is respected; without it Lightning spawns")
    devices.add_argument("--accelerator", default="auto", help="cpu, gpu, auto (default: %(default)s)")
    devices.add_argument("--devices", type=int, default=1, help="processes a node (default: %(default)s)")
    devices.add_argument("--nodes", type=int, default=1, help="machines (default: %(default)s)")
    devices.add_argument("--strategy", default="auto", help="a Lightning strategy: ddp, ddp_spawn... (default: auto)")


def checkpoint_to_resume(args: argparse.Namespace) -> Path | None:
    """DIR/last.ckpt when --resume is given and it exists; ValueError where it is broken, or another run's and would be
    overwritten silently."""
    last: Path = args.out / LAST
    if last.exists() and not args.resume:
        raise ValueError(f"{last} is there already: add --resume to continue that run, or choose another --out")
    if not last.exists():
        return None
    if last.is_file() and not zipfile.is_zipfile(
        last
    ):  # a sharded one is a folder; the directory of a zip file is at its end
        raise ValueError(f"{last} is cut off or no checkpoint: remove it to begin again, or bring a whole one")
    return last


def build_trainer(
    args: argparse.Namespace, monitor: str, mode: str = "min", callbacks: Sequence[pl.Callback] = ()
) -> pl.Trainer:
    """monitor: the logged validation figure that decides which checkpoint is called best.ckpt."""
    if args.epochs < 1:
        raise ValueError(f"--epochs is {args.epochs}: at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    _silence()
    lightning_seed.seed_everything(args.seed, workers=True, verbose=False)
    # Two callbacks: save_last of the first would write only when the monitored figure improved.
    keep = [
        lightning_callbacks.ModelCheckpoint(args.out, "best", monitor=monitor, mode=mode, enable_version_counter=False),
        lightning_callbacks.ModelCheckpoint(args.out, Path(LAST).stem, enable_version_counter=False),
    ]
    bar = [] if args.quiet else [lightning_callbacks.TQDMProgressBar(refresh_rate=10)]
    return pl.Trainer(
        accelerator=args.accelerator,
        devices=args.devices,
        num_nodes=args.nodes,
        strategy=args.strategy,
        precision=args.precision,
        max_epochs=args.epochs,
        gradient_clip_val=args.clip or None,
        callbacks=[StepSeed(args.seed), *keep, *bar, *callbacks],
        logger=[
            loggers.CSVLogger(args.out, name="csv"),  # a folder each start: it would overwrite a resumed run's rows
            loggers.TensorBoardLogger(args.out, name="", version="tensorboard"),
        ],
        log_every_n_steps=20,
        num_sanity_val_steps=0,
        enable_progress_bar=not args.quiet,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data modules shard by themselves, as a function of (seed, epoch)
        default_root_dir=args.out,
    )


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside a distributed run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _silence() -> None:
    """Lightning's advice about workers, intervals and devices is not what a user of these commands needs to read."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    disable_possible_user_warnings()
    for message in (".*exists and is not empty.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message)
