"""The lines of manifests as they are checked: every one of them, also those that training would stop at."""

import json
from dataclasses import dataclass
from pathlib import Path

from training.speech_manifest import is_length, said

ERROR, WARNING = "error", "warning"
RULES = (  # of a line, of its recording, of its text, of both, of several lines, of a test set
    "line",
    *("missing", "unreadable", "rate", "channels", "duration", "silent", "clipping"),
    *("empty", "alphabet"),
    *("length", "speed", "ctc", "zeros"),
    *("conflict", "twice", "same-audio", "same-id", "same-text"),
    *("test-audio", "test-speaker", "test-text"),
)


@dataclass(frozen=True)
class Finding:
    """What is wrong with one line of a manifest. Errors spoil a training or an evaluation, warnings are to be known."""

    manifest: Path
    line: int
    severity: str
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.manifest}:{self.line}: {self.severity}: {self.rule}: {self.text}"


@dataclass(frozen=True)
class Entry:
    """One utterance, or one noise, which has no text."""

    manifest: Path
    line: int
    audio: Path
    duration: float  # seconds, as the manifest says
    text: str  # as training reads it: lower case, single spaces
    speaker: str
    id: str
    noise: bool = False

    @property
    def place(self) -> str:
        """Where it stands, for a sentence."""
        return f"{self.manifest}:{self.line}"

    def finding(self, severity: str, rule: str, text: str) -> Finding:
        """Something about this line."""
        return Finding(self.manifest, self.line, severity, rule, text)


def read_entries(manifest: Path, noise: bool = False) -> tuple[list[Entry], list[Finding]]:
    """The usable lines of a manifest and what is wrong with the others; ValueError when it cannot be read at all."""
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{manifest}: cannot be read as a manifest: {error}") from error
    entries: list[Entry] = []
    findings: list[Finding] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries.append(_entry(line, manifest, number, noise))
        except ValueError as error:
            findings.append(Finding(manifest, number, ERROR, "line", str(error)))
    if not entries and not findings:
        raise ValueError(f"{manifest}: has no utterances")
    return entries, findings


def _entry(line: str, manifest: Path, number: int, noise: bool) -> Entry:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"a line is one JSON object, not {type(values).__name__}")
    kinds: dict[str, type | tuple[type, ...]] = {"audio_filepath": str, "duration": (int, float)}
    if not noise:
        kinds["text"] = str
    for key, kind in kinds.items():
        if not isinstance(values.get(key), kind) or isinstance(values[key], bool):
            raise ValueError(f"{key!r} is {values.get(key)!r}; a line needs {', '.join(kinds)}")
    if not is_length(values["duration"]):
        raise ValueError(f"'duration' is {values['duration']}: a finite number of seconds, not below 0")
    return Entry(
        manifest,
        number,
        manifest.parent / values["audio_filepath"],
        float(values["duration"]),
        "" if noise else " ".join(values["text"].lower().split()),
        said(values, "speaker"),
        said(values, "id"),
        noise,
    )
