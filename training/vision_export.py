"""`python -m training.export vision`: a checkpoint of `training.fit vision` to a bundle that the server loads."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vision_zoo import bundle, zoo
from vision_zoo.transforms import Preprocessing

_WEIGHTS = "network."  # where VisionModule keeps the plain network


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--name", required=True, help="by which requests choose the model")
    parser.add_argument("--version", default="1", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    parser.add_argument("--card", type=Path, metavar="MD", help="model card: training data, licence, results")


def run(args: argparse.Namespace) -> Path:
    """Writes the bundle and loads it again as a check. Only tensors and plain values are read."""
    try:
        checkpoint = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
        described, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
        model = zoo.build(bundle.architecture_from_json(described["architecture"]))
        labels = tuple(described["labels"])
        preprocessing = Preprocessing(**described["preprocessing"])
        model.load_state_dict({key.removeprefix(_WEIGHTS): value for key, value in state.items()})
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{args.checkpoint}: not a checkpoint of training.fit vision: {error}") from error
    card = args.card.read_text(encoding="utf-8") if args.card else f"# {args.name}\n"
    bundle.save(
        args.out,
        name=args.name,
        version=args.version,
        model=model,
        labels=labels,
        preprocessing=preprocessing,
        card=card,
    )
    return Path(args.out)
