"""Phrases that a request asks to listen for: SpeechContext and SpeechAdaptation -> hot words with boosts.

A boost is a natural logarithm here as in hot_words.py: what a text gains for each time it has the phrase.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from asr_server.alphabet import Alphabet
from asr_server.hot_words import HotWords
from asr_server.wire import speech_pb2 as pb

MAX_PHRASES = 5000  # of a request, and
MAX_LENGTH = 100  # characters of each, and
MAX_CHARACTERS = 100_000  # of all of them: Google's limits; a character takes some 140 bytes while the call lasts
MAX_BOOST = 20.0
DEFAULT_BOOST = 3.0  # of phrases without one: twenty times likelier

_BAD = "Invalid recognition 'config': bad speech adaptation."
_TOO_MANY = f"{_BAD} There are more than {MAX_PHRASES} phrases."
_CLASS = re.compile(r"\$\{([^}]*)\}|\$(\w+)")


def boosts(adaptation: pb.SpeechAdaptation | None, contexts: Sequence[pb.SpeechContext]) -> dict[str, float]:
    """Phrase -> boost, the highest where it is named twice. `adaptation` supersedes `contexts`. ValueError for what
    is too much, too long, or refers to something that the request does not hold."""
    found: dict[str, float] = {}
    pairs = _contexts(contexts) if adaptation is None else _adaptation(adaptation)
    for count, (phrase, boost) in enumerate(pairs):
        if count == MAX_PHRASES:
            raise ValueError(_TOO_MANY)
        _check_length(phrase)
        phrase = " ".join(phrase.lower().split())
        if phrase and boost:
            found[phrase] = max(boost, found.get(phrase, 0.0))
    if (characters := sum(map(len, found))) > MAX_CHARACTERS:
        raise ValueError(f"{_BAD} The phrases have {characters} characters, at most {MAX_CHARACTERS} in all.")
    return found


def _check_length(phrase: str) -> None:
    if len(phrase) > MAX_LENGTH:
        raise ValueError(f"{_BAD} The phrase {phrase[:40]!r}... has {len(phrase)} characters, at most {MAX_LENGTH}.")


def hot_words(boosts: Mapping[str, float], alphabet: Alphabet) -> HotWords | None:
    """The automaton, None without phrases. ValueError for a phrase that the model has no letters for."""
    letters = set("".join(alphabet.labels))
    for phrase in boosts:
        if unknown := sorted(set(phrase) - letters):
            raise ValueError(
                f"{_BAD} The phrase {phrase!r} has {unknown[0]!r}, which the model cannot write; write it out with "
                f"{''.join(sorted(letters - {' '}))} and spaces."
            )
    return HotWords(boosts, alphabet) if boosts else None


def _contexts(contexts: Iterable[pb.SpeechContext]) -> Iterator[tuple[str, float]]:
    for context in contexts:
        boost = _boost(context.boost)
        yield from ((phrase, boost) for phrase in context.phrases)


def _adaptation(adaptation: pb.SpeechAdaptation) -> Iterator[tuple[str, float]]:
    if adaptation.phrase_set_references:
        named = adaptation.phrase_set_references[0][:MAX_LENGTH]
        raise ValueError(
            f"{_BAD} phrase_set_references has {named!r}: this server keeps no phrase sets; send them in phrase_sets."
        )
    if adaptation.abnf_grammar.abnf_strings:
        raise ValueError(f"{_BAD} abnf_grammar is not supported; send its phrases in phrase_sets.")
    if sum(len(phrase_set.phrases) for phrase_set in adaptation.phrase_sets) > MAX_PHRASES:
        raise ValueError(_TOO_MANY)  # also of those whose classes are empty, which become no phrase
    classes: dict[str, tuple[str, ...]] = {}
    for each in adaptation.custom_classes:
        items = tuple(item.value for item in each.items)  # tuples, which `product` does not copy for each phrase
        classes.update({name: items for name in (each.custom_class_id, each.name) if name})
    for phrase_set in adaptation.phrase_sets:
        for phrase in phrase_set.phrases:
            boost = _boost(phrase.boost or phrase_set.boost)
            yield from ((text, boost) for text in _expanded(phrase.value, classes))


def _expanded(phrase: str, classes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Every phrase that results when custom classes (`$name` or `${name}`) are replaced by their items."""
    _check_length(phrase)  # also bounds its classes: an empty item would hide any number of them
    pieces: list[Sequence[str]] = []
    end = 0
    for match in _CLASS.finditer(phrase):
        name = match[1] if match[1] is not None else match[2]
        if name not in classes:
            known = ", ".join(itertools.islice(classes, 20)) or "none"
            raise ValueError(f"{_BAD} The phrase {phrase!r} names the class {name!r}; the request has: {known[:1000]}.")
        pieces += [(phrase[end : match.start()],), classes[name]]
        end = match.end()
    return map("".join, itertools.product(*pieces, (phrase[end:],)))


def _boost(boost: float) -> float:
    """0 means the usual one, and what is negative does not count, as with Google."""
    if not boost <= MAX_BOOST:
        raise ValueError(f"{_BAD} A boost is {boost:g}; it must be at most {MAX_BOOST:g}.")
    return DEFAULT_BOOST if boost == 0 else max(boost, 0.0)
