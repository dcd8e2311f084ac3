"""Measure a bundle on data it was not trained on.

python -m training.evaluate speech --bundle deepspeech-an4 --manifest an4-test.jsonl --json
python -m training.evaluate speech --bundle runs/bundle --manifest dev.jsonl --greedy --limit 50      # a quick look
python -m training.evaluate speech --bundle deepspeech-an4 --manifest an4-test.jsonl --compare-streaming
python -m training.evaluate vision --bundle nasnet-a-cifar10 --data cifar10/test --json
"""

import argparse
import sys
from collections.abc import Sequence

from training import evaluate_speech, evaluate_vision


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="speech|vision")
    for name, module, summary in (
        ("speech", evaluate_speech, "word and character error rates on a manifest of transcribed audio"),
        ("vision", evaluate_vision, "top-1 and top-5 accuracy on a folder of labelled images"),
    ):
        kind = kinds.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(kind)
        kind.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog} {args.kind}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
