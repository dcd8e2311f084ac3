"""Things loaded from files, kept in step with the files: one `Shelf` for each kind of thing.

A thing is taken up, replaced or removed when two looks in a row have found the same, so that nothing is loaded while
it is being copied, and a folder that is renamed away and back is not missed. What cannot be loaded is refused once for
each state of its files, and what was loaded before stays. A directory that cannot be listed, as that of a volume gone
missing, removes nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")
Fingerprint: TypeAlias = tuple[tuple[str, int, int, int], ...]  # name, bytes, ns of the last change, inode of each file


@dataclass(frozen=True)
class Source(Generic[T]):
    """Where things of a kind come from. The functions raise what they like; a thing is then refused."""

    kind: str  # "speech model"
    roots: tuple[Path, ...]
    find: Callable[[Path], Iterable[Path]]  # root -> the things directly in it, in order; OSError: it cannot be listed
    files: Callable[[Path], Iterable[Path]]  # of a thing
    name: Callable[[Path], str]  # without loading it
    load: Callable[[Path], T]


@dataclass(frozen=True)
class _Item(Generic[T]):
    name: str
    files: Fingerprint
    thing: T


@dataclass(frozen=True)
class _Refusal:
    files: Fingerprint
    name: str | None = None  # that another thing had; None: it cannot be loaded


class Shelf(Generic[T]):
    """`report` hears of every attempt: True after a load or a removal, False after a refusal."""

    def __init__(self, source: Source[T], report: Callable[[bool], None]) -> None:
        self.source = source
        self.settled = True  # False: a change has been seen that the next look may take up
        self._report = report
        self._items: dict[Path, _Item[T]] = {}
        self._looks: dict[Path, Fingerprint] = {}
        self._refused: dict[Path, _Refusal] = {}
        self._absent: set[Path] = set()  # roots

    @property
    def things(self) -> dict[str, T]:
        """By name, in the order of their roots and places in them."""
        return {item.name: item.thing for item in self._items.values()}

    def fill(self) -> None:
        """Load everything. What fails is raised: a server does not start on half of what it was told to serve."""
        for root in self.source.roots:
            for path in self.source.find(root):
                self._looks[path] = files = self._fingerprint(path)
                name = self.source.name(path)
                if holder := self._holder(name, path):
                    raise ValueError(f"two {self.source.kind}s are called '{name}': {holder} and {path}")
                self._items[path] = _Item(name, files, self.source.load(path))

    def update(self) -> bool:
        """One look. Whether anything was taken up, replaced or removed."""
        before, self._looks = self._looks, self._look()
        paths = dict.fromkeys([*self._looks, *self._items])
        steady = [path for path in paths if self._looks.get(path) == before.get(path)]
        self.settled = len(steady) == len(paths)
        kept = {path: item for path, item in self._items.items() if path in self._looks or path not in steady}
        removed = [item for path, item in self._items.items() if path not in kept]
        self._items = kept
        for item in removed:
            self._report(True)
            logger.info("%s %r: removed", self.source.kind, item.name)
        replaced = [path for path in steady if path in self._looks and self._is_news(path) and self._take(path)]
        self._items = {path: self._items[path] for path in paths if path in self._items}
        self._refused = {path: refusal for path, refusal in self._refused.items() if path in self._looks}
        return bool(removed or replaced)

    def _look(self) -> dict[Path, Fingerprint]:
        looks: dict[Path, Fingerprint] = {}
        for root in self.source.roots:
            try:
                looks |= {path: self._fingerprint(path) for path in self.source.find(root)}
                self._absent.discard(root)
            except OSError as error:
                if root not in self._absent:
                    logger.error("%s cannot be listed; what was loaded from it stays: %s", root, error)
                self._absent.add(root)
                looks |= {path: item.files for path, item in self._items.items() if path.parent == root}
        return looks

    def _is_news(self, path: Path) -> bool:
        files, item, refusal = self._looks[path], self._items.get(path), self._refused.get(path)
        if refusal is not None and refusal.files == files:
            return refusal.name is not None and self._holder(refusal.name, path) is None
        return item is None or item.files != files

    def _take(self, path: Path) -> bool:
        """Load what is new or has changed; False when it is refused."""
        files = self._looks[path]
        try:
            name = self.source.name(path)
            if holder := self._holder(name, path):
                return self._refuse(path, _Refusal(files, name), f"{holder} is called {name!r} already")
            thing = self.source.load(path)
        except Exception as error:
            if not isinstance(error, OSError | ValueError):
                logger.exception("%s %s", self.source.kind, path)
            return self._refuse(path, _Refusal(files), str(error) or repr(error))
        if self._fingerprint(path) != files:  # what was read may be half of one version and half of another
            self.settled = False
            return False
        self._items[path] = _Item(name, files, thing)
        self._refused.pop(path, None)
        self._report(True)
        logger.info("%s %r: loaded from %s", self.source.kind, name, path)
        return True

    def _refuse(self, path: Path, refusal: _Refusal, reason: str) -> bool:
        self._refused[path] = refusal
        self._report(False)
        stays = "; the one loaded before stays" if path in self._items else ""
        logger.error("%s %s is refused%s: %s", self.source.kind, path, stays, reason)
        return False

    def _holder(self, name: str, path: Path) -> Path | None:
        """What else has that name."""
        return next((other for other, item in self._items.items() if item.name == name and other != path), None)

    def _fingerprint(self, path: Path) -> Fingerprint:
        try:
            return tuple(sorted(_state(file) for file in self.source.files(path)))
        except OSError:  # gone since it was listed
            return ()


def _state(file: Path) -> tuple[str, int, int, int]:
    try:
        status = os.stat(file)
    except OSError:  # gone, or a link to nowhere
        return file.name, -1, 0, 0
    return file.name, status.st_size, status.st_mtime_ns, status.st_ino
