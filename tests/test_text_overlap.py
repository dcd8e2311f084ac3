"""What a language model's text shares with a test, and the text without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.text_overlap import Overlap, clean, main, transcripts

TEST = ("the boolooroo of the blues sat upon his throne and frowned", "enter four five six", "yes")


def shared(line: str, words: int = 5) -> set[int]:
    return transcripts(TEST, words).shared(line)


def test_words_in_a_row_are_found_wherever_they_stand() -> None:
    assert shared("then the boolooroo of the blues laughed") == {0}
    assert shared("the boolooroo of all the blues sat upon a throne") == set(), "never five in a row"
    assert shared("the boolooroo of the blues laughed", words=6) == set()


def test_a_short_transcript_counts_as_a_whole_line_only() -> None:
    assert shared("enter four five six") == {1}
    assert shared("enter four five six seven") == set()
    assert shared("yes") == set(), "anybody's"


def test_lines_are_normalised_and_kept_as_they_are() -> None:
    overlap = Overlap()
    lines = ["The Boolooroo of the Blues, sat upon it\n", "Something else!\n", "Enter four. Five: six\n"]
    assert list(clean(lines, transcripts(TEST, 5), overlap)) == ["Something else!\n"]
    assert (overlap.lines, overlap.shared_lines, overlap.utterances) == (3, 2, {0, 1})


def test_the_command_writes_what_shares_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test, text, out = tmp_path / "test.jsonl", tmp_path / "books.txt", tmp_path / "clean"
    test.write_text("".join(json.dumps({"text": each}) + "\n" for each in TEST), encoding="utf-8")
    text.write_text("enter four five six\nno more of it\n", encoding="utf-8")
    assert main(["--text", str(text), "--test", str(test), "--out", str(out), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert counts["shared"] == 1 and counts["texts"][str(text)] == {"lines": 2, "shared_lines": 1, "utterances": 1}
    assert (out / "books.txt").read_text(encoding="utf-8") == "no more of it\n"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--words", "0"], "words is 0"),
        (["--text", "nothing.txt"], "'nothing.txt' does not exist"),
        (["--text", "books.txt", "books.txt", "--out", "clean"], "different names, .gz apart, not books.txt books.txt"),
        (["--text", "books.txt", "books.txt.gz", "--out", "clean"], "not books.txt books.txt.gz"),
        (["--out", "."], "books.txt would be written over books.txt, which is read"),
    ],
)
def test_errors_name_the_rule(
    given: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("books.txt").write_text("a line\n")
    Path("test.jsonl").write_text('{"text": "a line"}\n')
    with pytest.raises(SystemExit) as ended:
        main(["--text", "books.txt", "--test", "test.jsonl", *given])
    assert ended.value.code == 2 and reason in capsys.readouterr().err
    assert Path("books.txt").read_text() == "a line\n"
