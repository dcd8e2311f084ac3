"""What became of one utterance."""

from dataclasses import dataclass

from training.alignment import Pair, align
from training.error_rate import Edits, character_edits, word_edits
from training.speech_manifest import Utterance


@dataclass(frozen=True)
class Heard:
    """An utterance, the text that was heard, and its errors.

    seconds: spent on recognising it, None where that was not measured; offline: the text of the chunked pass, when a
    stream was compared with it.
    """

    utterance: Utterance
    text: str
    audio_seconds: float
    words: Edits
    characters: Edits
    seconds: float | None = None
    offline: str | None = None

    @property
    def real_time_factor(self) -> float | None:
        return None if self.seconds is None else self.seconds / max(self.audio_seconds, 1e-9)

    @property
    def alignment(self) -> tuple[Pair, ...]:
        """Of the words."""
        return align(self.utterance.text.split(), self.text.split())

    def as_json(self) -> dict[str, object]:
        return {
            "audio_filepath": str(self.utterance.audio),
            "text": self.utterance.text,
            "heard": self.text,
            "word_errors": self.words.errors,
            "character_errors": self.characters.errors,
        }


def compare(
    utterance: Utterance, text: str, audio_seconds: float, seconds: float | None = None, offline: str | None = None
) -> Heard:
    """Counts the errors."""
    words, characters = word_edits(utterance.text, text), character_edits(utterance.text, text)
    return Heard(utterance, text, audio_seconds, words, characters, seconds, offline)
