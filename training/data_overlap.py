"""What several lines have in common that they should not: duplicates, and what training shares with a test set."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from training.data_entries import ERROR, WARNING, Entry, Finding
from training.recording_facts import RecordingFacts

SHARED_WORDS = 4  # a shorter text is anybody's: "yes", a date, a digit
LIBRISPEECH = "librispeech"
_LIBRISPEECH_PART = re.compile(r"(librispeech-)?(train|dev|test)-(clean|other)\b")
_PART = re.compile(r"-(train|fit|dev|development|validation|test|part)\b.*")

Facts = Mapping[Path, RecordingFacts]


def voice(speaker: str) -> str:
    """A speaker "corpus:id" with the corpus's family for its name, so that its parts compare: "" stays "".

    All parts of LibriSpeech (train-clean-5, dev-other-part, test-clean...) number the same readers; of another corpus
    the name ends where the name of a part begins: an4-train and an4-test are both an4. An id alone means nothing: 19
    of one corpus is not 19 of another. A name without a colon is compared as it is.
    """
    corpus, colon, name = speaker.partition(":")
    if not colon:
        return speaker
    family = LIBRISPEECH if _LIBRISPEECH_PART.match(corpus.lower()) else _PART.sub("", corpus.lower())
    return f"{family}:{name}"


def duplicates(entries: Sequence[Entry], facts: Facts) -> Iterator[Finding]:
    """Each line that repeats an earlier one. A file named twice counts double in training, and may mean to."""
    for first, entry in _repeats(entries, lambda entry: str(entry.audio.resolve())):
        if first.text != entry.text:
            yield entry.finding(ERROR, "conflict", f"the file of {first.place} with another text, {first.text!r}")
        else:
            yield entry.finding(WARNING, "twice", f"the file of {first.place}")
    files = _once(entries)
    for first, entry in _repeats(files, lambda entry: facts[entry.audio].digest):
        if first.text != entry.text:
            text = f"sounds exactly like {first.place}, whose text is {first.text!r}, not {entry.text!r}"
            yield entry.finding(ERROR, "conflict", text)
        else:
            yield entry.finding(WARNING, "same-audio", f"sounds exactly like {first.place}")
    for first, entry in _repeats(files, lambda entry: entry.id and f"{voice(entry.speaker)} {entry.id}"):
        yield entry.finding(WARNING, "same-id", f"has the id {entry.id!r} of {first.place} and another file")
    for first, entry in _repeats(files, lambda entry: entry.text and entry.speaker and f"{entry.speaker} {entry.text}"):
        if facts[first.audio].digest != facts[entry.audio].digest:
            yield entry.finding(WARNING, "same-text", f"{entry.speaker} reads {entry.text!r} as at {first.place}")


def shared_with_tests(entries: Iterable[Entry], tests: Sequence[Entry], facts: Facts) -> Iterator[Finding]:
    """Each line whose recording, voice or text (from four words) is a test set's too. The worst of the three counts."""
    sounds = _first_by(tests, lambda entry: facts[entry.audio].digest)
    voices = _first_by(tests, lambda entry: voice(entry.speaker))
    texts = _first_by(tests, _long_text)
    for entry in entries:
        if found := sounds.get(facts[entry.audio].digest):
            yield entry.finding(ERROR, "test-audio", f"is the recording of {found.place}")
        elif found := voices.get(voice(entry.speaker)):
            yield entry.finding(ERROR, "test-speaker", f"{entry.speaker} is {found.speaker} of {found.place}")
        elif found := texts.get(_long_text(entry)):
            yield entry.finding(ERROR, "test-text", f"{entry.text!r} is the text of {found.place}")


def _long_text(entry: Entry) -> str:
    return entry.text if len(entry.text.split()) >= SHARED_WORDS else ""


def _first_by(entries: Iterable[Entry], key: Callable[[Entry], str]) -> dict[str, Entry]:
    """The first entry of each key; those whose key is empty say nothing."""
    first: dict[str, Entry] = {}
    for entry in entries:
        if value := key(entry):
            first.setdefault(value, entry)
    return first


def _repeats(entries: Sequence[Entry], key: Callable[[Entry], str]) -> Iterator[tuple[Entry, Entry]]:
    """(the first, a later one) of each key that is not empty."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if value := key(entry):
            groups[value].append(entry)
    for first, *later in groups.values():
        for entry in later:
            yield first, entry


def _once(entries: Sequence[Entry]) -> list[Entry]:
    """One entry for each file."""
    return list(_first_by(entries, lambda entry: str(entry.audio.resolve())).values())
