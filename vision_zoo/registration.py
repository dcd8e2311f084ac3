"""A trained bundle comes to a running server: files with stated sizes and hashes, in pieces, into a folder of its own.

The files arrive in a folder whose name begins with a dot, where nobody looks for bundles. Only when all are there, as
stated, and the bundle loads and runs, does a rename put it in its place.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from vision_zoo import bundle
from vision_zoo.classifier import Classifier
from vision_zoo.repository import Repository

FILES = (bundle.DESCRIPTION, bundle.WEIGHTS, bundle.CARD)
MAX_BYTES = 2 << 30  # of all files together
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class RegistrationOffError(Exception):
    """The server was started without a folder for bundles that come later."""


@dataclass(frozen=True)
class Announced:
    """One file that is to come. sha256: in hexadecimal."""

    name: str
    size: int
    sha256: str


def announce(folder: Path) -> list[Announced]:
    """What a sender states about a bundle's files. Raises ValueError where the folder is no vision bundle."""
    bundle.identity(folder)
    paths = [folder / name for name in FILES if (folder / name).is_file()]
    return [Announced(path.name, path.stat().st_size, bundle.digest_of(path)) for path in paths]


class Upload:
    """Files as they arrive, in the order of `files`. A context: what is not taken up by the end of it is deleted."""

    def __init__(self, registry: Path, files: Sequence[Announced], limit: int = MAX_BYTES) -> None:
        _check(files, limit)
        self._left = list(files)
        self.folder = Path(tempfile.mkdtemp(prefix=".upload-", dir=registry))
        self._open: BinaryIO | None = None
        self._written, self._hash = 0, hashlib.sha256()

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._open is not None:
            self._open.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, data: bytes) -> None:
        """The next bytes, which may end one file and begin another. Raises ValueError."""
        view = memoryview(data)
        self._close_full()
        while view:
            if not self._left:
                raise ValueError(f"{len(view)} bytes came after the last of the files that were announced")
            if self._open is None:
                self._open = (self.folder / self._left[0].name).open("wb")
            part = view[: self._left[0].size - self._written]
            self._open.write(part)
            self._hash.update(part)
            self._written += len(part)
            view = view[len(part) :]
            self._close_full()

    def finish(self) -> None:
        """Raises ValueError where bytes are missing."""
        self._close_full()
        if self._left:
            file = self._left[0]
            raise ValueError(f"{file.name} ended after {self._written} of {file.size} bytes")

    def _close_full(self) -> None:
        while self._left and self._written == self._left[0].size:
            file = self._left.pop(0)
            if self._open is None:
                (self.folder / file.name).touch()
            else:
                self._open.close()
            if (found := self._hash.hexdigest()) != file.sha256.lower():
                raise ValueError(f"{file.name} arrived with SHA-256 {found}, but {file.sha256} was announced")
            self._open, self._written, self._hash = None, 0, hashlib.sha256()


def check_folder(folder: Path) -> None:
    """Raises ValueError unless bundles can be kept in it."""
    if not folder.is_dir():
        rule = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"registry folder {folder} {rule}; name one that the server may write to")
    for left in folder.glob(".upload-*"):  # of a server that was killed; there is one to a folder
        shutil.rmtree(left, ignore_errors=True)
    try:
        # What the system says about permissions need not hold, on a disk that is mounted read-only for example.
        with tempfile.TemporaryFile(prefix=".upload-", dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"registry folder {folder} cannot be written to by the server: {reason}") from error


class Registry:
    """Takes bundles up into `folder` and into the repository. ValueError says why one was not.

    To be served again after a restart, what is in the folder must be among the folders of the repository.
    """

    def __init__(self, folder: Path, repository: Repository, limit: int = MAX_BYTES) -> None:
        check_folder(folder)
        self.folder, self._repository, self._limit = folder, repository, limit
        self._taking = threading.Lock()  # of two uploads of one version the second finds the first in its place

    def begin(self, files: Sequence[Announced]) -> Upload:
        return Upload(self.folder, files, self._limit)

    def take_upload(self, upload: Upload) -> Classifier:
        """What has arrived whole becomes served. A version that is there already is never written over."""
        upload.finish()
        name, version = bundle.identity(upload.folder)
        if not _VERSION.fullmatch(version):
            raise ValueError(f"version {version!r} must be 1 to 64 of A-Z a-z 0-9 . _ + - to be registered")
        with self._taking:
            place = self._repository.place(name, version) or self.folder / f"{name}@{version}"
            if place.exists():
                return self._same(place, upload.folder)
            bundle.load(upload.folder)
            upload.folder.chmod(0o755)  # mkdtemp's are for nobody else
            upload.folder.rename(place)
            try:
                return self._repository.load_folder(place)
            except ValueError:
                shutil.rmtree(place)
                raise

    def take_folder(self, folder: Path) -> Classifier:
        """A bundle on this machine, inside one of the repository's folders or this one."""
        roots = [root.resolve() for root in (*self._repository.folders, self.folder)]
        if not any(folder.resolve().is_relative_to(root) for root in roots):
            raise ValueError(f"folder {folder} must be in one of {[str(root) for root in roots]}; or send its files")
        return self._repository.load_folder(folder)

    def _same(self, place: Path, folder: Path) -> Classifier:
        """Sending the same files again is no error, so that a sender may try again."""
        if announce(place) != announce(folder):
            name, version = bundle.identity(folder)
            raise ValueError(f"model {name!r} has a version {version!r} already; give the bundle another version")
        return self._repository.load_folder(place)


def _check(files: Sequence[Announced], limit: int) -> None:
    names = [file.name for file in files]
    if unknown := sorted(set(names) - set(FILES)):
        raise ValueError(f"files {unknown} are no part of a bundle; choose from {list(FILES)}")
    if len(set(names)) < len(names) or not {bundle.DESCRIPTION, bundle.WEIGHTS} <= set(names):
        raise ValueError(f"a bundle is {bundle.DESCRIPTION} and {bundle.WEIGHTS}, each once; announced are {names}")
    total = sum(file.size for file in files)
    if min(file.size for file in files) < 0 or total > limit:
        raise ValueError(f"files of {total} bytes; no size may be below 0, and the limit is {limit} bytes in all")
