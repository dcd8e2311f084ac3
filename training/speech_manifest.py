"""Manifests: one utterance a line as JSON, {"audio_filepath", "text", "duration", ...}, as NVIDIA NeMo writes them.

A relative audio path starts at the manifest's own folder, so a folder of data can be moved as a whole.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest. `duration` in seconds; what the manifest does not say is empty, or None."""

    audio: Path
    text: str
    duration: float
    speaker: str = ""
    id: str = ""  # of the recording in its corpus
    source: str = ""  # the corpus
    kind: str = ""  # of the background, in a noisy test
    snr: float | None = None  # decibels, from "snr_db"; never estimated

    @property
    def name(self) -> str:
        """What it is called by: its id, else its file's stem."""
        return self.id or self.audio.stem

    def samples(self, rate: int) -> NDArray[np.float32]:
        """The recording as mono in [-1, 1], (S,); ValueError when it is missing, broken or of another rate."""
        try:
            samples, found = soundfile.read(self.audio, dtype="float32", always_2d=True)
        except (OSError, RuntimeError, TypeError) as error:  # of .raw, whose rate nobody says
            raise ValueError(f"{self.audio}: cannot be read as audio: {error}") from error
        if found != rate:
            raise ValueError(f"{self.audio}: has {found} Hz, the features need {rate} Hz; convert the data first")
        mono: NDArray[np.float32] = np.ascontiguousarray(samples[:, 0])  # the first channel, as the server takes it
        return mono


def read_manifest(path: Path, text: bool = True) -> list[Utterance]:
    """All utterances of one file in its order; ValueError names the file and the line of what is wrong.

    Noises have no text: `text` False does not ask for it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a manifest: {error}") from error
    utterances = [_utterance(line, path, number, text) for number, line in enumerate(lines, 1) if line.strip()]
    if not utterances:
        raise ValueError(f"{path}: has no utterances")
    return utterances


def _utterance(line: str, path: Path, number: int, text: bool) -> Utterance:
    where = f"{path}, line {number}"
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: a line is one JSON object, not {type(entry).__name__}")
    needed: dict[str, type | tuple[type, ...]] = {"audio_filepath": str, "duration": (int, float)}
    if text:
        needed["text"] = str
    for key, kinds in needed.items():
        if key not in entry:
            raise ValueError(f"{where}: {key!r} is missing; a line needs {', '.join(needed)}")
        if not isinstance(entry[key], kinds) or isinstance(entry[key], bool):
            raise ValueError(f"{where}: {key!r} is {entry[key]!r}, of the wrong type")
    if not is_length(entry["duration"]):
        raise ValueError(f"{where}: 'duration' is {entry['duration']}: a finite number of seconds, not below 0")
    audio = path.parent / entry["audio_filepath"]
    if not audio.is_file():
        raise ValueError(f"{where}: there is no audio file {audio}")
    words = " ".join(entry.get("text", "").lower().split())
    names = {key: said(entry, key) for key in ("speaker", "id", "source", "kind")}
    return Utterance(audio, words, float(entry["duration"]), **names, snr=_snr(entry.get("snr_db"), where))


def said(entry: Mapping[str, object], key: str) -> str:
    """A name in a line of a manifest; null is as good as none."""
    value = entry.get(key)
    return "" if value is None else str(value)


def is_length(seconds: float) -> bool:
    """JSON as Python reads it knows NaN and Infinity."""
    return 0 <= seconds < math.inf


def _snr(value: object, where: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{where}: 'snr_db' is {value!r}: a number of decibels, or left out where it is not known")
    return float(value)
