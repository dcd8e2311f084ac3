"""The models that a vision server knows: versions of names, aliases, and how they change while it serves.

What is served is one immutable table, put in place with a single assignment: finding a model needs no lock and never
waits for one that is being loaded. A model is loaded and run once before it gets into the table. A request holds the
classifier it found, so it ends on the version that it began with; the last one to let go ends that version's thread.

    FOLDER/*/bundle.json       bundles: several versions of one name may stand side by side
    FOLDER/aliases.json        {"production": "birds@3"}, optional
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from vision_zoo import bundle
from vision_zoo.bundle import BundleError, VisionBundle
from vision_zoo.classifier import Classifier

ALIASES = "aliases.json"
State: TypeAlias = Literal["READY", "LOADING", "UNAVAILABLE"]
Key: TypeAlias = tuple[str, str]  # name and version
Table: TypeAlias = dict[Key, Classifier]  # of one name, the newest version first

logger = logging.getLogger(__name__)


class UnknownModelError(Exception):
    """No model of that name, or no such version of it, is loaded."""


@dataclass(frozen=True)
class ModelState:
    """What became of one version. reason: why it is not READY, else ""."""

    name: str
    version: str
    state: State
    reason: str = ""


class Repository:
    """folders: of bundles. make: what serves a bundle; Classifier with other options, for example."""

    def __init__(self, folders: Iterable[Path] = (), make: Callable[[VisionBundle], Classifier] = Classifier) -> None:
        self.folders = tuple(folders)
        self._make = make
        self._changing = threading.RLock()  # one change at a time; readers take the table as it is
        self._table: Table = {}
        self._aliases: Mapping[str, Key] = {}
        self._states: Mapping[Key, ModelState] = {}

    @classmethod
    def of(cls, classifiers: Iterable[Classifier]) -> Repository:
        """What is loaded already, the first one the default. Raises ValueError for two of one name and version."""
        made = cls()
        for classifier in classifiers:
            made._add(classifier)
        return made

    @classmethod
    def load_all(cls, folders: Iterable[Path], make: Callable[[VisionBundle], Classifier] = Classifier) -> Repository:
        """Every bundle directly in the folders, in their order, not yet warm: the start of a server. ValueError."""
        made = cls(folders, make)
        for folder in made.folders:
            for path in bundle.find(folder):
                made._add(make(bundle.load(path)))
        made._aliases = made._read_aliases()
        return made

    def find(self, name: str = "", version: str = "") -> Classifier:
        """The classifier of a name, an alias or `name@version`; no version: the newest; no name: the default model.

        Raises UnknownModelError, and ValueError where an alias or `name@version` comes with a version of its own.
        """
        table, (name, version) = self._table, self._resolve(name, version)
        if not table:
            raise UnknownModelError("this server has no vision model")
        if not name:
            name = next(iter(table))[0]
        versions = [key[1] for key in table if key[0] == name]
        if not versions:
            choices = [*dict.fromkeys(key[0] for key in table), *self._aliases]
            raise UnknownModelError(f"model {name!r} is unknown; choose from {choices}")
        if version and version not in versions:
            raise UnknownModelError(f"model {name!r} has no version {version!r}; choose from {versions}")
        return table[name, version or versions[0]]

    @property
    def classifiers(self) -> tuple[Classifier, ...]:
        """The default model first; of one name, the newest version first."""
        return tuple(self._table.values())

    def index(self) -> list[ModelState]:
        """Every version that is or was served, or could not be."""
        return list(self._states.values())

    def aliases(self, name: str, version: str) -> list[str]:
        return [alias for alias, key in self._aliases.items() if key == (name, version)]

    def load(self, name: str) -> None:
        """Loads every version of a name that the folders hold, again where it is loaded already, and drops the others.

        Blocks until they are warm; what was served before is served until then, and stays where one cannot be loaded.
        Raises UnknownModelError, BundleError.
        """
        with self._changing:
            found, broken = self._bundles()
            paths = [path for path, key in found.items() if key[0] == name]
            for path in (each.bundle.folder for key, each in self._table.items() if key[0] == name):
                if path in broken:  # it must not go because of that
                    raise broken[path]
            if not paths:
                names, passed_over = (
                    sorted({key[0] for key in found.values()}),
                    "; ".join(("", *map(str, broken.values()))),
                )
                raise UnknownModelError(f"model {name!r} is in no folder of models; choose from {names}{passed_over}")
            fresh = [self._warm(path) for path in paths]
            duplicate = len({each.bundle.version for each in fresh}) < len(fresh)
            if duplicate:
                raise ValueError(f"two of {[str(path) for path in paths]} have the same version")
            self._publish(name, {(name, each.bundle.version): each for each in fresh})

    def place(self, name: str, version: str) -> Path | None:
        """Where in the folders that version is, served or not; None where it is in none."""
        return next((path for path, key in self._bundles()[0].items() if key == (name, version)), None)

    def load_folder(self, folder: Path) -> Classifier:
        """One bundle becomes served, and warm before that, beside the other versions of its name. Raises ValueError."""
        with self._changing:
            if (name := bundle.read_name(folder)) in self._aliases:
                raise ValueError(f"model name {name!r} is an alias on this server; choose another")
            classifier = self._warm(folder)
            of = classifier.bundle
            others = {key: each for key, each in self._table.items() if key[0] == of.name}
            self._publish(of.name, {**others, (of.name, of.version): classifier})
            return classifier

    def unload(self, name: str) -> None:
        """Every version of a name is served no more; requests that hold one end on it. Raises UnknownModelError."""
        with self._changing:
            if not any(key[0] == name for key in self._table):
                names = list(dict.fromkeys(key[0] for key in self._table))
                raise UnknownModelError(f"model {name!r} is not loaded; choose from {names}")
            self._publish(name, {})

    def set_alias(self, alias: str, name: str, version: str = "", folder: Path | None = None) -> Classifier:
        """Points an alias at a version, and notes it in the folder's file. Raises UnknownModelError, ValueError."""
        with self._changing:
            if not bundle.is_name(alias):
                raise ValueError(f"alias {alias!r} must be 1 to 64 of a-z 0-9 . _ - and start with a letter or digit")
            if any(key[0] == alias for key in self._table):
                raise ValueError(f"alias {alias!r} is the name of a model; choose another")
            classifier = self.find(name, version)
            if folder is not None:
                kept = _read_json(folder / ALIASES) | {alias: f"{classifier.bundle.name}@{classifier.bundle.version}"}
                _write_json(folder / ALIASES, kept)
            self._aliases = {**self._aliases, alias: (classifier.bundle.name, classifier.bundle.version)}
            return classifier

    def warm_up(self) -> None:
        """Runs every model once."""
        for classifier in self.classifiers:
            classifier.warm_up()

    def close(self) -> None:
        for classifier in self.classifiers:
            classifier.close()

    def _resolve(self, name: str, version: str) -> Key:
        key = self._aliases.get(name)
        if key is None and "@" in name:
            before, _, after = name.partition("@")
            key = (before, after)
        if key is None:
            return name, version
        if version not in ("", key[1]):
            raise ValueError(f"model {name!r} stands for version {key[1]!r}; version {version!r} contradicts it")
        return key

    def _bundles(self) -> tuple[dict[Path, Key], dict[Path, BundleError]]:
        """Of all bundles in the folders which version each is, and what is wrong with those that cannot be read.

        Somebody may just be copying those; they stop nobody else's.
        """
        found: dict[Path, Key] = {}
        broken: dict[Path, BundleError] = {}
        for path in (path for folder in self.folders for path in bundle.described(folder)):
            try:
                if bundle.is_vision(path):
                    found[path] = bundle.identity(path)
            except BundleError as error:
                broken[path] = error
        return found, broken

    def _warm(self, folder: Path) -> Classifier:
        """Loaded and run once. The index says so meanwhile, and why not afterwards."""
        key = bundle.identity(folder)
        if key not in self._table:
            self._note(key, "LOADING", "is being loaded")
        try:
            classifier = self._make(bundle.load(folder))
            classifier.warm_up()
        except Exception as error:
            logger.error("vision model %s@%s is refused: %s", *key, error)
            if key not in self._table:
                self._note(key, "UNAVAILABLE", str(error) or repr(error))
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"bundle {folder} loads but does not run: {error}") from error
        return classifier

    def _add(self, classifier: Classifier) -> None:
        of = classifier.bundle
        if other := self._table.get((of.name, of.version)):
            folders = f"{other.bundle.folder} and {of.folder}"
            raise ValueError(f"two vision models are called {of.name!r} in version {of.version!r}: {folders}")
        others = {key: each for key, each in self._table.items() if key[0] == of.name}
        self._publish(of.name, {**others, (of.name, of.version): classifier})

    def _publish(self, name: str, versions: Table) -> None:
        """All versions of a name at once. A name keeps its place in the table, so that the default stays."""
        ordered = {key: versions[key] for key in sorted(versions, key=lambda key: age(key[1]), reverse=True)}
        table: Table = {}
        for key, classifier in self._table.items():
            table |= ordered if key[0] == name else {key: classifier}
        gone = [key for key in self._table if key[0] == name and key not in ordered]
        self._table = table | ordered
        for key in ordered:
            self._note(key, "READY")
        for key in gone:
            self._note(key, "UNAVAILABLE", "unloaded")
            logger.info("vision model %s@%s: no longer served", *key)

    def _note(self, key: Key, state: State, reason: str = "") -> None:
        self._states = {**self._states, key: ModelState(*key, state, reason)}

    def _read_aliases(self) -> dict[str, Key]:
        found: dict[str, Key] = {}
        for folder in self.folders:
            for alias, target in _read_json(folder / ALIASES).items():
                name, at, version = target.partition("@")
                if not at or (name, version) not in self._table:
                    choices = [f"{key[0]}@{key[1]}" for key in self._table]
                    raise ValueError(f"{folder / ALIASES}: {alias!r} points at {target!r}; choose from {choices}")
                if any(key[0] == alias for key in self._table):
                    raise ValueError(f"{folder / ALIASES}: alias {alias!r} is the name of a model; choose another")
                found[alias] = (name, version)
        return found


def age(version: str) -> list[tuple[int, int, str]]:
    """A key that sorts 1.9 before 1.10 and both before 2, and words before what lacks them: 2.0-rc1 before 2.0."""
    parts = re.findall(r"\d+|[^\d._-]+", version)
    return [*((2, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts), (1, 0, "")]


def _read_json(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ValueError(f'{file} must be a JSON object of aliases, as {{"production": "birds@3"}}')
    return content


def _write_json(file: Path, content: dict[str, str]) -> None:
    """By a rename, so that no reader sees half of it."""
    fresh = file.with_name(f".{file.name}")
    fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(fresh, file)
