"""The network as it is served: compiled, in the precision that this machine computes fastest.

eager   fp32 by torch, as trained
fp32    the trunk compiled by OpenVINO, which fuses what torch computes one after the other
bf16    the same with weights and feature maps rounded to bfloat16. Fast where the processor multiplies it (AVX-512
        BF16, AMX)

Pooling and classifier are always torch's, in fp32. Compiling takes seconds, so what comes of it is kept in
$XDG_CACHE_HOME/earsight/openvino (~/.cache without that variable), a folder for each network, to be deleted at will.

Dimension letters: B batch, S side of the input, K classes.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from vision_zoo.head import can_cut

EAGER, FP32, BF16 = PRECISIONS = ("eager", "fp32", "bf16")
AUTO = "auto"
COMPILED_FROM = 500_000  # parameters; with fewer it takes longer to compile them than most servers would ever save
ROUNDED_FROM = 3_000_000  # with fewer the products are too short for bf16 to save what the rounding costs
_MODEL = "model.xml"

logger = logging.getLogger(__name__)


class Compiled(nn.Module):
    """A network whose trunk is compiled, and whose pooling and classifier are the network's own; for inference.

    forward(images (B, 3, S, S), float32) -> logits (B, K), float32. Its halves are those of head.cut.
    """

    def __init__(self, model: nn.Module, trunk: Any) -> None:
        super().__init__()
        self._model: Any = model
        self._trunk = trunk

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        found = self._trunk(images.contiguous().numpy())[0]
        return torch.from_numpy(found.copy())  # the next call writes over what this one returned

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        logits: Tensor = self._model.forward_head(features, pre_logits=pre_logits)
        return logits

    def get_classifier(self) -> nn.Module:
        classifier: nn.Module = self._model.get_classifier()
        return classifier


class _Trunk(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.forward_features(images)
        if not isinstance(features, Tensor):
            raise TypeError(f"it has {len(features)} feature maps, where one is compiled")
        return features


def for_serving(
    model: nn.Module, side: int, precision: str = AUTO, threads: int | None = None
) -> tuple[nn.Module, str]:
    """-> the network for images of S = `side` in a precision, and which one that is.

    threads: what one batch of a compiled network takes; None: as many as torch takes in the calling thread.

    "auto" is what this machine computes fastest, or "eager" where the network cannot be compiled, which is logged. It
    takes images with the channels last. ValueError for a precision that is unknown, that this processor has no
    instructions for, or that the network cannot be computed in.
    """
    chosen = fastest(model) if precision == AUTO else precision
    if chosen not in available():
        choices = (AUTO, *available())
        raise ValueError(f"precision {precision!r} is not one of this processor's. Select one of {choices}")
    if chosen == EAGER:
        return model.to(memory_format=torch.channels_last), chosen
    if not can_cut(model):
        raise ValueError(f"precision {chosen!r} is for NASNets and models of timm; {type(model).__name__} needs eager")
    try:
        return Compiled(model, _compile(model.eval(), side, chosen, threads or torch.get_num_threads())).eval(), chosen
    except Exception as error:  # whatever torch.export and OpenVINO say of an operation that they do not know
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if precision != AUTO:
            raise ValueError(f"precision {chosen!r}: {type(model).__name__} cannot be compiled: {reason}") from error
        logger.warning("%s cannot be compiled and is served as it is: %s", type(model).__name__, reason)
        return model.to(memory_format=torch.channels_last), EAGER


def available() -> tuple[str, ...]:
    """Precisions that this machine computes, the fastest for a large network last."""
    if (found := _openvino()) is None:
        return (EAGER,)
    capabilities = found.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return PRECISIONS if "BF16" in capabilities else (EAGER, FP32)


def fastest(model: nn.Module) -> str:
    """What to serve a network in on this machine."""
    size = sum(parameter.numel() for parameter in model.parameters())
    if size < COMPILED_FROM or not can_cut(model):
        return EAGER
    choices = available()
    return choices[-1] if size >= ROUNDED_FROM else choices[min(1, len(choices) - 1)]


def _openvino() -> ModuleType | None:
    # Converting would report to its makers over the network, which whoever runs a server at home has not asked for.
    # Without this package it does not.
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    try:
        return importlib.import_module("openvino")  # here: it takes a second, and small networks do without
    except ImportError:
        return None


def _compile(model: nn.Module, side: int, precision: str, threads: int) -> Any:
    openvino = _openvino()
    assert openvino is not None
    core, kept = openvino.Core(), _cache() / _identity(model, side, openvino.__version__)
    if (converted := _kept(core, kept)) is None:
        converted = openvino.convert_model(_program(model, side))
        _keep(openvino, converted, kept)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == BF16 else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",  # all threads to one batch, of which one runs at a time
    }
    return core.compile_model(converted, "CPU", settings)


@torch.no_grad()
def _program(model: nn.Module, side: int) -> torch.export.ExportedProgram:
    """The trunk as a graph of any batch size. Traced with two images: one alone would be taken for a constant."""
    images = torch.zeros(2, 3, side, side)
    return torch.export.export(_Trunk(model), (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _identity(model: nn.Module, side: int, version: str) -> str:
    """Equal for equal networks: their code, settings and weights, and what converts them."""
    settings = [getattr(model, name, None) for name in ("config", "genotype", "pretrained_cfg")]
    digest = hashlib.sha256(f"{version} {torch.__version__} {side} {settings} {model!r}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _cache() -> Path:
    # expanduser raises nothing for a user without a home, whom containers have.
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "earsight" / "openvino"


def _kept(core: Any, folder: Path) -> Any:
    """None where there is nothing, or nothing that can be read any more, which makes room."""
    if not (folder / _MODEL).is_file():
        return None
    try:
        return core.read_model(folder / _MODEL)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        logger.warning("%s is damaged and made again: %s", folder, reason)
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _keep(openvino: ModuleType, converted: Any, folder: Path) -> None:
    """Whole or not at all, and not where nothing can be written: the next start then takes as long as this one."""
    with suppress(OSError, RuntimeError):  # the latter is what OpenVINO says of a full disk
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            openvino.save_model(converted, unfinished / _MODEL, compress_to_fp16=False)
            unfinished.rename(folder)  # fails where another process was faster
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
