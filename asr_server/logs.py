"""Logs for people (text) and for machines (JSON, one object a line), each line with the id of its request.

What was said belongs to the caller. Code that wants it in the log wraps it, `logger.debug("heard %s",
transcript_for_log(text))`, and it reads `<11 characters>` unless the operator asked for transcripts. Extras named like
one (SPOKEN) are hidden in the same way, at any depth.

A line is never lost to its content: what JSON cannot hold is written as text, what has no text is named by its type.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, TypeAlias, get_args

Format: TypeAlias = Literal["text", "json"]
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

# Set by the telemetry interceptor for the task of one call; "" outside of calls.
request_id: ContextVar[str] = ContextVar("request_id", default="")
_notes: ContextVar[dict[str, object] | None] = ContextVar("notes", default=None)

SPOKEN = frozenset(
    {"transcript", "transcripts", "text", "words", "alternatives", "hypothesis", "hypotheses", "phrases"}
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_DEPTH = 8  # of nested extras; a structure that contains itself ends here
_ONE_LINE = {code: repr(chr(code))[1:-1] for code in (*range(32), 127, 0x85, 0x2028, 0x2029)}


@dataclass(frozen=True, repr=False)
class Spoken:
    """Text that only a formatter that was told to shows."""

    content: str

    def __str__(self) -> str:
        return f"<{len(self.content)} characters>"

    __repr__ = __str__


def transcript_for_log(text: str) -> Spoken:
    """What to hand to a logger, as an argument or an extra, in place of words that were said."""
    return Spoken(text)


def note(**values: object) -> None:
    """Adds values (model, client, ...) to the access record and the span of the call in progress."""
    if (notes := _notes.get()) is not None:
        notes.update(values)


def collect_notes() -> dict[str, object]:
    """Begins a call: what `note` adds from now on in this task is found in the dictionary."""
    notes: dict[str, object] = {}
    _notes.set(notes)
    return notes


def extra(values: Mapping[str, object]) -> dict[str, object]:
    """The values as a logger's `extra`, which must not have the names of a record's own attributes."""
    return {f"extra_{name}" if name in _STANDARD else name: value for name, value in values.items()}


def configure(format: Format, level: str, transcripts: bool, stream: TextIO | None = None) -> None:  # noqa: A002
    """Sends every log record of the process to the stream (standard error). May be called again.

    format: text or json; level: one of LEVELS in either case; transcripts: whether to show what was said.
    """
    if format not in get_args(Format):
        raise ValueError(f"log format {format!r} is unknown: choose from {', '.join(get_args(Format))}")
    if level.upper() not in LEVELS:
        raise ValueError(f"log level {level!r} is unknown: choose from {', '.join(LEVELS)}")
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(transcripts) if format == "json" else TextFormatter(transcripts))
    root = logging.getLogger()
    for other in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(level.upper())


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, told apart from handlers that others have put on the root logger."""


class _Formatter(logging.Formatter):
    def __init__(self, transcripts: bool) -> None:
        super().__init__()
        self._transcripts = transcripts

    def message(self, record: logging.LogRecord) -> str:
        try:
            if self._transcripts and isinstance(record.args, tuple):
                shown = [each.content if isinstance(each, Spoken) else each for each in record.args]
                return str(record.msg) % tuple(shown) if shown else str(record.msg)
            return record.getMessage()
        except Exception:  # arguments that do not fit, or that have no text
            return f"{_text(record.msg)} (its arguments could not be put in)"

    def extras(self, record: logging.LogRecord) -> dict[str, object]:
        found = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return {name: self._shown(name, value, _DEPTH) for name, value in found.items()}

    def traceback(self, record: logging.LogRecord) -> str:
        try:
            parts = [record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")]
            parts += [record.stack_info] if record.stack_info else []
            return "\n".join(part for part in parts if part)
        except Exception:
            return "an exception that cannot be shown"

    def _shown(self, name: str, value: object, depth: int) -> object:
        """The value as JSON takes it."""
        if isinstance(value, Spoken):
            return value.content if self._transcripts else str(value)
        if name in SPOKEN and not self._transcripts:
            return f"<{len(value)} characters>" if isinstance(value, str) else "<hidden>"
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int | float):
            # JSON has no NaN and no infinity, and few readers have more than 64 bits.
            return value if abs(value) < 2**63 else _text(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<{len(value)} bytes>"
        parts = _parts(value)
        if parts is None:
            return _text(value)
        if depth == 0:
            return "..."
        if isinstance(parts, Mapping):
            return {_text(key): self._shown(_text(key), each, depth - 1) for key, each in parts.items()}
        return [self._shown("", each, depth - 1) for each in parts]


class JsonFormatter(_Formatter):
    """timestamp (RFC 3339, UTC), level, logger, message, request_id in calls, the extras, exception where one was."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "timestamp": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": self.message(record),
        }
        if number := request_id.get():
            line["request_id"] = number
        if exception := self.traceback(record):
            line["exception"] = exception
        for name, value in self.extras(record).items():
            line[f"extra_{name}" if name in line else name] = value
        return json.dumps(line)  # in ASCII: a line is whole in any encoding, lone surrogates included


class TextFormatter(_Formatter):
    """`TIMESTAMP LEVEL LOGGER [REQUEST ID]: MESSAGE name=value ...`, then the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        where = f"{record.name} [{number}]" if (number := request_id.get()) else record.name
        extras = "".join(f" {name}={_text(value)}" for name, value in self.extras(record).items())
        # On one line, because a client could otherwise write lines of its own.
        told = f"{self.message(record)}{extras}".translate(_ONE_LINE)
        line = f"{_timestamp(record)} {record.levelname} {where}: {told}"
        return f"{line}\n{exception}" if (exception := self.traceback(record)) else line


def _parts(value: object) -> Mapping[Any, object] | Iterable[object] | None:
    """What a container is made of, so that a transcript inside it has a name to be hidden by; None for other values."""
    if isinstance(value, Mapping | Sequence | Set):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in fields(value)}
    if callable(set_fields := getattr(value, "ListFields", None)):  # a protobuf message
        return {descriptor.name: each for descriptor, each in set_fields()}
    return None


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that has no text>"
