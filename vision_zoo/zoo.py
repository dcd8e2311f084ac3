"""Names to networks: the NASNets of this package and every model of timm.

nasnet-a-cifar, nasnet-a-mobile, nasnet-a-large     the paper's networks
nasnet-a-N@P                                        CIFAR stem, N normal cells per stage, P last filters
timm/NAME                                           any model of timm.list_models()
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vision_zoo.cells import NASNET_A, Genotype
from vision_zoo.nasnet import CIFAR, LARGE, MOBILE, NASNet, NASNetConfig
from vision_zoo.transforms import INTERPOLATIONS, Preprocessing

GENOTYPES: dict[str, Genotype] = {"nasnet-a": NASNET_A}
NASNETS: dict[str, NASNetConfig] = {"nasnet-a-cifar": CIFAR, "nasnet-a-mobile": MOBILE, "nasnet-a-large": LARGE}
PRETRAINED = "pretrained"
_SIZED = re.compile(r"nasnet-a-(\d{1,3})@(\d{1,5})")
_TIMM = "timm/"


@dataclass(frozen=True)
class NASNetArchitecture:
    """Everything needed to build one of our networks again."""

    config: NASNetConfig
    genotype: str = "nasnet-a"

    def __post_init__(self) -> None:
        if self.genotype not in GENOTYPES:
            raise ValueError(f"genotype {self.genotype!r} is unknown; choose from {sorted(GENOTYPES)}")

    @property
    def num_classes(self) -> int:
        return self.config.num_classes


@dataclass(frozen=True)
class TimmArchitecture:
    """A model of timm by its name there (without `timm/`)."""

    name: str
    num_classes: int

    def __post_init__(self) -> None:
        if not _timm().is_model(self.name):
            raise ValueError(f"timm has no model {self.name!r}{_close(_TIMM + self.name)}")
        if self.num_classes < 1:
            raise ValueError(f"num_classes {self.num_classes} must be at least 1")


Architecture = NASNetArchitecture | TimmArchitecture


def architecture(name: str, num_classes: int | None = None) -> Architecture:
    """The architecture behind a name; num_classes None: the published number. ValueError lists close names."""
    if name.startswith(_TIMM):
        model = name.removeprefix(_TIMM)
        return TimmArchitecture(model, num_classes or (_timm_settings(model).get("num_classes") or 1000))
    if sized := _SIZED.fullmatch(name):
        config = replace(CIFAR, cells=int(sized[1]), filters=int(sized[2]))
    elif name in NASNETS:
        config = NASNETS[name]
    else:
        raise ValueError(f"backbone {name!r} is unknown{_close(name)}; choose from {backbone_names()} or timm/NAME")
    return NASNetArchitecture(replace(config, num_classes=num_classes or config.num_classes))


def backbone_names() -> list[str]:
    return [*NASNETS, "nasnet-a-N@P"]


def build(architecture: Architecture) -> nn.Module:
    """-> the network with fresh weights: forward(images (B, 3, S, S)) -> logits (B, K)."""
    if isinstance(architecture, NASNetArchitecture):
        return NASNet(architecture.config, GENOTYPES[architecture.genotype])
    model: nn.Module = _timm().create_model(architecture.name, num_classes=architecture.num_classes)
    return model


def create(name: str, num_classes: int | None = None, weights: str | Path | None = None) -> nn.Module:
    """The network behind `name`.

    weights: None for fresh ones, "pretrained" for those that timm publishes (downloaded and cached by timm), or a
    .safetensors or torch file. A timm model takes weights of another number of classes; its classifier stays fresh.
    Raises ValueError.
    """
    wanted = architecture(name, num_classes)
    if isinstance(wanted, TimmArchitecture):
        return _create_timm(wanted, weights)
    model = build(wanted)
    if weights == PRETRAINED:
        raise ValueError(f"{name} has no published weights to download; give a file, or train one with training.fit")
    if weights is not None:
        load_weights(model, read_weights(Path(weights)))
    return model


def describe(model: nn.Module) -> Architecture:
    """The architecture of a network made by this module, so that it can be stored and built again."""
    if isinstance(model, NASNet):
        for known, genotype in GENOTYPES.items():
            if genotype == model.genotype:
                return NASNetArchitecture(model.config, known)
        raise ValueError(f"the network's genotype has no name; known are {sorted(GENOTYPES)}")
    timm_model: Any = model
    settings = getattr(timm_model, "pretrained_cfg", None)
    name = settings.get("architecture") if settings else None
    if not name:
        raise ValueError(f"{type(model).__name__} is neither a NASNet nor a model of timm")
    return TimmArchitecture(str(name), int(timm_model.num_classes))


def preprocessing(architecture: Architecture) -> Preprocessing:
    """What the architecture's published weights expect."""
    if isinstance(architecture, NASNetArchitecture):
        config = architecture.config
        if config.stem == "cifar":
            return Preprocessing(size=config.input_size)
        return Preprocessing(config.input_size, "shorter-side", 0.875, "bicubic", "mean-std")
    settings = _timm_settings(architecture.name)
    interpolation = settings.get("interpolation", "bicubic")
    return Preprocessing(
        size=settings["input_size"][-1],
        resize="shorter-side",
        crop=settings.get("crop_pct", 0.875),
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
        normalisation="mean-std",
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )


def count_parameters(architecture: Architecture) -> int:
    """As published: without the auxiliary head. Allocates nothing."""
    with torch.device("meta"):
        model = build(architecture)
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("auxiliary."))


def read_weights(file: Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors file or a torch file (tensors only: no code in it is ever run)."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"weights file {file} does not exist") from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is not a file of weights: {str(error).splitlines()[0]}") from error
    except Exception as error:  # torch.load passes on the unpickler's own errors
        raise ValueError(f"{file} holds more than tensors, which is refused: {str(error).splitlines()[0]}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file} holds no state dict (names to tensors)")
    return content


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copies `weights` into `model`; ValueError when a name or a shape does not fit."""
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        raise ValueError(f"weights do not fit: missing {_some(missing)}; unknown {_some(unknown)}")
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise ValueError(f"weights do not fit: {name} is {list(value.shape)}, expected {list(own[name].shape)}")
    model.load_state_dict(weights)


def _create_timm(wanted: TimmArchitecture, weights: str | Path | None) -> nn.Module:
    overlay = None
    if weights not in (None, PRETRAINED):
        read_weights(Path(str(weights)))  # names what is wrong with the file, which timm does not
        overlay = {"file": str(weights)}
    try:
        model: nn.Module = _timm().create_model(
            wanted.name,
            num_classes=wanted.num_classes,
            pretrained=weights is not None,
            pretrained_cfg_overlay=overlay,
        )
    except Exception as error:  # downloading raises the errors of several HTTP libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "; give a local file instead" if weights == PRETRAINED else ""
        raise ValueError(f"cannot load weights of timm/{wanted.name}: {reason}{hint}") from error
    return model


def _timm() -> ModuleType:
    # Imported where needed: it takes seconds, and the shipped bundles do without it.
    try:
        import timm
    except ImportError:
        raise ValueError("timm models need the package timm: pip install timm") from None
    return timm


def _timm_settings(name: str) -> dict[str, Any]:
    if not _timm().is_model(name):
        raise ValueError(f"timm has no model {name!r}{_close(_TIMM + name)}")
    settings = _timm().get_pretrained_cfg(name)
    return settings.to_dict() if settings is not None else {}


def _close(name: str) -> str:
    """'; did you mean ...?' where a name is near; timm is asked only when it is named."""
    names = list(NASNETS)
    if name.startswith(_TIMM):
        names += [_TIMM + model for model in _timm().list_models()]
    found = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
