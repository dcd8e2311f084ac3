"""Names to networks: the NASNets of this package and every model of timm.

nasnet-a-cifar, nasnet-a-mobile, nasnet-a-large     the paper's networks
nasnet-a-N@P[:STEM]                                 N normal cells per stage, P last filters; STEM: cifar, mobile, large
FILE.json:N@P[:STEM]                                the same with the cells of a genotype file
timm/NAME                                           any model of timm.list_models()
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vision_zoo.cells import Genotype
from vision_zoo.feature_maps import FeatureMaps
from vision_zoo.genotypes import GENOTYPES, genotype_from_json, read_genotype
from vision_zoo.nasnet import CIFAR, LARGE, MOBILE, NASNet, NASNetConfig
from vision_zoo.transforms import INTERPOLATIONS, Preprocessing
from vision_zoo.weight_download import PUBLISHED, download
from vision_zoo.weight_import import check_names_and_shapes, fit_weights
from vision_zoo.weight_import import read_weights as read_weights

NASNETS: dict[str, NASNetConfig] = {"nasnet-a-cifar": CIFAR, "nasnet-a-mobile": MOBILE, "nasnet-a-large": LARGE}
STEMS: dict[str, NASNetConfig] = {"cifar": CIFAR, "mobile": MOBILE, "large": LARGE}  # everything but N and P
PRETRAINED = "pretrained"
_SIZED = re.compile(r"(?:nasnet-a-|(?P<file>.+\.json):)(?P<cells>\d{1,3})@(?P<filters>\d{1,5})(?::(?P<stem>.*))?")
_TIMM = "timm/"


@dataclass(frozen=True)
class NASNetArchitecture:
    """Everything needed to build one of our networks again. genotype: a known name, or the cells themselves."""

    config: NASNetConfig
    genotype: str | Genotype = "nasnet-a"

    def __post_init__(self) -> None:
        if isinstance(self.genotype, str) and self.genotype not in GENOTYPES:
            raise ValueError(f"genotype {self.genotype!r} is unknown; choose from {sorted(GENOTYPES)}")

    @property
    def cells(self) -> Genotype:
        return GENOTYPES[self.genotype] if isinstance(self.genotype, str) else self.genotype

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
        if self.num_classes < 0:
            raise ValueError(f"num_classes {self.num_classes} must be at least 0")


Architecture = NASNetArchitecture | TimmArchitecture


def architecture(name: str, num_classes: int | None = None) -> Architecture:
    """The architecture behind a name.

    num_classes: None for the published number, 0 for no classifier (embeddings). ValueError lists close names.
    """
    if name.startswith(_TIMM):
        model = name.removeprefix(_TIMM)
        classes = _timm_settings(model).get("num_classes") or 1000
        return TimmArchitecture(model, classes if num_classes is None else num_classes)
    genotype: str | Genotype = "nasnet-a"
    if sized := _SIZED.fullmatch(name):
        config = replace(_stem(sized["stem"]), cells=int(sized["cells"]), filters=int(sized["filters"]))
        genotype = read_genotype(Path(sized["file"])) if sized["file"] else genotype
    elif name in NASNETS:
        config = NASNETS[name]
    else:
        raise ValueError(f"backbone {name!r} is unknown{_close(name)}; choose from {backbone_names()} or timm/NAME")
    return NASNetArchitecture(config if num_classes is None else replace(config, num_classes=num_classes), genotype)


def backbone_names() -> list[str]:
    return [*NASNETS, "nasnet-a-N@P[:STEM]", "FILE.json:N@P[:STEM]"]


def genotype(raw: object) -> str | Genotype:
    """`genotype` of a stored architecture: a known name, or plain data as vision_zoo.genotypes describes it."""
    return raw if isinstance(raw, str) else genotype_from_json(raw)


def build(architecture: Architecture) -> nn.Module:
    """-> the network with fresh weights: forward(images (B, 3, S, S)) -> logits (B, K)."""
    if isinstance(architecture, NASNetArchitecture):
        return NASNet(architecture.config, architecture.cells)
    model: nn.Module = _timm().create_model(architecture.name, num_classes=architecture.num_classes)
    return model


def create(name: str, num_classes: int | None = None, weights: str | Path | None = None) -> nn.Module:
    """The network behind `name`.

    weights: None for fresh ones, "pretrained" for published ones (downloaded once, by timm for its models), or a
    .safetensors, torch or, for NASNets, Keras file of any layout that vision_zoo.weight_import knows. Weights of
    another number of classes will do; the classifier stays fresh. Raises ValueError.
    """
    wanted = architecture(name, num_classes)
    if isinstance(wanted, TimmArchitecture):
        return _create_timm(wanted, weights)
    model = build(wanted)
    assert isinstance(model, NASNet)
    if weights == PRETRAINED:
        if name not in PUBLISHED:
            raise ValueError(f"{name} has no published weights to download; give a file, or train with training.fit")
        weights = download(PUBLISHED[name])
    if weights is not None:
        model.load_state_dict(fit_weights(model, read_weights(Path(weights))))
    return model


def create_features(
    name: str,
    out_indices: Sequence[int] | None = None,
    output_stride: int = 32,
    weights: str | Path | None = None,
) -> nn.Module:
    """As timm.create_model(name, features_only=True): images (B, 3, S, S) -> a list of feature maps (B, C, H, W).

    out_indices: which maps, from the highest resolution on; None for all. `feature_info.channels()` and `.reduction()`
    of the result describe them. Raises ValueError.
    """
    wanted = architecture(name, 0)
    if isinstance(wanted, TimmArchitecture):
        options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
        options |= {} if out_indices is None else {"out_indices": tuple(out_indices)}
        return _create_timm(wanted, weights, features_only=True, **options)
    model = create(name, 0, weights)
    assert isinstance(model, NASNet)
    if output_stride != model.config.output_stride:
        dense = NASNet(replace(model.config, output_stride=output_stride), model.genotype)
        dense.load_state_dict(model.state_dict())  # the weights mean the same at every output stride
        model = dense
    return FeatureMaps(model, out_indices)


def fixed_size(of: Architecture) -> int | None:
    """The one side in pixels that the network takes, where it takes no other: some transformers of timm."""
    if isinstance(of, NASNetArchitecture) or not _timm_settings(of.name).get("fixed_input_size"):
        return None
    return preprocessing(of).size


def describe(model: nn.Module) -> Architecture:
    """The architecture of a network made by this module, so that it can be stored and built again."""
    if isinstance(model, NASNet):
        names = (known for known, cells in GENOTYPES.items() if cells == model.genotype)
        return NASNetArchitecture(model.config, next(names, model.genotype))
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


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copies `weights` into `model`; ValueError when a name or a shape does not fit."""
    check_names_and_shapes(model.state_dict(), weights)
    model.load_state_dict(weights)


def with_heads(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], heads: tuple[str, ...]) -> dict[str, Tensor]:
    """`weights`, with the network's own parameters under the prefixes `heads` unless theirs fit whole."""
    theirs = {name: value for name, value in weights.items() if name.startswith(heads)}
    fresh = {name: value for name, value in own.items() if name.startswith(heads)}
    fit = {name: value.shape for name, value in theirs.items()} == {name: value.shape for name, value in fresh.items()}
    rest = {name: value for name, value in weights.items() if name not in theirs}
    return rest | (theirs if fit else fresh)


def timm_heads(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the parameters of a timm model whose shape depends on the classes. ValueError where it is silent."""
    settings: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    named = settings.get("classifier") or ()
    names = (named,) if isinstance(named, str) else tuple(named)
    if not names:
        raise ValueError(f"{type(model).__name__} does not say which of its layers is the classifier")
    return tuple(f"{name}." for name in names)


def _create_timm(wanted: TimmArchitecture, weights: str | Path | None, **options: Any) -> nn.Module:
    if weights in (None, PRETRAINED):
        return _timm_model(wanted, weights, num_classes=wanted.num_classes, **options)
    file = Path(str(weights))
    given = read_weights(file)  # names what is wrong with the file, which timm does not
    model = _timm_model(wanted, None, num_classes=wanted.num_classes)
    try:
        load_weights(model, with_heads(model.state_dict(), given, timm_heads(model)))
    except ValueError as unfit:
        # Perhaps in the layout of its authors, which timm rearranges: for the published classes it must then fit whole.
        try:
            model = _timm_model(wanted, file)
        except ValueError:
            raise ValueError(f"{file} does not fit timm/{wanted.name}: {unfit}") from None
        rearranged: Any = model
        if rearranged.num_classes != wanted.num_classes:
            rearranged.reset_classifier(wanted.num_classes)
    # Feature maps have names of their own, which timm fills in: with what has been found to fit.
    return _timm_model(wanted, file, num_classes=wanted.num_classes, **options) if options else model


def _timm_model(wanted: TimmArchitecture, weights: str | Path | None, **options: Any) -> nn.Module:
    """By timm's own loading, which takes what fits where num_classes is not the published number."""
    overlay = None if weights in (None, PRETRAINED) else {"file": str(weights)}
    try:
        model: nn.Module = _timm().create_model(
            wanted.name, pretrained=weights is not None, pretrained_cfg_overlay=overlay, **options
        )
    except Exception as error:  # downloading raises the errors of several HTTP libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "; give a local file instead" if weights == PRETRAINED else ""
        raise ValueError(f"cannot load weights of timm/{wanted.name}: {reason}{hint}") from error
    return model


def _stem(name: str | None) -> NASNetConfig:
    if name is None:
        return CIFAR
    if name not in STEMS:
        raise ValueError(f"stem {name!r} is unknown; choose from {sorted(STEMS)}")
    return STEMS[name]


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
