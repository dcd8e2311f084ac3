"""Phrases with boosts out of SpeechContext and SpeechAdaptation, and everything that a request may get wrong there."""

from __future__ import annotations

import math

import pytest

from asr_server.alphabet import Alphabet
from asr_server.phrases import DEFAULT_BOOST, boosts, hot_words
from asr_server.wire import speech_pb2 as pb

Phrase, Context = pb.PhraseSet.Phrase, pb.SpeechContext


def phrase_set(*phrases: tuple[str, float], boost: float = 0.0) -> pb.PhraseSet:
    return pb.PhraseSet(boost=boost, phrases=[Phrase(value=value, boost=own) for value, own in phrases])


def custom_class(name: str, *items: str) -> pb.CustomClass:
    return pb.CustomClass(custom_class_id=name, items=[pb.CustomClass.ClassItem(value=item) for item in items])


def adapted(*phrases: str, classes: tuple[pb.CustomClass, ...] = (), boost: float = 2.0) -> dict[str, float]:
    sets = [phrase_set(*((phrase, boost) for phrase in phrases))]
    return boosts(pb.SpeechAdaptation(phrase_sets=sets, custom_classes=classes), [])


# --- contexts ---


def test_contexts() -> None:
    contexts = [Context(phrases=["North", " go  up "], boost=5), Context(phrases=["down"]), Context()]
    assert boosts(None, contexts) == {"north": 5.0, "go up": 5.0, "down": DEFAULT_BOOST}


def test_empty_contexts_and_phrases_ask_for_nothing() -> None:
    assert boosts(None, []) == boosts(None, [Context()]) == boosts(None, [Context(phrases=["", "  "], boost=4)]) == {}


def test_the_highest_boost_counts() -> None:
    contexts = [Context(phrases=["up"], boost=boost) for boost in (2, 7, 4)]
    assert boosts(None, contexts) == {"up": 7.0}
    assert boosts(None, [Context(phrases=["up"], boost=2), Context(phrases=["UP"], boost=-3)]) == {"up": 2.0}


def test_negative_boosts_do_not_count() -> None:
    assert boosts(None, [Context(phrases=["up"], boost=-1)]) == {}
    assert adapted("up", boost=-math.inf) == {}


@pytest.mark.parametrize("boost", [20.5, math.inf, math.nan])
def test_too_high_boosts(boost: float) -> None:
    text = f"bad speech adaptation. A boost is {boost:g}; it must be at most 20"
    with pytest.raises(ValueError, match=text):
        boosts(None, [Context(phrases=["up"], boost=boost)])
    with pytest.raises(ValueError, match=text):
        adapted("up", boost=boost)
    assert boosts(None, [Context(phrases=["up"], boost=20)]) == {"up": 20.0}


# --- adaptation ---


def test_adaptation_supersedes_contexts() -> None:
    contexts = [Context(phrases=["down"], boost=9)]
    assert boosts(pb.SpeechAdaptation(phrase_sets=[phrase_set(("up", 2))]), contexts) == {"up": 2.0}
    assert boosts(pb.SpeechAdaptation(), contexts) == {}


def test_a_phrases_boost_stands_before_its_sets() -> None:
    sets = [phrase_set(("up", 0), ("down", 6), ("left", -1), boost=4), phrase_set(("right", 0))]
    expected = {"up": 4.0, "down": 6.0, "right": DEFAULT_BOOST}
    assert boosts(pb.SpeechAdaptation(phrase_sets=sets), []) == expected


def test_custom_classes() -> None:
    """`$name` ends with the word, `${name}` with its brace; a class has two names; products are written out."""
    ways = custom_class("way", "north", "west")
    far = pb.CustomClass(name="projects/x/customClasses/far", items=[pb.CustomClass.ClassItem(value="far")])
    classes = (ways, far)
    assert set(adapted("go $way", classes=classes)) == {"go north", "go west"}
    assert set(adapted("${way}ern", classes=classes)) == {"northern", "western"}
    assert set(adapted("$way $way", classes=classes)) == {
        f"{a} {b}" for a in ("north", "west") for b in ("north", "west")
    }
    assert set(adapted("${projects/x/customClasses/far} $way.", classes=classes)) == {"far north.", "far west."}
    assert adapted("go $none", classes=(custom_class("none"),)) == {}


@pytest.mark.parametrize("phrase", ["go $way", "go ${way}", "$ways", "${}", "$way $far"])
def test_unknown_classes(phrase: str) -> None:
    with pytest.raises(ValueError, match=r"The phrase '.*' names the class '(way|ways||far)'; the request has: \w+\.$"):
        adapted(phrase, classes=(custom_class("way", "x"),) if phrase == "$way $far" else (custom_class("other", "x"),))
    with pytest.raises(ValueError, match="the request has: none"):
        adapted("$way")


def test_a_lone_dollar_is_no_class() -> None:
    assert adapted("5 $ each") == {"5 $ each": 2.0}


def test_what_this_server_does_not_keep() -> None:
    with pytest.raises(ValueError, match=r"phrase_set_references has 'projects/x'.*send them in phrase_sets"):
        boosts(pb.SpeechAdaptation(phrase_set_references=["projects/x"]), [])
    with pytest.raises(ValueError, match="abnf_grammar is not supported"):
        boosts(pb.SpeechAdaptation(abnf_grammar=pb.SpeechAdaptation.ABNFGrammar(abnf_strings=["#ABNF"])), [])


# --- limits ---

MANY = [f"p {i}" for i in range(5000)]
TOO_MANY = "There are more than 5000 phrases"


def test_five_thousand_phrases() -> None:
    assert len(boosts(None, [Context(phrases=MANY)])) == len(adapted(*MANY)) == 5000
    for more in ("one more", ""):
        with pytest.raises(ValueError, match=TOO_MANY):
            boosts(None, [Context(phrases=[*MANY, more])])
        with pytest.raises(ValueError, match=TOO_MANY):
            adapted(*MANY, more)


@pytest.mark.parametrize("boost", [2.0, -1.0])
@pytest.mark.parametrize("item", ["x", ""])
def test_products_of_classes_end_at_the_limit(boost: float, item: str) -> None:
    """10^50 phrases that all are the same, or nothing, or do not count."""
    with pytest.raises(ValueError, match=TOO_MANY):
        adapted("$a" * 50, classes=(custom_class("a", *[item] * 10),), boost=boost)


def test_phrases_that_become_nothing_are_counted() -> None:
    with pytest.raises(ValueError, match=TOO_MANY):
        adapted(*["$none"] * 5001, classes=(custom_class("none"),))


def test_lengths() -> None:
    """Of what is sent and of what classes make of it."""
    long = "x" * 101
    assert list(boosts(None, [Context(phrases=[long[1:]])])) == [long[1:]]
    text = f"The phrase '{'x' * 40}'... has 101 characters, at most 100"
    with pytest.raises(ValueError, match=text):
        boosts(None, [Context(phrases=[long])])
    with pytest.raises(ValueError, match="has 104 characters, at most 100"):
        adapted("x $a", classes=(custom_class("a", "y" * 102),))
    with pytest.raises(ValueError, match="has 102 characters"):
        adapted("$a" * 51, classes=(custom_class("a", ""),))


def test_characters_in_all() -> None:
    phrases = [f"{i:0100}" for i in range(1001)]
    assert len(boosts(None, [Context(phrases=phrases[1:])])) == 1000
    with pytest.raises(ValueError, match="The phrases have 100100 characters, at most 100000 in all"):
        boosts(None, [Context(phrases=phrases)])


# --- the automaton ---


def test_hot_words() -> None:
    alphabet = Alphabet()
    assert hot_words({}, alphabet) is None
    made = hot_words({"go north": 2.0, "it's": 3.0}, alphabet)
    assert made is not None
    assert len(made) == 2
    assert made.words == {"go", "north", "it's"}


@pytest.mark.parametrize(
    ("phrase", "character"), [("route 66", "6"), ("café", "é"), ("go, north", ","), ("a\u0000b", "\\x00")]
)
def test_what_the_model_has_no_letters_for(phrase: str, character: str) -> None:
    with pytest.raises(ValueError, match="which the model cannot write; write it out with 'abc") as caught:
        hot_words({"fine": 1.0, phrase: 2.0}, Alphabet())
    assert f"has '{character}', which" in str(caught.value)
