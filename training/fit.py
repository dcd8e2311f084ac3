"""Train a model.

python -m training.fit speech --train train.jsonl --validation dev.jsonl --out runs/speech
python -m training.fit vision --data images/train --out runs/vision
python -m training.fit vision --data images/train --out runs/try --backbone nasnet-a-1@192 --epochs 1  # CPU-sized
torchrun --nproc-per-node 2 -m training.fit vision ... --devices 2 --strategy ddp                     # two processes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lightning_fabric.utilities.exceptions import MisconfigurationException

from training import speech_recipe, vision_recipe


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipes = parser.add_subparsers(dest="recipe", required=True, metavar="speech|vision")
    for name, module, summary in (
        ("speech", speech_recipe, "Deep Speech with CTC from manifests of transcribed audio"),
        ("vision", vision_recipe, "NASNet-A, or any timm model, from labelled images"),
    ):
        recipe = recipes.add_parser(name, help=summary, description=summary)
        module.add_arguments(recipe)
        recipe.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError, MisconfigurationException) as error:
        parser.exit(2, f"{parser.prog} {args.recipe}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; the last finished epoch is kept, --resume goes on from there\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
