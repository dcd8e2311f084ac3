"""Work that goes on in the background, and what came of it: operations with a name, progress and results.

    begin -> [waits] -> next -> progress, add, ... -> succeed | fail -> [kept] -> dropped

They live in this process's memory only: another replica does not know them, and a restart forgets them. Everything has
a bound: who is let in, how many that have ended are kept, for how long, and the bytes of all results together, those of
running operations included. Where room is needed, the client that takes most of it gives: of its operations, those that
ended first.

An operation is known to the client that began it; for others it does not exist. Callers whom neither token nor
certificate tells apart are one client. Used from one thread.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from asr_server.quotas import ANONYMOUS

Clock = Callable[[], float]

CANCELLED, RESOURCE_EXHAUSTED, UNAVAILABLE = 1, 8, 14  # of google.rpc.Code
MAX_PAGE, USUAL_PAGE = 1000, 100  # operations
_SHOWN = 64  # characters of a wrong name or token that its error repeats


@dataclass(frozen=True)
class OperationLimits:
    """What long recordings and their results may take. Counts are of all clients together."""

    content_bytes: int = 30 << 20  # of a recording inside a request; it has to fit into a message
    seconds: float = 8 * 3600.0  # of audio
    running: int = 4
    waiting: int = 32  # for one of those to end; more are refused
    client: int = 18  # running or waiting, of one client that a token or certificate names
    spool_bytes: int = 1 << 30  # on disk, of the recordings that run or wait
    kept: int = 1000  # that have ended
    result_bytes: int = 64 << 20
    ttl_seconds: float = 3600.0  # for which results are kept
    wait_seconds: float = 60.0  # for which WaitOperation waits at most

    def __post_init__(self) -> None:
        counts = (self.content_bytes, self.running, self.client, self.spool_bytes, self.kept, self.result_bytes)
        if min(*counts, self.seconds, self.ttl_seconds, self.wait_seconds) <= 0 or self.waiting < 0:
            raise ValueError(f"{self}: all must be above 0, and waiting at least 0")


class ExhaustedError(Exception):
    """There is no room: RESOURCE_EXHAUSTED."""


class UnknownOperationError(Exception):
    """The caller has no such operation: NOT_FOUND."""


@dataclass(frozen=True)
class Failure:
    """Why an operation has no results: a google.rpc.Code and a text for the client."""

    code: int
    text: str


@dataclass(frozen=True)
class Operation:
    """One operation at one moment. Times in seconds since 1970."""

    name: str
    owner: str  # the client's name
    uri: str  # of the recording, "" where it came with the request
    number: int  # they are counted in the order in which they began
    started: float
    updated: float
    percent: int = 0
    running: bool = False
    done: bool = False
    failure: Failure | None = None  # of one that is done
    response: bytes = b""  # a serialised message, of one that is done without failure


class OperationStore:
    """All operations of this process."""

    def __init__(self, limits: OperationLimits, clock: Clock = time.time, monotonic: Clock = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock  # for the times that clients see
        self._monotonic = monotonic  # for how long results are kept, whatever is done to the system's time
        self._operations: dict[str, Operation] = {}
        self._parts: dict[str, list[tuple[float, bytes]]] = {}  # results so far of those that are not done
        self._ended: dict[str, float] = {}  # -> when, by `monotonic`; in that order
        self._begun = 0
        self._bytes = 0

    @property
    def result_bytes(self) -> int:
        """Of all results that are held."""
        return self._bytes

    def check_room(self, owner: str) -> None:
        """ExhaustedError where `begin` would refuse."""
        limits = self.limits
        own = sum(self._operations[name].owner == owner for name in self._parts)
        if own >= limits.client and owner != ANONYMOUS.name:
            raise ExhaustedError(
                f"{own} of your operations have not ended; a client may have {limits.client}. Try later."
            )
        if len(self._parts) >= limits.running + limits.waiting:
            raise ExhaustedError(
                f"{len(self._parts)} operations have not ended, and {limits.running} may run while {limits.waiting} "
                "wait. Try later."
            )

    def begin(self, owner: str, uri: str = "") -> Operation:
        """A new one, which waits. ExhaustedError where too many do."""
        self.sweep()
        self.check_room(owner)
        self._begun += 1
        now = self._clock()
        operation = Operation(secrets.token_hex(16), owner, uri, self._begun, now, now)
        self._operations[operation.name] = operation
        self._parts[operation.name] = []
        return operation

    def next(self) -> Operation | None:
        """The one whose turn it is, which runs from now on; None where none waits or enough run.

        First comes who has the fewest running, so that nobody waits behind all the recordings of another client.
        """
        active = [self._operations[name] for name in self._parts]
        running = Counter(operation.owner for operation in active if operation.running)
        waiting = [operation for operation in active if not operation.running]
        if running.total() >= self.limits.running or not waiting:
            return None
        first = min(waiting, key=lambda operation: (running[operation.owner], operation.number))
        return self._change(replace(first, running=True))

    def progress(self, name: str, percent: int) -> None:
        """Never backwards, and 100 only for one that has ended. No effect on one that has."""
        if name in self._parts:
            operation = self._operations[name]
            self._change(replace(operation, percent=max(operation.percent, min(percent, 99))))

    def add(self, name: str, end: float, part: bytes) -> str | None:
        """A result that ends at `end` seconds, serialised so that joined parts are the response (protobuf's rule).

        No effect on one that has ended. Where there is no room, what the client with the most results has kept goes,
        or else its operation with the most fails; the name of an operation that failed for that, else None.
        """
        if name not in self._parts:
            return None
        self._parts[name].append((end, part))
        self._bytes += len(part)
        return self._shrink()

    def succeed(self, name: str, rest: bytes = b"") -> None:
        """Its parts in the order of their ends, and the rest of the response."""
        if name not in self._parts:
            return
        parts = sorted(self._parts[name], key=lambda part: part[0])
        self._bytes += len(rest)
        self._end(name, percent=100, response=b"".join([*(part for _, part in parts), rest]))

    def fail(self, name: str, code: int, text: str) -> None:
        """Its results are dropped. No effect on one that has ended."""
        if name not in self._parts:
            return
        self._bytes -= sum(len(part) for _, part in self._parts[name])
        self._end(name, failure=Failure(code, text))

    def get(self, owner: str, name: str) -> Operation:
        """UnknownOperationError where there is none, or it is somebody else's."""
        self.sweep()
        operation = self._operations.get(name)
        if operation is None or operation.owner != owner:
            raise UnknownOperationError(
                f"Operation '{name[:_SHOWN]}' is not known. Operations are known to the client and the server that "
                f"began them, until {self.limits.ttl_seconds:g} seconds after their end or a restart of the server."
            )
        return operation

    def page(self, owner: str, size: int = 0, token: str = "") -> tuple[list[Operation], str]:
        """A client's operations, the newest first, and the token of the next page, "" after the last one.

        The token says after which operation a page begins, so none is shown twice or left out where others come or go.
        """
        if size < 0:
            raise ValueError(f"page_size is {size}; it must not be negative")
        if token and not (token.isascii() and token.isdecimal()):
            raise ValueError(f"page_token is '{token[:_SHOWN]}'; it must be the next_page_token of an answer, or empty")
        self.sweep()
        size = min(size or USUAL_PAGE, MAX_PAGE)
        before = int(token[:_SHOWN]) if token else self._begun + 1
        found = [each for each in self._operations.values() if each.owner == owner and each.number < before]
        found.sort(key=lambda operation: -operation.number)
        shown = found[:size]
        return shown, str(shown[-1].number) if len(found) > size else ""

    def delete(self, owner: str, name: str) -> None:
        """UnknownOperationError as `get`."""
        self._drop(self.get(owner, name).name)

    def sweep(self) -> None:
        """Drops what has been kept long enough: with every use, and when it is called, should there be none."""
        due = self._monotonic() - self.limits.ttl_seconds
        for name in [name for name, ended in self._ended.items() if ended <= due]:
            self._drop(name)

    def _end(
        self, name: str, percent: int | None = None, failure: Failure | None = None, response: bytes = b""
    ) -> None:
        del self._parts[name]
        operation = self._operations[name]
        percent = operation.percent if percent is None else percent
        self._change(replace(operation, percent=percent, running=False, done=True, failure=failure, response=response))
        self._ended[name] = self._monotonic()
        self._shrink()

    def _change(self, operation: Operation) -> Operation:
        changed = replace(operation, updated=max(self._clock(), operation.updated))
        self._operations[operation.name] = changed
        return changed

    def _shrink(self) -> str | None:
        failed = None
        while len(self._ended) > self.limits.kept:
            oldest = self._first_ended(Counter(self._operations[name].owner for name in self._ended))
            self._drop(oldest or next(iter(self._ended)))
        while self._bytes > self.limits.result_bytes:
            taken: Counter[str] = Counter()
            for name, operation in self._operations.items():
                taken[operation.owner] += self._size(name)
            if (oldest := self._first_ended(taken)) is not None:
                self._drop(oldest)
                continue
            failed = max(self._parts, key=self._size)
            self.fail(
                failed,
                RESOURCE_EXHAUSTED,
                f"The results of running operations have more than {self.limits.result_bytes} bytes, and this one's "
                "the most. Cut the recording, ask for fewer alternatives, or try later.",
            )
        return failed

    def _first_ended(self, taken: Counter[str]) -> str | None:
        """Of the client that has taken most: which of its operations ended first, None where all of them go on."""
        (owner, _), *_ = taken.most_common(1)
        return next((name for name in self._ended if self._operations[name].owner == owner), None)

    def _size(self, name: str) -> int:
        """Bytes of its results so far."""
        return len(self._operations[name].response) + sum(len(part) for _, part in self._parts.get(name, ()))

    def _drop(self, name: str) -> None:
        operation = self._operations.pop(name)
        parts = self._parts.pop(name, [])
        self._ended.pop(name, None)
        self._bytes -= len(operation.response) + sum(len(part) for _, part in parts)
