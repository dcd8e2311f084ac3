"""Places for results, checked before the hours of work that make them."""

import os
from pathlib import Path


def check_file(option: str, path: Path) -> None:
    """ValueError where no file can be written."""
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written: no permission")


def check_folder(option: str, path: Path) -> None:
    """ValueError where no folder can be made, or none written into."""
    nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not nearest.is_dir():
        raise ValueError(f"{option} {path}: {nearest} is a file, a folder is needed")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written: no permission in {nearest}")
