"""A speech model as a folder that describes itself: nothing about it is restated elsewhere.

    bundle.json         kind, name, version, model, features, alphabet, decoding, language_model, language_code, and
                        once confidences have been measured (training/calibrate.py) calibration
    model.safetensors   the network's weights and the features' mean and standard deviation
    lm.binary           optional KenLM model (of language_model_unit: words or characters), with lm.words beside it
    README.md           model card: training data, licence, measured results

Only JSON, safetensors and KenLM files are read, never a pickle, and no name in the folder leads out of it, by a link
neither. A broken or hostile bundle is a BundleError, at a cost that its files' sizes bound: what bundle.json declares
reserves no memory.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save as to_safetensors

from asr_server import weights
from asr_server.alphabet import Alphabet
from asr_server.beam_search import DecodingOptions
from asr_server.bundle_folder import BundleError, inside, read_text
from asr_server.calibration import Calibration, ConfidenceMap
from asr_server.features import FeatureConfig, Features
from asr_server.language_model import UNITS, LanguageModel
from asr_server.model import DeepSpeech, DeepSpeechConfig

KIND = "speech"
DESCRIPTION, WEIGHTS, CARD = "bundle.json", "model.safetensors", "README.md"
KEYS = ("kind", "name", "version", "model", "features", "alphabet", "decoding", "language_model", "language_code")
UNIT = "language_model_unit"  # optional: "word", or "character" for a model that spells
CALIBRATION = "calibration"  # optional: {"words": a map of confidences, "utterances": another}
MAX_RATE, MAX_WINDOW, MAX_FILTERS = 192_000, 1 << 14, 1024  # Hz, samples, filter banks
MAX_CHUNK = 10_000  # output frames, with the right context; a stream holds so many
MAX_BEAM_WIDTH = 1024  # as settings.py allows its callers
SHIPPED = Path(__file__).parent / "models"  # the bundles of the package
SHIPPED_DEFAULT = "deepspeech-en"  # answers where a request names none of them
__all__ = ["BundleError", "SpeechBundle", "find", "identity", "load", "save"]
Config = TypeVar("Config")


@dataclass(frozen=True)
class SpeechBundle:
    """A loaded model and everything needed to use it. The network is in evaluation mode, without gradients."""

    name: str
    version: str
    folder: Path
    features: Features
    model: DeepSpeech
    alphabet: Alphabet
    language_model: LanguageModel | None
    decoding: DecodingOptions
    language_code: str = "en-US"
    card: str = ""
    calibration: Calibration = field(default_factory=Calibration)


def find(folder: Path) -> list[Path]:
    """Bundle folders of kind speech directly under a models directory, sorted by name, but for hidden ones."""
    if not folder.is_dir():
        raise BundleError(f"models directory {str(folder)!r} does not exist")
    described = [path.parent for path in sorted(folder.glob(f"[!.]*/{DESCRIPTION}"))]
    return [path for path in described if identity(path)[0] == KIND]


def identity(folder: Path) -> tuple[object, object]:
    """Kind and name as its description has them; BundleError when that cannot be read."""
    description = _description(folder)
    return description.get("kind"), description.get("name")


def load(folder: Path) -> SpeechBundle:
    """Read a bundle; BundleError says which file is missing, broken or of another version."""
    description = _description(folder)
    where = folder / DESCRIPTION
    if description.get("kind") != KIND:
        raise BundleError(f"{where}: kind is {description.get('kind')!r}, a speech bundle's is {KIND!r}")
    wrong = sorted(set(KEYS) ^ (set(description) - {UNIT, CALIBRATION}))
    if wrong:
        raise BundleError(
            f"{where}: keys {wrong} are unknown or missing; a speech bundle has {list(KEYS)} "
            f"and may have {UNIT!r} and {CALIBRATION!r}"
        )
    front = _config(FeatureConfig, description["features"], f"{where}: features")
    config = _config(DeepSpeechConfig, description["model"], f"{where}: model")
    decoding = _config(DecodingOptions, description["decoding"], f"{where}: decoding")
    _bounded(where, front, config, decoding)
    features = Features(front)
    alphabet = _alphabet(description["alphabet"], where)
    if (config.features, config.symbols) != (features.config.size, len(alphabet)):
        raise BundleError(
            f"{where}: the model takes {config.features} features and gives {config.symbols} symbols, "
            f"but there are {features.config.size} and {len(alphabet)}"
        )
    model = _load_network(folder, config, features)
    return SpeechBundle(
        name=_text(description, "name", where),
        version=_text(description, "version", where),
        folder=folder,
        features=features,
        model=model,
        alphabet=alphabet,
        language_model=_language_model(folder, description["language_model"], description.get(UNIT, UNITS[0])),
        decoding=decoding,
        language_code=_text(description, "language_code", where),
        card=_card(folder),
        calibration=_calibration(description.get(CALIBRATION, {}), f"{where}: {CALIBRATION}"),
    )


def save(bundle: SpeechBundle, language_model: Path | None = None, half: bool = False) -> None:
    """Write `bundle.folder`, which is made when missing. `language_model` is copied in, with its .words beside it.

    With `half` matrices are written as float16, 11 bits of each number and half the bytes.
    """
    folder = bundle.folder
    folder.mkdir(parents=True, exist_ok=True)
    copied = None
    if language_model is not None:
        copied = f"lm{language_model.suffix}"
        for suffix in (language_model.suffix, ".words"):
            source, target = language_model.with_suffix(suffix), folder / f"lm{suffix}"
            if source.exists() and source.resolve() != target.resolve():
                shutil.copyfile(source, target)
    description = {
        "kind": KIND,
        "name": bundle.name,
        "version": bundle.version,
        "model": asdict(bundle.model.config),
        "features": asdict(bundle.features.config),
        "alphabet": list(bundle.alphabet.labels),
        "decoding": asdict(bundle.decoding),
        "language_model": copied,
        UNIT: bundle.language_model.unit if bundle.language_model else UNITS[0],
        "language_code": bundle.language_code,
    }
    if bundle.calibration != Calibration():
        description[CALIBRATION] = asdict(bundle.calibration)
    tensors = {
        f"{part}.{name}": (tensor.half() if half and tensor.ndim > 1 else tensor).contiguous()
        for part, name, tensor in _tensors(bundle.features, bundle.model)
    }
    (folder / WEIGHTS).write_bytes(to_safetensors(tensors))  # save_file would make what only its owner can read
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(bundle.card, encoding="utf-8")


def _tensors(features: Features, model: DeepSpeech) -> list[tuple[str, str, Any]]:
    modules = (("features", features), ("model", model))
    return [(part, name, tensor) for part, module in modules for name, tensor in module.state_dict().items()]


def _description(folder: Path) -> dict[str, Any]:
    where = folder / DESCRIPTION
    try:
        description = json.loads(read_text(folder, DESCRIPTION))
    except BundleError:
        raise
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not JSON: {error}") from error
    if not isinstance(description, dict):
        raise BundleError(f"{where}: holds a {type(description).__name__}, not an object")
    return description


def _config(kind: type[Config], values: object, where: str) -> Config:
    """A configuration from JSON; missing keys take their defaults, unknown ones are an error."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise BundleError(f"{where} is {values!r}, not an object")
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise BundleError(f"{where} has unknown keys {unknown}. Select from {sorted(known)}")
    for name, value in values.items():
        example = known[name].default
        number = isinstance(example, int | float) and not isinstance(example, bool)
        optional = example is None and (value is None or isinstance(value, int))
        fits = isinstance(value, type(example)) or (number and isinstance(value, int | float))
        if not (fits or optional) or (number and (isinstance(value, bool) or _fraction_for_integer(value, example))):
            raise BundleError(f"{where}: {name} is {value!r}, of the wrong type; {example!r} would fit")
    try:
        return kind(**values)
    except (ValueError, ArithmeticError) as error:
        raise BundleError(f"{where}: {error}") from error


def _bounded(where: Path, features: FeatureConfig, model: DeepSpeechConfig, decoding: DecodingOptions) -> None:
    """Sizes that no tensor in the file answers for; a server reserves memory by them."""
    sizes = (
        ("sample_rate", features.sample_rate, MAX_RATE),
        ("window in samples", features.window, MAX_WINDOW),
        ("filters", features.filters, MAX_FILTERS),
        ("chunk and right context", (model.chunk or 0) + model.right, MAX_CHUNK),
        ("beam_width", decoding.beam_width, MAX_BEAM_WIDTH),
    )
    for name, value, most in sizes:
        if value > most:
            raise BundleError(f"{where}: {name} is {value}: at most {most}")
    if not math.isfinite(model.clip):
        raise BundleError(f"{where}: clip is {model.clip}: a finite number")


def _calibration(values: object, where: str) -> Calibration:
    """From JSON: a map that is missing is the identity, as is a parameter of one."""
    kinds = [field.name for field in fields(Calibration)]
    if not isinstance(values, Mapping):
        raise BundleError(f"{where} is {values!r}, not an object")
    if unknown := sorted(set(values) - set(kinds)):
        raise BundleError(f"{where} has unknown keys {unknown}. Select from {kinds}")
    return Calibration(**{kind: _config(ConfidenceMap, values[kind], f"{where}: {kind}") for kind in values})


def _fraction_for_integer(value: object, example: object) -> bool:
    return isinstance(example, int) and not isinstance(value, int)


def _alphabet(labels: object, where: Path) -> Alphabet:
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise BundleError(f"{where}: alphabet is {labels!r}, not a list of strings")
    try:
        return Alphabet(tuple(labels))
    except ValueError as error:
        raise BundleError(f"{where}: {error}") from error


def _text(description: dict[str, Any], key: str, where: Path) -> str:
    value = description[key]
    if not isinstance(value, str) or not value:
        raise BundleError(f"{where}: {key} is {value!r}, not a text")
    return value


def _load_network(folder: Path, config: DeepSpeechConfig, features: Features) -> DeepSpeech:
    path = inside(folder, WEIGHTS)
    try:
        with torch.device("meta"):  # sizes without memory
            model = DeepSpeech(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch's, of sizes beyond what it can count
        raise BundleError(f"{folder / DESCRIPTION}: model is too large: {str(error).splitlines()[0]}") from error
    try:
        weights.load(path, {"features": features, "model": model})
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from error
    if not bool((features.std > 0).all()):
        raise BundleError(f"{path}: features.std is not above 0 everywhere, and features are divided by it")
    return model


def _language_model(folder: Path, name: object, unit: object) -> LanguageModel | None:
    if name is None:
        return None
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise BundleError(f"{folder / DESCRIPTION}: language_model is {name!r}, not a file name in this folder")
    path = inside(folder, name)
    inside(folder, path.with_suffix(".words").name)
    try:
        return LanguageModel(path, str(unit))
    except ValueError as error:
        raise BundleError(str(error)) from error


def _card(folder: Path) -> str:
    return read_text(folder, CARD) if (folder / CARD).exists() else ""
