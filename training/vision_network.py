"""The network of a vision recipe: by the name of a backbone, or as the source of its initial weights describes it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from training.vision_initial import Initial, load_initial, read_initial, read_published
from vision_zoo import zoo
from vision_zoo.transforms import RESIZE_MODES, Preprocessing

BACKBONE = "nasnet-a-cifar"
NASNET_ONLY = ("stem_stride", "drop_path_keep", "dropout", "batch_norm_momentum", "native")  # options; native last


@dataclass(frozen=True)
class Start:
    """What a run begins with. afresh: the parts that `initial` had nothing for."""

    network: nn.Module
    architecture: zoo.Architecture
    afresh: tuple[str, ...] = ()


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("network")
    network.add_argument(
        "--backbone",
        help="nasnet-a-N@P (N cells a stage, P final channels), a name of `vision-zoo list`, or timm/NAME "
        f"(default: that of --initial, else {BACKBONE}, which is nasnet-a-6@768)",
    )
    network.add_argument(
        "--initial",
        "--weights",
        metavar="SOURCE",
        help="start from a bundle (its folder, or the name of a shipped one), a checkpoint, a file of weights, or "
        "'pretrained' for published ones; with other labels the classifier starts afresh",
    )
    network.add_argument("--input-size", type=int, help="side in pixels (default: the backbone's)")
    network.add_argument("--resize", choices=RESIZE_MODES, help="squeeze, or cut (default: the backbone's)")
    network.add_argument("--stem-stride", type=int, choices=(1, 2), help="NASNet: 2 quarters the work (default: 1)")
    network.add_argument("--drop-path-keep", type=float, help="NASNet: 1 for no dropped paths (default: the paper's)")
    network.add_argument(
        "--dropout", type=float, help="NASNet: share of the pooled features (default: the paper's, 0.5 for ImageNet's)"
    )
    network.add_argument(
        "--batch-norm-momentum",
        type=float,
        help="NASNet: what a batch adds to the statistics that serving uses; the paper's for ImageNet, 0.0003, needs "
        "tens of thousands of steps (default: the paper's | 0.1)",
    )
    network.add_argument("--native", action="store_true", help="NASNet: train with the native CPU kernels (needs g++)")


def read_source(args: argparse.Namespace) -> Initial | None:
    """What --initial names; None without it and for timm's own weights. Raises ValueError."""
    if not args.initial or args.initial == zoo.PRETRAINED:
        return None
    initial = read_initial(args.initial)
    if initial.architecture is not None and args.backbone is not None:
        raise ValueError(f"--backbone {args.backbone}: the network is that of --initial {args.initial}; name only one")
    return initial


def choose_preprocessing(args: argparse.Namespace, initial: Initial | None) -> Preprocessing:
    if initial is not None and initial.preprocessing is not None:
        chosen = initial.preprocessing
    else:
        chosen = zoo.preprocessing(zoo.architecture(args.backbone or BACKBONE))
    if args.input_size is not None:
        chosen = replace(chosen, size=args.input_size)
    return chosen if args.resize is None else replace(chosen, resize=args.resize)


def choose_architecture(args: argparse.Namespace, num_classes: int, initial: Initial | None = None) -> zoo.Architecture:
    """The backbone with the changes that the other options of the group ask for. Raises ValueError."""
    if initial is not None and initial.architecture is not None:
        chosen = _with_classes(initial.architecture, num_classes)
    else:
        chosen = zoo.architecture(args.backbone or BACKBONE, num_classes)
    if isinstance(chosen, zoo.TimmArchitecture):
        given = [f"--{name.replace('_', '-')}" for name in NASNET_ONLY if not _unset(getattr(args, name))]
        if given:
            raise ValueError(f"{', '.join(given)}: for NASNets, not for timm/{chosen.name}")
        if args.input_size not in (None, size := zoo.fixed_size(chosen)) and size is not None:
            raise ValueError(f"--input-size {args.input_size}: timm/{chosen.name} takes {size} pixels only")
        return chosen
    if chosen.config.filters < 48:
        # torch 2.14 corrupts memory in the channels-last gradient of a one-channel convolution
        raise ValueError(f"backbone {args.backbone} has cells of one channel; training needs P of at least 48")
    changes: dict[str, Any] = {"auxiliary": args.auxiliary_weight > 0}
    if args.input_size is not None:
        changes["input_size"] = args.input_size
    for name in NASNET_ONLY[:-1]:
        if not _unset(getattr(args, name)):
            changes[name] = getattr(args, name)
    if args.initial and args.batch_norm_momentum is None:
        changes["batch_norm_momentum"] = 0.1  # few steps, other images: what the old ones left must not outlast them
    return replace(chosen, config=replace(chosen.config, **changes))


def start(args: argparse.Namespace, labels: Sequence[str], initial: Initial | None) -> Start:
    """The network with its first weights. Raises ValueError."""
    architecture = choose_architecture(args, len(labels), initial)
    of_timm = isinstance(architecture, zoo.TimmArchitecture)
    if args.initial and of_timm and (initial is None or initial.architecture is None):
        # timm knows the layouts of its own files, and keeps a fresh classifier for another number of classes.
        network = zoo.create(args.backbone, len(labels), args.initial)
        return Start(network, architecture)
    if args.initial == zoo.PRETRAINED:
        initial = read_published(args.backbone or BACKBONE)
    network = zoo.build(architecture)
    afresh = () if initial is None else tuple(load_initial(network, initial, tuple(labels)))
    if args.native:
        _accelerate(network)
    return Start(network, architecture, afresh)


def _unset(value: object) -> bool:
    return value is None or value is False


def _with_classes(architecture: zoo.Architecture, num_classes: int) -> zoo.Architecture:
    if isinstance(architecture, zoo.NASNetArchitecture):
        return replace(architecture, config=replace(architecture.config, num_classes=num_classes))
    return replace(architecture, num_classes=num_classes)


def _accelerate(network: nn.Module) -> None:
    from vision_zoo.native import accelerate  # loads torch's extension tools, which the others do without

    try:
        accelerate(network)
    except RuntimeError as error:
        raise ValueError(f"--native: {error}") from error
