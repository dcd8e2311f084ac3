"""Damaged and hostile language models: an error each, never a crash of the process (kenlm_binary.py, arpa.py).

KenLM believes the pointers in its files, so what these tests look for kills the interpreter. Files that are merely
damaged at random are therefore opened and asked for every word in a process of their own.
"""

import itertools
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asr_server import kenlm_binary
from asr_server.language_model import LanguageModel
from asr_server.sealed_file import SealedFile
from tests import toy_arpa, toy_binaries

WORDS = ("<unk>", "a", "b", "</s>", "zz")
COUNTS = 88 + 20  # where the numbers of n-grams begin
NAMES = sorted(toy_binaries.BINARIES)


def scores(model: LanguageModel) -> list[float]:
    """Of every text of three words."""
    found = []
    for text in itertools.product(WORDS, repeat=3):
        state = model.begin()
        for word in text:
            score, state = model.score(state, word)
            found.append(score)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_form_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "toy.arpa").write_text(toy_binaries.ARPA)
    expected = scores(LanguageModel(tmp_path / "toy.arpa"))
    found = scores(LanguageModel(toy_binaries.write(tmp_path, name)))
    if "-q" not in toy_binaries.BINARIES[name][0]:  # four values for each order are not enough for all of them
        assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_cut_is_refused(tmp_path: Path, name: str) -> None:
    content, path = toy_binaries.content(name), tmp_path / "cut.binary"
    end = content.index(b"<unk>\0") + 6  # the words after it are not read
    for size in range(end):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut\.binary' is not a KenLM binary"):
            LanguageModel(path)


def patched(place: int, *values: int, form: str = "Q") -> Callable[[bytes], bytes]:
    def patch(content: bytes) -> bytes:
        data = bytearray(content)
        struct.pack_into(f"<{len(values)}{form}", data, place, *values)
        return bytes(data)

    return patch


def header(name: str) -> int:
    return -(-(COUNTS + 8 * 3) // 8) * 8


TRIE = header("trie") + 8 + 8 * 5  # where its unigrams begin: after the number of words and their hashes
CASES = [
    ("trie", lambda content: content.replace(b"version 5", b"version 4"), "format version '4'"),
    ("trie", patched(56, 7, form="I"), "format version '5', or made on another kind of machine"),
    ("trie", patched(88, 0, form="B"), "order 0: at least 2"),
    ("trie", patched(88, 1, form="B"), "order 1: at least 2"),
    ("trie", patched(88, 255, form="B"), "order 255"),
    ("trie", patched(92, 0x7FC00000, form="I"), "probing multiplier nan"),
    ("trie", patched(96, 1, form="I"), "type 1: select one of"),
    ("trie", patched(96, 2**31, form="I"), "type 2147483648"),
    ("trie", patched(96, 0, form="I"), "version 1 of its search structure"),
    ("trie", patched(COUNTS, 2**63), r"n-grams in \d+ bytes"),
    ("trie", patched(COUNTS + 16, 2**64 - 1), r"n-grams in \d+ bytes"),
    ("trie", patched(COUNTS, 0), r"n-grams in \d+ bytes"),
    ("trie", patched(COUNTS, 100), "its header promises at least"),
    ("trie", lambda content: content.replace(b"<unk>", b"<abc>"), "the words are not where its header says"),
    ("trie", patched(header("trie"), 6), "the vocabulary is longer than its place"),
    ("trie", patched(header("trie") + 8, 2**64 - 1), "not sorted"),
    ("trie", patched(TRIE, 0x7FC00000, form="I"), "not a number"),
    ("trie", patched(TRIE + 8, 2**40), "a pointer leads out"),
    ("trie", patched(TRIE + 16 * 5 + 8, 5), "a pointer leads out"),  # of four bigrams
    ("trie", patched(TRIE + 16 * 7, 2**64 - 1, 2**64 - 1, 2**64 - 1), "a pointer leads out"),
    ("compressed", patched(TRIE + 16 * 7, 1, form="B"), "version 1 of its compressed pointers"),
    ("quantised", patched(TRIE, 3, form="B"), "quantisation 3"),
    ("quantised", patched(TRIE + 1, 0, form="B"), "with 0 and 2 bits"),
    ("quantised", patched(TRIE + 2, 200, form="B"), "with 2 and 200 bits"),
    ("quantised", patched(TRIE + 8, 0x7FC00000, form="I"), "not a number"),
    ("probing", patched(header("probing") + 8 + 8, *[2**32 - 1] * 3, form="I"), "outside of the unigrams"),
    ("probing", patched(header("probing") + 8, *[1] * 21, form="I"), "a hash table is full"),
]


@pytest.mark.parametrize(("name", "damage", "text"), CASES)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, damage: Callable[[bytes], bytes], text: str) -> None:
    path = toy_binaries.write(tmp_path, name)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=text):
        LanguageModel(path)


# Opens and uses each file that it is given; prints how many were refused.
USE = """
import sys
from pathlib import Path
from asr_server.alphabet import Alphabet
from asr_server.language_model import LanguageModel
from asr_server.native import core
from tests.test_kenlm_files import scores

refused = 0
for path in map(Path, sys.argv[1:]):
    try:
        model = LanguageModel(path)
    except ValueError:
        refused += 1
        continue
    scores(model)
    if core is not None:
        model.native(Alphabet())
print(refused)
"""


def damaged(content: bytes, random: random.Random) -> bytes:
    data = bytearray(content)
    end = content.index(b"<unk>\0")
    kind = random.randrange(4)
    if kind == 0:  # random bytes in the second half of it
        data[end // 2 : end] = random.randbytes(end - end // 2)
    elif kind == 1:  # a run of ones
        begin = random.randrange(88, end)
        data[begin : begin + 16] = b"\xff" * len(data[begin : begin + 16])
    else:  # a few bytes, in the header or behind it
        for _ in range(random.randint(1, 4)):
            data[random.randrange(88, COUNTS + 24 if kind == 2 else end)] = random.randrange(256)
    return bytes(data)


def test_damage_at_random_is_an_error_or_harmless(tmp_path: Path) -> None:
    generator = random.Random(4)
    paths = []
    for name in NAMES:
        for i in range(60):
            paths.append(tmp_path / f"{name}-{i}.binary")
            paths[-1].write_bytes(damaged(toy_binaries.content(name), generator))
            paths[-1].with_suffix(".words").write_text("a\nb\n")
    done = subprocess.run([sys.executable, "-c", USE, *map(str, paths)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(paths) / 2 < int(done.stdout) < len(paths)


def test_a_file_that_is_cut_or_changed_in_use_goes_on_as_it_was(tmp_path: Path) -> None:
    path = toy_binaries.write(tmp_path, "trie")
    model = LanguageModel(path)
    before = scores(model)
    path.write_bytes(b"")
    assert scores(model) == before


def test_compressed_pointers_have_to_rise(tmp_path: Path) -> None:
    """In a file whose table of high bits has more than one entry, as the bundled model's may not."""
    content = toy_binaries.content("compressed")
    kenlm_binary.check(toy_binaries.write(tmp_path, "compressed"))
    place = TRIE + 16 * 7 + 8  # the table follows its header of eight bytes, aligned as the unigrams are
    path = tmp_path / "wrong.binary"
    path.write_bytes(patched(place, 1)(content))
    with pytest.raises(ValueError, match="the compressed pointers are not sorted"):
        kenlm_binary.check(path)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("ngram 1=6", "ngram 1=60000000000", "n-grams in 1[0-9]+ bytes"),
        ("ngram 2=4", "ngram 2=999999999999999999999", "does not say how many"),
        ("ngram 2=4", "ngram 2=x", "does not say how many"),
        ("\\data\\", "\x1f\x8b", "begins with neither"),
        ("-0.375\ta b", "nan\ta b", "not a number"),
        ("a\t-0.25", "a\tNaN", "not a number"),
        ("\\2-grams:", "\\3-grams:", "not a KenLM binary or ARPA"),
    ],
)
def test_hostile_texts_are_refused(tmp_path: Path, old: str, new: str, text: str) -> None:
    path = tmp_path / "toy.arpa"
    assert old in toy_arpa.ARPA
    path.write_text(toy_arpa.ARPA.replace(old, new))
    with pytest.raises(ValueError, match=text):
        LanguageModel(path)


def test_word_lists_are_text_of_bounded_words(tmp_path: Path) -> None:
    path = toy_arpa.write(tmp_path)
    path.with_suffix(".words").write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match=r"toy\.words' is not a list of words in UTF-8"):
        LanguageModel(path)
    path.with_suffix(".words").write_text("a\n" + "b" * 1001)
    with pytest.raises(ValueError, match="has 1001 characters: at most 1000"):
        LanguageModel(path)


def test_a_sealed_file_is_a_copy_of_bounded_length(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)) * 30_000)  # more than one piece
    sealed = SealedFile(path, 3_000_000)
    path.write_bytes(b"other")
    assert sealed.path.read_bytes() == bytes(range(100)) * 30_000
    with pytest.raises(PermissionError), sealed.path.open("r+b", buffering=0) as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="has 5 bytes: at most 4"):
        SealedFile(path, 4)
    with pytest.raises(ValueError, match="not a regular file"):
        SealedFile(tmp_path)
    kept = sealed.path
    del sealed
    assert not kept.exists()
