"""`python -m training.fit vision`: an image folder in, checkpoints and a served bundle out."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from torch import nn

from training.trainer import add_trainer_arguments, build_trainer, checkpoint_to_resume
from training.vision_data import VisionData, hold_out, load_folder
from training.vision_module import VisionModule, VisionOptions
from vision_zoo.nasnet import CIFAR, NASNet, NASNetConfig
from vision_zoo.transforms import Preprocessing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = VisionOptions()
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, required=True, metavar="DIR", help="training images, one folder per class")
    data.add_argument("--validation", type=int, default=5000, help="images held out of it (default: %(default)s)")
    network = parser.add_argument_group("network", "NASNet-A N@P for small images")
    network.add_argument(
        "--cells", type=int, default=CIFAR.cells, help="N, normal cells a stage (default: %(default)s)"
    )
    network.add_argument("--filters", type=int, default=CIFAR.filters, help="P, final channels (default: %(default)s)")
    network.add_argument("--stem-stride", type=int, default=1, help="2 quarters the work (default: %(default)s)")
    network.add_argument("--input-size", type=int, default=32, help="side in pixels (default: %(default)s)")
    network.add_argument("--drop-path-keep", type=float, default=CIFAR.drop_path_keep, help="default: %(default)s")
    network.add_argument("--native", action="store_true", help="train through the native CPU kernel (needs g++)")
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--batch-size", type=int, default=32, help="images a process and step (default: %(default)s)")
    recipe.add_argument("--learning-rate", type=float, default=defaults.learning_rate, help="default: %(default)s")
    recipe.add_argument("--weight-decay", type=float, default=defaults.weight_decay, help="default: %(default)s")
    recipe.add_argument(
        "--warmup", type=float, default=defaults.warmup, help="share of the steps (default: %(default)s)"
    )
    recipe.add_argument("--label-smoothing", type=float, default=0.0, help="default: %(default)s")
    recipe.add_argument("--cutout", type=int, default=defaults.cutout, help="side, 0 for none (default: %(default)s)")
    recipe.add_argument("--crop-padding", type=int, default=defaults.crop_padding, help="default: %(default)s")
    recipe.add_argument(
        "--auxiliary-weight", type=float, default=defaults.auxiliary_weight, help="default: %(default)s"
    )
    add_trainer_arguments(parser, epochs=600)


def build_network(args: argparse.Namespace, num_classes: int) -> tuple[nn.Module, dict[str, object]]:
    """-> the network, and what a bundle says of it."""
    if args.filters < 48:  # torch 2.14 corrupts memory in the channels-last gradient of one-channel convolutions
        raise ValueError(f"--filters {args.filters} makes cells of one channel; training needs at least 48")
    config = NASNetConfig(
        cells=args.cells,
        filters=args.filters,
        num_classes=num_classes,
        stem_stride=args.stem_stride,
        drop_path_keep=args.drop_path_keep,
        input_size=args.input_size,
        auxiliary=args.auxiliary_weight > 0,
    )
    network = NASNet(config)
    if args.native:
        from vision_zoo.native import accelerate  # builds a C++ extension on first use

        accelerate(network)
    return network, {"family": "nasnet", "config": asdict(config), "genotype": "nasnet-a"}


def run(args: argparse.Namespace) -> None:
    checkpoint = checkpoint_to_resume(args)
    trainer = build_trainer(args, monitor="val_top1", mode="max")  # seeds the weights too
    preprocessing = Preprocessing(size=args.input_size)
    everything = load_folder(args.data, preprocessing)
    train, validation = hold_out(everything, args.validation, args.seed)
    network, architecture = build_network(args, len(everything.labels))
    options = VisionOptions(
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        warmup=args.warmup,
        auxiliary_weight=args.auxiliary_weight,
        label_smoothing=args.label_smoothing,
        crop_padding=args.crop_padding,
        cutout=args.cutout,
    )
    module = VisionModule(network, architecture, everything.labels, preprocessing, options)
    data = VisionData(train, validation, args.batch_size, args.seed)
    trainer.fit(module, data, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=False)
