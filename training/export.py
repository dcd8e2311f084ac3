"""Make a bundle that the server loads from a training checkpoint.

python -m training.export speech --checkpoint runs/an4/best.ckpt --name deepspeech-an4 --out models/deepspeech-an4
python -m training.export vision --checkpoint runs/cifar/best.ckpt --name nasnet-a-cifar10 --out models/nasnet-a-cifar10
python -m training.export speech ... --language-model lm.binary --alpha 0.8 --beta 1.5 --beam-width 64 --card card.md
"""

import argparse
import pickle
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from asr_server import bundle
from asr_server.alphabet import Alphabet
from asr_server.beam_search import DecodingOptions
from asr_server.features import FeatureConfig, Features
from asr_server.language_model import UNITS, LanguageModel
from asr_server.model import DeepSpeech, DeepSpeechConfig
from training import portable_export, vision_export


def read_checkpoint(path: Path) -> tuple[Features, DeepSpeech, Alphabet]:
    """The trained parts of a checkpoint of `training.fit speech`. The file is a pickle: only read your own."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        described, weights = checkpoint["hyper_parameters"], checkpoint["state_dict"]
        features = Features(FeatureConfig(**described["features"]))
        model = DeepSpeech(DeepSpeechConfig(**described["model"]))
        alphabet = Alphabet(tuple(described["alphabet"]))
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not a checkpoint of training.fit speech: {reason}") from error
    for part, module in (("features.", features), ("model.", model)):
        module.load_state_dict({k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)})
        module.eval().requires_grad_(False)
    return features, model, alphabet


def average(paths: Sequence[Path]) -> tuple[Features, DeepSpeech, Alphabet]:
    """The parts of one checkpoint, or with the mean of the weights of several that descend from one another."""
    features, model, alphabet = read_checkpoint(paths[0])
    for count, path in enumerate(paths[1:], 2):
        _, other, _ = read_checkpoint(path)
        if [p.shape for p in other.parameters()] != [p.shape for p in model.parameters()]:
            raise ValueError(f"{path}: its network has another shape than that of {paths[0]}")
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            ours.add_((theirs - ours) / count)
    return features, model, alphabet


def export_speech(args: argparse.Namespace) -> Path:
    """Write the bundle, and load it again as a check."""
    features, model, alphabet = average(args.checkpoint)
    given = {field.name: getattr(args, field.name) for field in fields(DecodingOptions)}
    decoding = DecodingOptions(**{name: value for name, value in given.items() if value is not None})
    card = args.card.read_text(encoding="utf-8") if args.card else f"# {args.name}\n"
    language_model = LanguageModel(args.language_model, args.language_model_unit) if args.language_model else None
    made = bundle.SpeechBundle(
        args.name, args.version, args.out, features, model, alphabet, language_model, decoding, args.language_code, card
    )
    bundle.save(made, args.language_model, args.half)
    bundle.load(args.out)
    return Path(args.out)


def build_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m training.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="speech|vision")
    vision = kinds.add_parser("vision", help="a checkpoint of training.fit vision")
    vision_export.add_arguments(vision)
    vision.set_defaults(run=vision_export.run)
    portable = kinds.add_parser("vision-portable", help="a vision bundle as ONNX, torch.export or safetensors")
    portable_export.add_arguments(portable)
    portable.set_defaults(run=portable_export.run)
    speech = kinds.add_parser("speech", help="a Deep Speech checkpoint")
    speech.set_defaults(run=export_speech)
    speech.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="several: their weights' mean")
    speech.add_argument("--name", required=True, help="by which requests choose the model")
    speech.add_argument("--version", default="1", help="default: %(default)s")
    speech.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    speech.add_argument("--half", action="store_true", help="matrices as float16: half the bytes")
    speech.add_argument("--card", type=Path, metavar="MD", help="model card: training data, licence, results")
    speech.add_argument("--language-code", default="en-US", help="default: %(default)s")
    speech.add_argument("--language-model", type=Path, metavar="BINARY", help="of training.language_model")
    speech.add_argument("--language-model-unit", choices=UNITS, default=UNITS[0], help="default: %(default)s")
    decoding = speech.add_argument_group("decoding", "what training.tune_decoder found")
    for field in fields(DecodingOptions):
        name = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            decoding.add_argument(name, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            decoding.add_argument(name, type=type(field.default), help=f"default: {field.default}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; a user's error is one line."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        print(f"wrote {args.run(args)}")
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog} {args.kind}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
