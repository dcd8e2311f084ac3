"""A model folder that describes itself.

    FOLDER/bundle.json         kind, name, version, architecture, labels, preprocessing; optional: temperature,
                               weights_sha256
    FOLDER/model.safetensors   weights, without the auxiliary head
    FOLDER/README.md           model card: training data, licence, measured results

Only JSON and safetensors are read: loading a bundle never runs code from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save as to_safetensors
from torch import nn

from vision_zoo import zoo
from vision_zoo.genotypes import genotype_from_json, genotype_to_json
from vision_zoo.nasnet import NASNetConfig
from vision_zoo.transforms import Preprocessing

DESCRIPTION, WEIGHTS, CARD = "bundle.json", "model.safetensors", "README.md"
KIND = "vision"
SHIPPED = Path(__file__).with_name("models")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_T = TypeVar("_T")
_KEYS = {"kind", "name", "version", "architecture", "labels", "preprocessing"}
_OPTIONAL = {"temperature", "weights_sha256"}


class BundleError(ValueError):
    """A folder is no bundle of this kind; the text names the file and the rule."""


@dataclass(frozen=True)
class VisionBundle:
    """A network in evaluation mode and all that is needed to use it. labels[i] names logit i.

    temperature: logits are divided by it before the softmax, so that probabilities are calibrated (Guo et al. 2017).
    weights_sha256: of the file of weights, in hexadecimal; "" for a network that comes from no file.
    """

    name: str
    version: str
    folder: Path
    architecture: zoo.Architecture
    model: nn.Module
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    card: str
    temperature: float = 1.0
    weights_sha256: str = ""

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def load(folder: Path) -> VisionBundle:
    """Reads a bundle; raises BundleError."""
    description = _description(folder)
    if description.get("kind") != KIND:
        raise BundleError(f"{folder / DESCRIPTION}: kind {description.get('kind')!r} is not {KIND!r}")
    required = {key: value for key, value in description.items() if key not in _OPTIONAL}
    _same_keys(required, _KEYS, f"{folder / DESCRIPTION}", _OPTIONAL)
    try:
        architecture = architecture_from_json(description["architecture"])
        preprocessing = _read(Preprocessing, description["preprocessing"], "preprocessing")
        labels = _labels(description["labels"], architecture.num_classes)
        name, version = _name(description["name"]), _convert(str, description["version"], "version")
        temperature = _temperature(description.get("temperature", 1.0))
        model = zoo.build(architecture)
        zoo.load_weights(model, zoo.read_weights(_inside(folder, WEIGHTS)))
        digest = _checked_digest(folder / WEIGHTS, description.get("weights_sha256"))
    except ValueError as error:
        raise BundleError(f"bundle {folder}: {error}") from error
    card = _inside(folder, CARD)
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return VisionBundle(
        name, version, folder, architecture, model.eval(), labels, preprocessing, text, temperature, digest
    )


def save(
    folder: Path,
    *,
    name: str,
    version: str,
    model: nn.Module,
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    card: str,
    temperature: float = 1.0,
) -> VisionBundle:
    """Writes a bundle (over an older one in the same folder) and reads it back. Raises BundleError."""
    try:
        architecture = zoo.describe(model)
        if isinstance(architecture, zoo.NASNetArchitecture):
            architecture = replace(architecture, config=replace(architecture.config, auxiliary=False))
        description = {
            "kind": KIND,
            "name": _name(name),
            "version": version,
            "architecture": architecture_to_json(architecture),
            "labels": list(_labels(list(labels), architecture.num_classes)),
            "preprocessing": dataclasses.asdict(preprocessing),
            "temperature": _temperature(temperature),
        }
    except ValueError as error:
        raise BundleError(f"bundle {name}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        key: value.detach().cpu().contiguous()
        for key, value in model.state_dict().items()
        if not key.startswith("auxiliary.")
    }
    (folder / WEIGHTS).write_bytes(to_safetensors(weights))  # save_file would make what only its owner can read
    description["weights_sha256"] = digest_of(folder / WEIGHTS)
    (folder / CARD).write_text(card, encoding="utf-8")
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return load(folder)


def find(models: Path) -> list[Path]:
    """The folders of vision bundles directly in `models`, by name.

    Other kinds, files, and names that begin with a dot, where a bundle is on its way, are passed over. BundleError for
    a description that cannot be read.
    """
    return [folder for folder in described(models) if is_vision(folder)]


def described(models: Path) -> list[Path]:
    """The folders of bundles of any kind, whether or not they can be read; as `find`."""
    if not models.is_dir():
        raise BundleError(f"models folder {models} does not exist")
    return sorted(path.parent for path in models.glob(f"[!.]*/{DESCRIPTION}"))


def is_vision(folder: Path) -> bool:
    """Raises BundleError."""
    return bool(_description(folder).get("kind") == KIND)


def locate(name: str) -> Path | None:
    """A folder, or the shipped bundle of that name; None where it is neither."""
    if Path(name).is_dir():
        return Path(name)
    return next((folder for folder in shipped() if folder.name == name), None)


def shipped() -> list[Path]:
    """The folders of the bundles that come with the package."""
    return find(SHIPPED) if SHIPPED.is_dir() else []


def architecture_from_json(raw: object) -> zoo.Architecture:
    """bundle.json's `architecture`; raises ValueError."""
    if not isinstance(raw, dict):
        raise ValueError("architecture must be an object")
    rest = {key: value for key, value in raw.items() if key != "family"}
    match raw.get("family"):
        case "nasnet":
            _same_keys(rest, {"config", "genotype"}, "architecture")
            config = _read(NASNetConfig, rest["config"], "architecture.config")
            cells = rest["genotype"]
            return zoo.NASNetArchitecture(config, cells if isinstance(cells, str) else genotype_from_json(cells))
        case "timm":
            return _read(zoo.TimmArchitecture, rest, "architecture")
        case family:
            raise ValueError(f"architecture family {family!r} is unknown; choose from ['nasnet', 'timm']")


def architecture_to_json(architecture: zoo.Architecture) -> dict[str, Any]:
    if isinstance(architecture, zoo.TimmArchitecture):
        return {"family": "timm", **dataclasses.asdict(architecture)}
    cells = architecture.genotype
    return {
        "family": "nasnet",
        "config": dataclasses.asdict(architecture.config),
        "genotype": cells if isinstance(cells, str) else genotype_to_json(cells),
    }


def read_name(folder: Path) -> str:
    """The name of a bundle without loading its weights. Raises BundleError."""
    return identity(folder)[0]


def identity(folder: Path) -> tuple[str, str]:
    """Name and version of a bundle without loading its weights. Raises BundleError."""
    try:
        description = _description(folder)
        return _name(description.get("name")), _convert(str, description.get("version"), "version")
    except ValueError as error:
        raise BundleError(f"bundle {folder}: {error}") from error


def digest_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _description(folder: Path) -> dict[str, Any]:
    file = _inside(folder, DESCRIPTION)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{folder} is no bundle: it has no {DESCRIPTION}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{file} must hold a JSON object")
    return content


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder; a link that leads out of it is refused."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{file} leads out of its bundle")
    return file


def is_name(value: str) -> bool:
    """Whether a model, an alias or a set of embeddings may be called that."""
    return _NAME.fullmatch(value) is not None


def _name(value: object) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise ValueError(f"name {value!r} must be 1 to 64 of a-z 0-9 . _ - and start with a letter or digit")
    return value


def _labels(value: object, num_classes: int) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(label, str) and label for label in value):
        raise ValueError("labels must be a list of non-empty texts")
    if len(set(value)) != len(value) or len(value) != num_classes:
        raise ValueError(f"labels must be {num_classes} different texts, one per logit, not {len(value)}")
    return tuple(value)


def _temperature(value: object) -> float:
    number: float = _convert(float, value, "temperature")
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"temperature {number} must be above 0 and finite")
    return number


def _checked_digest(weights: Path, stated: object) -> str:
    digest = digest_of(weights)
    if stated not in (None, digest):
        raise ValueError(
            f"{weights.name} has SHA-256 {digest}, but weights_sha256 says {stated}: one of the two is damaged"
        )
    return digest


def _same_keys(
    raw: dict[str, Any], expected: set[str], where: str, optional: frozenset[str] | set[str] = frozenset()
) -> None:
    if unknown := sorted(raw.keys() - expected):
        raise BundleError(f"{where}: unknown keys {unknown}; known are {sorted(expected | optional)}")
    if missing := sorted(expected - raw.keys()):
        raise BundleError(f"{where}: missing keys {missing}")


def _read(kind: type[_T], raw: object, where: str) -> _T:
    """A JSON object -> a frozen dataclass; fields left out keep their defaults, unknown ones are refused."""
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be an object")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(raw.keys() - hints.keys()):
        raise ValueError(f"{where}: unknown keys {unknown}; known are {sorted(hints)}")
    try:
        return kind(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in raw.items()})
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """JSON value -> the type of a field: a plain type, `X | None`, or a tuple of floats."""
    if isinstance(hint, types.UnionType):
        return None if value is None else _convert(typing.get_args(hint)[0], value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} {value!r} must be a list")
        return tuple(_convert(float, item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} {value!r} must be of type {hint.__name__}")
    return value
