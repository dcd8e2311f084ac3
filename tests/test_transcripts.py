"""Transcript files, written out by hand."""

from __future__ import annotations

import json

import pytest

from asr_server.transcripts import CAPTION_CHARACTERS, Segment, Transcript, Word, render

HELLO = Segment("hello you", 0.5, 1.25, 0.9, (Word("hello", 0.5, 0.8, 0.9), Word("you", 1.0, 1.25, 0.8)))
BYE = Segment("bye", 3661.0015, 3661.1, 0.7, ())
TRANSCRIPT = Transcript("talk.wav", (HELLO, BYE))


def test_text() -> None:
    assert render(TRANSCRIPT, "txt") == "hello you\nbye\n"


def test_json() -> None:
    written = json.loads(render(TRANSCRIPT, "json"))
    assert written["text"] == "hello you bye"
    assert written["source"] == "talk.wav"
    assert written["segments"][0]["words"][1] == {"text": "you", "start": 1.0, "end": 1.25, "confidence": 0.8}


def test_srt() -> None:
    assert render(TRANSCRIPT, "srt") == (
        "1\n00:00:00,500 --> 00:00:01,250\nhello you\n\n2\n01:01:01,002 --> 01:01:01,502\nbye\n"
    )


def test_vtt() -> None:
    assert render(TRANSCRIPT, "vtt") == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.250\nhello you\n\n01:01:01.002 --> 01:01:01.502\nbye\n"
    )


def test_empty() -> None:
    assert [render(Transcript("", ()), name) for name in ("txt", "srt", "vtt")] == ["", "", "WEBVTT\n"]


def test_long_utterances_become_several_captions() -> None:
    words = tuple(Word("abcdefghi", float(i), i + 0.5, 1.0) for i in range(20))
    long = Segment(" ".join(word.text for word in words), 0.0, 20.0, 1.0, words)
    blocks = render(Transcript("", (long,)), "srt").split("\n\n")
    lines = [block.splitlines() for block in blocks]
    assert " ".join(line[2] for line in lines) == long.text
    assert all(len(line[2]) <= CAPTION_CHARACTERS for line in lines)
    assert lines[1][1] == "00:00:08,000 --> 00:00:15,500"


def test_unknown_format() -> None:
    with pytest.raises(ValueError, match=r"'doc' is not known\. Select one of \{txt, json, srt, vtt\}"):
        render(TRANSCRIPT, "doc")
