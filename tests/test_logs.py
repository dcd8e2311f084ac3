"""Log lines read back: whole, one a record, and silent about what was said."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from asr_server import logs
from asr_server.logs import Format, transcript_for_log
from asr_server.wire import speech_pb2 as pb

logger = logging.getLogger("test.logs")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Log:
    def __init__(self, format: Format = "json", level: str = "info", transcripts: bool = False) -> None:  # noqa: A002
        self.stream = io.StringIO()
        logs.configure(format, level, transcripts, self.stream)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def line(self) -> dict[str, Any]:
        (line,) = self.text.splitlines()
        found: dict[str, Any] = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        return found


def test_one_object_a_line() -> None:
    log = Log()
    logger.info("took %d ms", 12, extra={"model": "en", "duration": 0.5})
    line = log.line
    stamp = line.pop("timestamp")
    assert line == {
        "level": "INFO",
        "logger": "test.logs",
        "message": "took 12 ms",
        "model": "en",
        "duration": 0.5,
    }
    assert len(stamp) == len("2026-01-02T03:04:05.678Z") and stamp[10] == "T" and stamp.endswith("Z")


def test_the_time_is_utc_to_the_millisecond() -> None:
    record = logging.makeLogRecord({"created": 1700000000.0456, "msg": "x"})
    assert json.loads(logs.JsonFormatter(False).format(record))["timestamp"] == "2023-11-14T22:13:20.045Z"


def test_the_level_is_kept_and_checked() -> None:
    log = Log(level="warning")
    logger.info("not this")
    logger.warning("this")
    assert log.line["message"] == "this"
    with pytest.raises(ValueError, match="log level 'loud' is unknown: choose from DEBUG, INFO, WARNING, ERROR"):
        logs.configure("json", "loud", False)
    with pytest.raises(ValueError, match="log format 'xml' is unknown: choose from text, json"):
        logs.configure("xml", "info", False)  # type: ignore[arg-type]


def test_configuring_again_replaces_our_handler_only() -> None:
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    first, second = Log(), Log()
    logger.info("x")
    assert first.text == "" and second.line["message"] == "x"
    assert other in logging.getLogger().handlers


def test_the_request_id_of_the_call() -> None:
    log = Log()
    token = logs.request_id.set("abc")
    logger.info("x")
    logs.request_id.reset(token)
    assert log.line["request_id"] == "abc"


def test_an_exception_and_newlines_stay_on_one_line() -> None:
    log = Log()
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError:
        logger.exception("a\nb \u2028 \x00 ü \ud800")
    line = log.line
    assert line["message"] == "a\nb \u2028 \x00 ü \ud800"
    assert line["exception"].startswith("Traceback") and line["exception"].endswith("RuntimeError: first\nsecond")


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_whatever_is_logged_gives_a_line() -> None:
    log = Log()
    circle: list[Any] = []
    circle.append(circle)
    values = {"mute": Mute(), "nan": math.nan, "big": 10**6000, "circle": circle, "keys": {(1, 2): {3}}, "raw": b"ab"}
    logger.info("x", extra=values)
    line = log.line
    assert (
        line["mute"] == "<Mute that has no text>" and line["nan"] == "nan" and line["big"] == "<int that has no text>"
    )
    assert line["keys"] == {"(1, 2)": [3]} and line["raw"] == "<2 bytes>" and "..." in json.dumps(line["circle"])


@pytest.mark.parametrize("transcripts", [False, True])
@pytest.mark.parametrize("arguments", [("%d", "word"), ("%s %s", "one"), ("none", "one"), ("%s", Mute()), (Mute(),)])
def test_arguments_that_do_not_fit_give_a_line(arguments: tuple[Any, ...], transcripts: bool) -> None:
    record = logging.makeLogRecord({"msg": arguments[0], "args": arguments[1:]})  # pytest's own handlers would raise
    message = json.loads(logs.JsonFormatter(transcripts).format(record))["message"]
    text = "<Mute that has no text>" if isinstance(arguments[0], Mute) else arguments[0]
    assert message == f"{text} (its arguments could not be put in)"


def test_extras_cannot_replace_what_the_line_says_itself() -> None:
    log = Log()
    logger.info("x", extra=logs.extra({"level": "LOUD", "message": "y", "name": "z"}))
    line = log.line
    assert (line["level"], line["message"], line["logger"]) == ("INFO", "x", "test.logs")
    assert (line["extra_level"], line["extra_message"], line["extra_name"]) == ("LOUD", "y", "z")


@dataclass
class Said:
    text: str
    confidence: float


SECRET = "go north"
ALTERNATIVE = pb.SpeechRecognitionAlternative(transcript=SECRET, confidence=0.5)
FORMS: dict[str, dict[str, Any]] = {
    "named": {"transcript": SECRET},
    "wrapped": {"heard": transcript_for_log(SECRET)},
    "nested": {"result": {"final": True, "transcript": SECRET}},
    "listed": {"results": [{"words": ["go", "north"], "text": SECRET}]},
    "dataclass": {"result": Said(SECRET, 0.5)},
    "message": {"result": ALTERNATIVE},
    "repeated": {"result": pb.SpeechRecognitionResult(alternatives=[ALTERNATIVE])},
    "a repeated field": {"result": pb.SpeechRecognitionResult(alternatives=[ALTERNATIVE]).alternatives},
}


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("form", FORMS)
def test_what_was_said_is_hidden_unless_asked_for(form: str, format: Format) -> None:  # noqa: A002
    hidden = Log(format)
    logger.info("x", extra=FORMS[form])
    assert "north" not in hidden.text and ("<8 characters>" in hidden.text or "<hidden>" in hidden.text)
    shown = Log(format, transcripts=True)
    logger.info("x", extra=FORMS[form])
    assert SECRET in shown.text


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_was_said_in_a_message_is_hidden_unless_asked_for(format: Format) -> None:  # noqa: A002
    hidden = Log(format)
    logger.info("heard %s and %d", transcript_for_log(SECRET), 5)
    assert "heard <8 characters> and 5" in hidden.text
    shown = Log(format, transcripts=True)
    logger.info("heard %s and %d", transcript_for_log(SECRET), 5)
    assert "heard go north and 5" in shown.text


def test_an_unconfigured_logger_hides_what_was_said_too(caplog: pytest.LogCaptureFixture) -> None:
    logger.warning("heard %s %r", transcript_for_log(SECRET), transcript_for_log(SECRET))
    assert caplog.messages == ["heard <8 characters> <8 characters>"]


def test_text_for_people() -> None:
    log = Log("text")
    token = logs.request_id.set("7")
    logger.info("a\nforged line", extra={"model": "en"})
    logs.request_id.reset(token)
    (line,) = log.text.splitlines()
    assert line.endswith("Z INFO test.logs [7]: a\\nforged line model=en".partition("Z ")[2])


def test_text_shows_the_traceback_below() -> None:
    log = Log("text")
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logger.exception("x")
    lines = log.text.splitlines()
    assert lines[0].endswith("ERROR test.logs: x") and lines[1].startswith("Traceback")
    assert lines[-1] == "RuntimeError: broken"


def test_notes_outside_of_a_call_go_nowhere() -> None:
    logs.note(model="en")
    notes = logs.collect_notes()
    logs.note(model="de")
    assert notes == {"model": "de"}
