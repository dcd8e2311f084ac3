"""`python -m training.fit vision`: an image folder in, checkpoints and a served bundle out."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from training.trainer import add_trainer_arguments, build_trainer, checkpoint_to_resume
from training.vision_data import VisionData, hold_out, load_folder
from training.vision_module import VisionModule, VisionOptions
from vision_zoo import zoo
from vision_zoo.bundle import architecture_to_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = VisionOptions()
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, required=True, metavar="DIR", help="training images, one folder per class")
    data.add_argument("--validation", type=int, default=5000, help="images held out of it (default: %(default)s)")
    network = parser.add_argument_group("network")
    network.add_argument(
        "--backbone",
        default="nasnet-a-cifar",
        help="nasnet-a-N@P (N cells a stage, P final channels), a name of `vision-zoo list`, or timm/NAME "
        "(default: %(default)s, which is nasnet-a-6@768)",
    )
    network.add_argument("--weights", metavar="FILE", help="start from these, or for timm 'pretrained'")
    network.add_argument("--input-size", type=int, help="side in pixels (default: the backbone's)")
    network.add_argument("--stem-stride", type=int, default=1, help="NASNet: 2 quarters the work (%(default)s)")
    network.add_argument("--drop-path-keep", type=float, help="NASNet: 1 for no dropped paths (default: the paper's)")
    network.add_argument("--native", action="store_true", help="NASNet: train with the native CPU kernel (needs g++)")
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


def choose_architecture(args: argparse.Namespace, num_classes: int) -> zoo.Architecture:
    """--backbone with the changes that the other options of the group ask for. Raises ValueError."""
    chosen = zoo.architecture(args.backbone, num_classes)
    if isinstance(chosen, zoo.TimmArchitecture):
        if args.stem_stride != 1 or args.drop_path_keep is not None or args.native:
            raise ValueError(f"--stem-stride, --drop-path-keep and --native are for NASNets, not for {args.backbone}")
        return chosen
    if chosen.config.filters < 48:
        # torch 2.14 corrupts memory in the channels-last gradient of a one-channel convolution
        raise ValueError(f"--backbone {args.backbone} has cells of one channel; training needs P of at least 48")
    changes: dict[str, Any] = {"stem_stride": args.stem_stride, "auxiliary": args.auxiliary_weight > 0}
    if args.input_size is not None:
        changes["input_size"] = args.input_size
    if args.drop_path_keep is not None:
        changes["drop_path_keep"] = args.drop_path_keep
    return replace(chosen, config=replace(chosen.config, **changes))


def build_network(args: argparse.Namespace, architecture: zoo.Architecture) -> nn.Module:
    if isinstance(architecture, zoo.TimmArchitecture):
        return zoo.create(args.backbone, architecture.num_classes, args.weights)
    network = zoo.build(architecture)
    if args.weights:
        zoo.load_weights(network, zoo.read_weights(Path(args.weights)))
    if args.native:
        from vision_zoo.native import accelerate  # loads torch's extension tools, which the others do without

        try:
            accelerate(network)
        except RuntimeError as error:
            raise ValueError(f"--native: {error}") from error
    return network


def run(args: argparse.Namespace) -> None:
    checkpoint = checkpoint_to_resume(args)
    trainer = build_trainer(args, monitor="val_top1", mode="max")  # seeds the weights too
    preprocessing = zoo.preprocessing(zoo.architecture(args.backbone))
    if args.input_size is not None:
        preprocessing = replace(preprocessing, size=args.input_size)
    everything = load_folder(args.data, preprocessing)
    train, validation = hold_out(everything, args.validation, args.seed)
    architecture = choose_architecture(args, len(everything.labels))
    network = build_network(args, architecture)
    options = VisionOptions(
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        warmup=args.warmup,
        auxiliary_weight=args.auxiliary_weight,
        label_smoothing=args.label_smoothing,
        crop_padding=args.crop_padding,
        cutout=args.cutout,
    )
    module = VisionModule(network, architecture_to_json(architecture), everything.labels, preprocessing, options)
    data = VisionData(train, validation, args.batch_size, args.seed)
    trainer.fit(module, data, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=False)
