"""`vision-zoo classify`, `register` and `list`: arguments, the terminal, and errors in one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from asr_server import connection
from vision_zoo import bundle, zoo
from vision_zoo.classifier import DEFAULT_TOP_K, Classifier, Prediction
from vision_zoo.repository import age

_CLASSIFY = """\
Say what images show.

Reads JPEG, PNG, WebP, BMP and the first frame of GIF files of every size. The model runs here, unless --server names
a running one.
"""
_CLASSIFY_EXAMPLES = """\
examples:
  vision-zoo classify ship.jpg                          the shipped model
  vision-zoo classify --top-k 1 --json photos/*.png     one JSON object a line
  vision-zoo classify --models /srv/models --model birds *.jpg
  vision-zoo classify --server 127.0.0.1:50051 *.jpg    all images in one stream to a server
"""
_REGISTER = """\
Send a trained bundle to a running server, which serves it from then on, without a restart.

example:
  vision-zoo register --server 127.0.0.1:50051 --alias production runs/birds/bundle
"""
_LIST = """\
Show the bundles that can classify now, and the backbones that training can start from, with their parameters.
"""

Answer: TypeAlias = "list[Prediction] | ValueError"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 where something could not be done, 2 for wrong arguments."""
    args = parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        sys.stderr.close()  # the interpreter would complain once more on its way out
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="vision-zoo", description="Image classification: models and their use.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    text = argparse.RawDescriptionHelpFormatter
    classify = commands.add_parser(
        "classify",
        help="say what images show",
        description=_CLASSIFY,
        epilog=_CLASSIFY_EXAMPLES,
        formatter_class=text,
    )
    classify.set_defaults(run=_classify)
    classify.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image file")
    classify.add_argument("--model", default="", metavar="NAME", help="a bundle's name (default: the first one)")
    classify.add_argument(
        "--top-k",
        type=int,
        default=DEFAULT_TOP_K,
        metavar="K",
        help="predictions for each image (default: %(default)s)",
    )
    classify.add_argument("--server", metavar="HOST:PORT", help="ask a running server instead of loading a model here")
    connection.add_arguments(classify)
    _add_models(classify)
    _add_json(classify, "print one JSON object for each image: image, and predictions or error")
    register = commands.add_parser(
        "register", help="send a bundle to a running server", description=_REGISTER, formatter_class=text
    )
    register.set_defaults(run=_register)
    register.add_argument("bundle", type=Path, metavar="DIR", help="the bundle's folder")
    register.add_argument("--server", required=True, metavar="HOST:PORT", help="a server that takes bundles")
    register.add_argument("--alias", default="", metavar="NAME", help="a further name that stands for this version")
    connection.add_arguments(register)
    listing = commands.add_parser("list", help="show bundles and backbones", description=_LIST, formatter_class=text)
    listing.set_defaults(run=_list)
    _add_models(listing)
    _add_json(listing, "print one JSON object")
    return top


def _add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--models",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder of bundles; may be given again (default: the shipped models)",
    )


def _add_json(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--json", action="store_true", help=text)


def _classify(args: argparse.Namespace) -> int:
    answers = _remote(args) if args.server else _local(args)
    failed = 0
    for path, answer in zip(args.images, answers, strict=True):
        if args.json:
            print(json.dumps({"image": str(path), **_as_json(answer)}), flush=True)
        elif isinstance(answer, ValueError):
            print(f"error: {path}: {answer}", file=sys.stderr)
        else:
            print(f"{path}: " + ", ".join(f"{each.label} {each.probability:.1%}" for each in answer), flush=True)
        failed += isinstance(answer, ValueError)
    return 1 if failed else 0


def _as_json(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, ValueError):
        return {"error": str(answer)}
    return {"predictions": [dataclasses.asdict(each) for each in answer]}


def _local(args: argparse.Namespace) -> Iterator[Answer]:
    classifier = Classifier(bundle.load(_folder(args.models, args.model)))
    try:
        classifier.check_top_k(args.top_k)
        for path in args.images:
            yield _answer(classifier, path, args.top_k)
    finally:
        classifier.close()


def _answer(classifier: Classifier, path: Path, top_k: int) -> Answer:
    try:
        return classifier.classify([path.read_bytes()], top_k)[0]
    except (ValueError, OSError) as error:  # the other images may be good
        return ValueError(_reason(error))


def _remote(args: argparse.Namespace) -> Iterator[Answer]:
    # Imported here: nobody who classifies locally should wait for gRPC.
    from vision_zoo import client

    files: list[bytes | ValueError] = []
    for path in args.images:
        try:
            files.append(path.read_bytes())
        except OSError as error:
            files.append(ValueError(_reason(error)))
    sent = [file for file in files if isinstance(file, bytes)]
    good = client.classify(connection.read(args, args.server), sent, args.model, args.top_k)
    for file in files:
        yield next(good) if isinstance(file, bytes) else file


def _register(args: argparse.Namespace) -> int:
    from vision_zoo import client

    print(f"served: {client.register(connection.read(args, args.server), args.bundle, args.alias)}")
    return 0


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _folders(models: list[Path] | None) -> list[Path]:
    return [path for folder in models or [bundle.SHIPPED] for path in bundle.find(folder)]


def _folder(models: list[Path] | None, name: str) -> Path:
    """The bundle's folder by `name` or `name@version`; no version: the newest, no name: the first."""
    found: dict[tuple[str, str], Path] = {}
    for folder in _folders(models):
        found.setdefault(bundle.identity(folder), folder)
    if not found:
        raise ValueError(f"no vision bundle in {', '.join(map(str, models or [bundle.SHIPPED]))}")
    wanted, _, version = (name or next(iter(found))[0]).partition("@")
    chosen = [key for key in found if key[0] == wanted and version in ("", key[1])]
    if not chosen:
        raise ValueError(f"model {name!r} is unknown; choose from {['@'.join(key) for key in found]}")
    return found[max(chosen, key=lambda key: age(key[1]))]


def _list(args: argparse.Namespace) -> int:
    bundles = [bundle.load(folder) for folder in _folders(args.models)]
    sizes = {name: zoo.count_parameters(zoo.architecture(name)) for name in zoo.NASNETS}
    if args.json:
        rows = [
            {"name": each.name, "version": each.version, "labels": each.labels, "parameters": each.parameters}
            for each in bundles
        ]
        print(json.dumps({"bundles": rows, "backbones": sizes}))
        return 0
    print("bundles, for vision-zoo classify --model:")
    for each in bundles:
        print(f"  {each.name:24} {each.parameters:>12,} parameters   {len(each.labels)} labels, version {each.version}")
    print("backbones, for python -m training.fit vision:")
    for name, parameters in sizes.items():
        print(f"  {name:24} {parameters:>12,} parameters   {_published(name)}")
    print("  nasnet-a-N@P             N normal cells per stage, P filters in the last layer, for 32-pixel images")
    print("  nasnet-a-N@P:STEM        the same with the stem of cifar, mobile or large")
    print("  FILE.json:N@P            cells from a file of your own (docs/vision-zoo.md)")
    print("  timm/NAME                any model of timm.list_models(), for example timm/resnet50")
    return 0


def _published(name: str) -> str:
    config = zoo.NASNETS[name]
    return f"{config.cells}@{config.filters}, {config.input_size} pixels, {config.num_classes} classes"
