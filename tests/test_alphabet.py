import pytest

from asr_server.alphabet import Alphabet


def test_the_paper_has_28_characters_and_a_blank() -> None:
    alphabet = Alphabet()
    assert len(alphabet) == 29
    assert alphabet.labels[:4] == ("", " ", "'", "a")
    assert alphabet.labels[28] == "z"


def test_text_survives_encoding() -> None:
    alphabet = Alphabet()
    assert alphabet.encode("a b'c") == [3, 1, 4, 2, 5]
    assert alphabet.decode([3, 1, 4, 2, 5]) == "a b'c"


def test_collapse_merges_repeats_and_drops_blanks() -> None:
    assert Alphabet().collapse([0, 3, 3, 0, 3, 1, 1, 0, 4]) == "aa b"


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(ValueError, match="character 'Z' in 'a Z'"):
        Alphabet().encode("a Z")


@pytest.mark.parametrize("labels", [(), ("a", ""), ("", "ab"), ("", "a", "a")])
def test_labels_that_are_no_alphabet(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="label"):
        Alphabet(labels)
