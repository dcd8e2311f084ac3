"""The files of a bundle's folder: regular ones, inside of it, and texts of bounded length."""

from __future__ import annotations

from pathlib import Path

MAX_TEXT = 1 << 20  # bytes of bundle.json or the card


class BundleError(ValueError):
    """A folder that is not a bundle this version can load; the text names the file and what is wrong with it."""


def inside(folder: Path, name: str) -> Path:
    """A file of the bundle, which need not exist. BundleError where it is a link out of the folder, or no file."""
    path = folder / name
    try:
        target = path.resolve()
    except RuntimeError as error:  # a link to itself
        raise BundleError(f"{path}: {error}") from error
    if not target.is_relative_to(folder.resolve()):
        raise BundleError(f"{path}: leads out of the bundle to {target}")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise BundleError(f"{path}: not a regular file")
    return path


def read_text(folder: Path, name: str) -> str:
    """UTF-8. BundleError says what is wrong with it."""
    path = inside(folder, name)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT + 1)
        if len(content) > MAX_TEXT:
            raise BundleError(f"{path}: more than {MAX_TEXT} bytes")
        return content.decode("utf-8")
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}. A bundle is a folder with this file") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: not UTF-8: {error}") from error
