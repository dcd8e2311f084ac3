"""What the network says about a manifest, kept on disk: it runs once, however often the decoder is tuned.

One .npz file holds the outputs of all recordings in one row: log_probs (T, V) and the lengths that divide them. It is
named after a hash of all that decides them: the weights, the configurations of the network and its features (of each
bundle of an ensemble), the mode, jitter and precision, which recordings (path, size, time of the last change), and the
code itself. Texts are not in it, so a corrected transcript costs nothing. An hour of audio takes about 20 MB; any file
may be deleted at any time.
"""

import hashlib
import inspect
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from asr_server import features, gated, model, precision, recurrence
from asr_server.bundle import WEIGHTS
from asr_server.native import core
from training import recognition as running
from training.recognition import LogProbs, Recognition
from training.speech_manifest import Utterance

CODE = (features, gated, model, precision, recurrence, running)


def default_folder() -> Path:
    """Where caches belong: $XDG_CACHE_HOME, or ~/.cache."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "earsight" / "network-outputs"


def keep(recognition: Recognition, utterances: Sequence[Utterance], folder: Path) -> Path:
    """The file with the outputs of these recordings. Where `folder` lacks it the network runs and it is written."""
    path = folder / f"{_key(recognition, utterances)}.npz"
    if path.is_file():
        return path
    bar = tqdm(utterances, f"{recognition.bundle.name}: network", disable=None)
    outputs = [recognition.log_probs(utterance.samples(recognition.rate)) for utterance in bar]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder) as scratch:  # whole or not at all
        unfinished = Path(scratch) / path.name
        np.savez(unfinished, log_probs=np.concatenate(outputs), lengths=np.array([len(each) for each in outputs]))
        unfinished.replace(path)
    return path


def load(path: Path) -> tuple[LogProbs, ...]:
    """(T, V) of each recording, in the manifest's order; ValueError when the file is broken."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return tuple(np.split(arrays["log_probs"], np.cumsum(arrays["lengths"])[:-1]))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: not the outputs of a network ({error}); delete it to have them made again"
        ) from error


def _key(recognition: Recognition, utterances: Sequence[Utterance]) -> str:
    bundles, setting = (recognition.bundle, *recognition.others), recognition.setting
    recordings = [(utterance.audio.resolve(), utterance.audio.stat()) for utterance in utterances]
    decisive = {
        "code": [inspect.getsource(module) for module in CODE],
        "native": core is not None and hashlib.sha256(Path(core.__file__).read_bytes()).hexdigest(),
        "weights": [hashlib.sha256((bundle.folder / WEIGHTS).read_bytes()).hexdigest() for bundle in bundles],
        "model": [asdict(bundle.model.config) for bundle in bundles],
        "features": [asdict(bundle.features.config) for bundle in bundles],
        "setting": [setting.mode, setting.jitter, setting.precision],
        "recordings": [(str(path), found.st_size, found.st_mtime_ns) for path, found in recordings],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]
