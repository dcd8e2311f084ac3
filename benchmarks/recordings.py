"""The speech that a load is made of: LINEAR16 at 16 kHz, with what is said in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asr_server.client import linear16
from asr_server.smoke import SPEECH_SAMPLES
from benchmarks.schedule import RATE, seconds_of
from training.speech_manifest import Utterance, read_manifest


@dataclass(frozen=True)
class Recording:
    audio: bytes
    text: str

    @property
    def duration(self) -> float:
        return seconds_of(self.audio)


def read(manifest: Path | None, most: int) -> list[Recording]:
    """Of a manifest at most so many utterances, evenly chosen; without one the shipped samples.

    ValueError where a file is missing, broken, empty or not at 16 kHz.
    """
    utterances = read_manifest(manifest) if manifest else shipped()
    found = [Recording(linear16(each.samples(RATE)), each.text) for each in evenly(utterances, most)]
    if not all(each.audio for each in found):
        raise ValueError(f"{manifest}: has recordings without any audio")
    return found


def shipped() -> list[Utterance]:
    """The samples' names are what is said."""
    return [Utterance(path, path.stem.replace("-", " "), 0.0) for path in sorted(SPEECH_SAMPLES.glob("*.wav"))]


def evenly(utterances: Sequence[Utterance], most: int) -> list[Utterance]:
    count = min(most, len(utterances))
    return [utterances[index * len(utterances) // count] for index in range(count)]


def write(recordings: Sequence[Recording], folder: Path) -> None:
    """As the processes of a load read them: *.raw, in their order by name."""
    folder.mkdir()
    for index, recording in enumerate(recordings):
        (folder / f"{index:06}.raw").write_bytes(recording.audio)
