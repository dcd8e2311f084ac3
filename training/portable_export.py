"""`python -m training.export vision-portable`: a vision bundle as one file for other runtimes, checked against torch.

python -m training.export vision-portable --bundle models/nasnet-a-cifar10 --out nasnet.onnx
python -m training.export vision-portable --bundle models/nasnet-a-cifar10 --out nasnet.pt2           torch.export
python -m training.export vision-portable --bundle models/nasnet-a-cifar10 --out nasnet.safetensors   weights only

The file reads normalised images, float32 (N, 3, S, S) for any N, and gives logits (N, K); a .safetensors file holds the
weights and, as its metadata, the labels. ONNX needs the packages onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from training.evaluate_vision import find_bundle
from vision_zoo import bundle, zoo
from vision_zoo.bundle import VisionBundle

BATCHES = (1, 3)  # the check runs both, because a file may have forgotten that the batch varies
TOLERANCE = 1e-4  # of the largest logit
Run = Callable[[Tensor], Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, help="a bundle's folder, or the name of a shipped one")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=f"ends with one of {', '.join(FORMATS)}"
    )


def run(args: argparse.Namespace) -> Path:
    """Writes the file, and compares its logits with the bundle's. Raises ValueError, also where they differ."""
    return export(bundle.load(find_bundle(args.bundle)), args.out)


def export(source: VisionBundle, out: Path) -> Path:
    """As run. An existing file is replaced."""
    if out.suffix not in FORMATS:
        raise ValueError(f"--out {out} must end with one of {sorted(FORMATS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    side = source.preprocessing.size
    batches = [torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0)) for count in BATCHES]
    with eager(source.model) as model, torch.no_grad():
        exported = FORMATS[out.suffix](source, model, batches[-1], out)
        error = max(_difference(exported(images), model(images)) for images in batches)
    if not error <= TOLERANCE:
        raise ValueError(f"{out}: its logits differ from the bundle's by {error:.1e}; at most {TOLERANCE:.0e} is right")
    return out


@contextmanager
def eager(model: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode; afterwards in the mode it was in."""
    training = model.training
    try:
        yield model.eval()
    finally:
        model.train(training)


def _difference(theirs: Tensor, ours: Tensor) -> float:
    return float((theirs - ours).abs().max() / ours.abs().max().clamp_min(1e-12))


def _onnx(source: VisionBundle, model: nn.Module, images: Tensor, out: Path) -> Run:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError("ONNX needs more packages: pip install onnx onnxscript onnxruntime") from None
    program = _program(model, images)
    converted = torch.onnx.export(program, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False)
    assert converted is not None
    converted.save(str(out))
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])


def _torch_export(source: VisionBundle, model: nn.Module, images: Tensor, out: Path) -> Run:
    torch.export.save(_program(model, images), out)
    loaded = torch.export.load(out).module()
    return lambda batch: loaded(batch)


def _safetensors(source: VisionBundle, model: nn.Module, images: Tensor, out: Path) -> Run:
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    out.write_bytes(to_safetensors(weights, {"name": source.name, "labels": json.dumps(source.labels)}))
    loaded = zoo.build(source.architecture).eval()
    loaded.load_state_dict(load_file(out))
    return loaded


def _program(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The network as a graph of any batch size. Traced with several images: one alone would be taken for a constant."""
    return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


FORMATS: dict[str, Callable[[VisionBundle, nn.Module, Tensor, Path], Run]] = {
    ".onnx": _onnx,
    ".pt2": _torch_export,
    ".safetensors": _safetensors,
}
