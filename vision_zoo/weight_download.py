"""Weights that others publish for the networks of this package; fetched only where a user asks for them by name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/nasnet/"


@dataclass(frozen=True)
class PublishedWeights:
    """A file on the web; md5 is the digest that its publisher gives."""

    url: str
    md5: str


# As keras/applications/nasnet.py names them. They were trained in TensorFlow, with the padding of our networks.
PUBLISHED = {
    "nasnet-a-mobile": PublishedWeights(_KERAS + "NASNet-mobile.h5", "020fb642bf7360b370c678b08e0adf61"),
    "nasnet-a-large": PublishedWeights(_KERAS + "NASNet-large.h5", "11577c9a518f0070763c2b964a382f17"),
}


def download(weights: PublishedWeights, folder: Path | None = None) -> Path:
    """-> the file in `folder` (None: torch's cache), fetched unless it is there. ValueError names the other way."""
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / weights.url.rpartition("/")[2]
    if not file.exists():
        partial = file.with_name(file.name + ".partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(partial), progress=False)
        except Exception as error:  # what urllib raises, and much besides
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"cannot download {weights.url}: {reason}; give a local file instead") from error
        _check(partial, weights)
        partial.replace(file)
    _check(file, weights)
    return file


def _check(file: Path, weights: PublishedWeights) -> None:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != weights.md5:
        raise ValueError(f"{file} has MD5 {digest}, not {weights.md5} as published: delete it and try again")
