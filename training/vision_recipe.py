"""`python -m training.fit vision`: labelled images in, checkpoints and a served bundle out.

Without --initial the defaults are the paper's for CIFAR-10; with it, those of a transfer to a small set.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer

from asr_server import connection
from training import lr_finder, vision_report
from training.evaluate_vision import answer
from training.trainer import add_trainer_arguments, build_trainer, checkpoint_to_resume
from training.vision_calibration import fit_temperature
from training.vision_data import VisionData, load_images
from training.vision_export import run as export
from training.vision_files import ImageFiles, class_weights, read_files, split, write_files
from training.vision_finetune import TUNES, FinetuneOptions
from training.vision_module import OPTIMISERS, VisionModule, VisionOptions
from training.vision_network import add_network_arguments, choose_preprocessing, read_source, start
from training.vision_photos import PhotoOptions, load_photos
from vision_zoo import bundle
from vision_zoo.bundle import architecture_to_json
from vision_zoo.transforms import Preprocessing

AUGMENTATIONS = ("auto", "shift", "photo", "none")
SMALL = 32  # pixels; larger images are augmented as photographs
PHOTO_EPOCHS = 100  # from fresh weights, of images that are larger: the paper's 600 are CIFAR-10's
PARTS = ("train", "training", "images", "data")  # names of --data that say nothing of it

# What options that were not given stand for: from fresh weights (the paper's, CIFAR-10), and from initial ones.
DEFAULTS: dict[str, tuple[object, object]] = {
    "epochs": (600, 30),
    "optimiser": ("sgd", "adamw"),
    "learning_rate": (0.025, 1e-3),
    "weight_decay": (5e-4, 0.05),
    "warmup": (0.02, 0.1),
    "label_smoothing": (0.0, 0.1),
    "auxiliary_weight": (0.4, 0.0),
    "tune": ("full", "gradual"),
    "layer_decay": (1.0, 0.9),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_data_arguments(parser)
    add_network_arguments(parser)
    _add_recipe_arguments(parser)
    _add_augmentation_arguments(parser)
    add_trainer_arguments(parser, epochs=0, out="runs/ and the name of --data")
    parser.set_defaults(epochs=None)
    result = parser.add_argument_group("result", "when the last epoch is done, its best one is exported to OUT/bundle")
    result.add_argument("--name", help="by which requests choose the model (default: the name of --out)")
    result.add_argument("--version", default="1", help="of the model (default: %(default)s)")
    result.add_argument("--register", metavar="HOST:PORT", help="send the bundle to a running server, which serves it")
    result.add_argument("--report", action="store_true", help="report on the validation images, in OUT/report")
    connection.add_arguments(parser)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data", "one folder of images per class, or a .csv with columns path and label")
    data.add_argument("--data", type=Path, required=True, metavar="DIR|CSV", help="training images")
    data.add_argument(
        "--validation-data", type=Path, metavar="DIR|CSV", help="default: held out of the training images"
    )
    data.add_argument(
        "--validation",
        type=float,
        default=0.1,
        help="images held out, or their share below 1, every class in proportion (default: %(default)s)",
    )
    data.add_argument("--class-weights", choices=("none", "balanced"), default="none", help="default: %(default)s")
    data.add_argument("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    recipe = parser.add_argument_group("recipe", "defaults: from fresh weights | with --initial")
    recipe.add_argument("--batch-size", type=int, default=32, help="images a process and step (default: %(default)s)")
    for name, meaning in (
        ("learning-rate", "of the last layer, after warm-up"),
        ("weight-decay", "not on biases and norms"),
        ("warmup", "share of the steps"),
        ("label-smoothing", "share of the loss against all labels"),
        ("auxiliary-weight", "of the auxiliary head's loss"),
        ("layer-decay", "a layer's rate is that of the next one times this"),
    ):
        recipe.add_argument(f"--{name}", type=float, help=f"{meaning} ({_default(name)})")
    recipe.add_argument("--optimiser", choices=OPTIMISERS, help=_default("optimiser"))
    recipe.add_argument(
        "--tune",
        choices=TUNES,
        help=f"head: a linear probe; gradual: head, then all; full: all ({_default('tune')})",
    )
    recipe.add_argument("--unfreeze-after", type=int, metavar="N", help="gradual: epochs (default: a tenth of them)")
    recipe.add_argument("--freeze-batch-norm", action="store_true", help="keep the statistics of the initial weights")
    recipe.add_argument("--ema", type=float, default=0.0, help="decay of averaged weights, as 0.999; 0 for none")
    recipe.add_argument("--find-lr", action="store_true", help="only search for a learning rate, and say it")


def _add_augmentation_arguments(parser: argparse.ArgumentParser) -> None:
    photo = PhotoOptions()
    change = parser.add_argument_group("augmentation")
    change.add_argument(
        "--augment",
        choices=AUGMENTATIONS,
        default="auto",
        help=f"shift: padded crops and cutout, for up to {SMALL} pixels; photo: resized crops and colours, above",
    )
    change.add_argument("--no-flip", action="store_true", help="no mirror images: where left and right mean something")
    change.add_argument("--cutout", type=int, help="side of a hole in pixels (default: 16 with shift, else 0)")
    change.add_argument("--crop-padding", type=int, default=4, help="shift: pixels (default: %(default)s)")
    change.add_argument("--crop-area", type=float, default=photo.crop_area, help="photo: least share (%(default)s)")
    change.add_argument("--colour", type=float, default=photo.colour, help="photo: share (default: %(default)s)")
    change.add_argument("--rotation", type=float, default=0.0, help="photo: degrees (default: %(default)s)")
    change.add_argument("--mixup", type=float, default=0.0, help="alpha, as 0.2; 0 for none (default)")
    change.add_argument("--cutmix", type=float, default=0.0, help="alpha, as 1.0; 0 for none (default)")


def _default(name: str) -> str:
    fresh, transfer = DEFAULTS[name.replace("-", "_")]
    return f"default: {fresh} | {transfer}"


def resolve(args: argparse.Namespace, size: int = SMALL) -> argparse.Namespace:
    """The arguments with all defaults filled in. size: side of the network's input in pixels."""
    chosen = argparse.Namespace(**vars(args))
    if chosen.out is None:
        chosen.out = Path("runs", _name_of(args.data))
    if chosen.epochs is None and size > SMALL and not args.initial:
        chosen.epochs = PHOTO_EPOCHS
    if chosen.find_lr and chosen.tune is None:
        chosen.tune = "full"  # of all layers together: a search while most are frozen would be the head's
    for name, values in DEFAULTS.items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, values[bool(args.initial)])
    if chosen.unfreeze_after is None:
        chosen.unfreeze_after = max(1, chosen.epochs // 10)
    if chosen.strategy == "auto" and chosen.devices * chosen.nodes > 1:
        chosen.strategy = "ddp"  # what it would become
    if chosen.tune == "gradual" and chosen.strategy.endswith(("ddp", "ddp_spawn")):
        # A frozen backbone has no gradients, for which the processes would wait.
        chosen.strategy += "_find_unused_parameters_true"
    return chosen


def _name_of(data: Path) -> str:
    """What a folder or table of images is about: the one above, where it says only which part of a set it is."""
    path = data.resolve()
    stem = path.parent.name if path.stem.lower() in PARTS else path.stem
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:64] or "model"


def options(args: argparse.Namespace, augment: str) -> VisionOptions:
    """Of resolved arguments; augment: one of AUGMENTATIONS but auto. Raises ValueError."""
    shift = augment == "shift"
    return VisionOptions(
        optimiser=args.optimiser,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        warmup=args.warmup,
        auxiliary_weight=args.auxiliary_weight,
        label_smoothing=args.label_smoothing,
        crop_padding=args.crop_padding if shift else 0,
        flip=shift and not args.no_flip,
        cutout=args.cutout if args.cutout is not None else 16 if shift else 0,
        mixup=args.mixup,
        cutmix=args.cutmix,
        average=args.ema,
        finetune=FinetuneOptions(args.tune, args.unfreeze_after, args.layer_decay, args.freeze_batch_norm),
    )


def run(args: argparse.Namespace) -> None:
    """Train, or go on with a training that was killed; then export, calibrate and report."""
    initial = read_source(args)
    preprocessing = choose_preprocessing(args, initial)
    args = resolve(args, preprocessing.size)
    checkpoint = checkpoint_to_resume(args)
    augment = args.augment if args.augment != "auto" else "photo" if preprocessing.size > SMALL else "shift"
    chosen = options(args, augment)
    train, validation = _files(args)
    timer = Timer(verbose=False)
    trainer = build_trainer(args, monitor="val_top1", mode="max", callbacks=[timer])  # seeds the weights too
    begun = start(args, train.labels, initial)
    if begun.afresh and trainer.is_global_zero:
        print(f"not from {args.initial}, starting afresh: {', '.join(begun.afresh)}")
    weights = class_weights(train) if args.class_weights == "balanced" else None
    architecture = architecture_to_json(begun.architecture)
    module = VisionModule(begun.network, architecture, train.labels, preprocessing, chosen, weights)
    data = _data(args, augment, preprocessing, train, validation)
    if args.find_lr:
        _find_lr(args, trainer, module, data)
        return
    trainer.fit(module, data, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=False)
    if trainer.is_global_zero:
        print(f"trained for {timer.time_elapsed():.0f} s, validations between the epochs included")
        _finish(args, train, validation)


def _files(args: argparse.Namespace) -> tuple[ImageFiles, ImageFiles]:
    files = read_files(args.data)
    if args.validation_data is None:
        return split(files, args.validation, args.seed)
    return files, read_files(args.validation_data, files.labels)


def _data(
    args: argparse.Namespace,
    augment: str,
    preprocessing: Preprocessing,
    train: ImageFiles,
    validation: ImageFiles,
) -> VisionData:
    held = load_images(validation, preprocessing)
    if augment != "photo":
        return VisionData(load_images(train, preprocessing), held, args.batch_size, args.seed, args.workers)
    photo = PhotoOptions(args.crop_area, not args.no_flip, args.colour, args.rotation)
    photos = load_photos(train, preprocessing, photo, args.seed)
    return VisionData(photos, held, args.batch_size, args.seed, args.workers)


def _find_lr(args: argparse.Namespace, trainer: pl.Trainer, module: VisionModule, data: VisionData) -> None:
    found = lr_finder.find(trainer, module, data, lr_finder.STEPS)
    if trainer.is_global_zero:
        lr_finder.write(found, args.out)
        print(f"--learning-rate {found.suggestion:.2g} (the loss falls fastest there; see {args.out / 'lr.png'})")


def _finish(args: argparse.Namespace, train: ImageFiles, validation: ImageFiles) -> None:
    """OUT/bundle with the temperature of the validation images; which images were used stands beside it."""
    write_files(train, args.out / "train.csv")
    write_files(validation, args.out / "validation.csv")
    name = args.name or _name_of(args.out)
    made = bundle.load(
        export(
            argparse.Namespace(
                checkpoint=args.out / "best.ckpt", name=name, version=args.version, out=args.out / "bundle", card=None
            )
        )
    )
    answers = answer(made, validation, batch_size=64, workers=max(1, args.workers))
    temperature = fit_temperature(answers.log_probabilities, answers.targets)
    answers = replace(answers, temperature=temperature)
    bundle.save(
        made.folder,
        name=made.name,
        version=made.version,
        model=made.model,
        labels=made.labels,
        preprocessing=made.preprocessing,
        card=_card(made.name, args, len(train), len(validation), answers.top(1)),
        temperature=temperature,
    )
    print(f"wrote {made.folder}: top-1 {answers.top(1):.2f} % of {len(validation)} validation images")
    if args.report:
        title = f"{name} on its validation images, which also chose its temperature"
        vision_report.write(answers, title, args.out / "report", worst=24, run=args.out)
        print(f"wrote {args.out / 'report' / 'report.html'}")
    if args.register:
        _register(made.folder, connection.read(args, args.register))


def _register(folder: Path, to: connection.Connection) -> None:
    """Raises ValueError, and leaves the bundle as it is."""
    from vision_zoo import client  # loads gRPC, which processes that read images should not have

    try:
        print(f"{to.server} serves {client.register(to, folder)}")
    except ValueError as error:
        again = f"vision-zoo register --server {to.server} {folder}"
        raise ValueError(f"{folder} is finished but not registered: {error}; to try again: {again}") from error


def _card(name: str, args: argparse.Namespace, train: int, validation: int, top1: float) -> str:
    begun = f"from the weights of {args.initial}" if args.initial else "from fresh weights"
    return (
        f"# {name}\n\nTrained {begun} on {train} images of {args.data.name}, for {args.epochs} epochs. Its best epoch\n"
        f"has {top1:.2f} % top-1 on the {validation} validation images, by which epoch and temperature were chosen.\n"
    )
