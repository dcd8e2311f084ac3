"""A token file on disk that is looked at again while the server runs, and rewritten safely by the command line.

The server looks at the file at most once a second and reads it when its time, size or inode has changed. It does so in
a thread (see `auth_interceptor.py`), so that calls do not wait for a disk. A file that cannot be read or understood is
refused with a line in the log, and what was known before goes on. So a token that was taken out stops working for new
calls within about a second; calls in progress end by themselves.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from asr_server import tokens
from asr_server.quotas import Accounts, Client, Clock
from asr_server.tokens import TokenTable

LOOK_SECONDS = 1.0
MAX_BYTES = 16 << 20  # some 40,000 clients

logger = logging.getLogger(__name__)

Signature = tuple[int, int, int]  # time of change in ns, size, inode: a new file differs in one at least


class TokenFile:
    """Tokens to clients. ValueError when the file cannot be used at the start."""

    def __init__(
        self,
        path: Path,
        clock: Clock = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path = path
        self._clock = clock
        self._now = now  # expiry is a date, so it follows the system's time
        self._reading = threading.Lock()
        self._accounts = Accounts(clock)
        self._signature: Signature | None = None  # of the content last read, good or bad
        self._missing = False
        self._next_look = clock() + LOOK_SECONDS
        self._refresh()

    def client(self, token: str) -> Client | None:
        """Whose token it is; None where it is unknown, expired or taken out."""
        table, clients = self._known
        entry = table.match(token, self._now())
        return clients[entry.name] if entry else None

    def due(self) -> bool:
        """Whether the file should be looked at again; whoever hears yes has to call `refresh`."""
        now = self._clock()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_SECONDS
        return True

    def refresh(self) -> None:
        """Take over the file's content if it has changed; whatever is wrong with it is logged, once."""
        if not self._reading.acquire(blocking=False):  # a slow disk: one thread waits for it, not one a second
            return
        try:
            self._refresh()
        except ValueError as error:
            logger.error("%s; the tokens known before stay in force", error)
        finally:
            self._reading.release()

    def _refresh(self) -> None:
        try:
            signature = _signature(os.stat(self._path))
            if signature == self._signature:
                return
            content, signature, mode = _read(self._path)
        except OSError as error:
            if self._missing:
                return
            self._missing = True
            self._signature = None
            raise ValueError(f"token file {self._path}: {error.strerror}") from error
        self._missing = False
        self._signature = signature
        try:
            self._take_over(content, mode)
        except ValueError as error:
            raise ValueError(f"token file {self._path}: {error}") from error

    def _take_over(self, content: bytes, mode: int) -> None:
        if mode & stat.S_IWOTH:
            raise ValueError("everybody on this machine may write to it and so let themselves in; chmod it to 600")
        table = _parse(content)
        if mode & stat.S_IROTH:
            # Hashes give no token away, and mounted secrets often look so; names and quotas can still be read.
            logger.warning("token file %s can be read by everybody on this machine; chmod 600 is better", self._path)
        accounts = self._accounts.update({client.name: client.quotas for client in table.clients})
        clients = {
            entry.name: Client(
                entry.name, accounts[entry.name], None if entry.services is None else frozenset(entry.services)
            )
            for entry in table.clients
        }
        self._known = table, clients  # one assignment: a call sees the old or the new, never half of each
        logger.info("token file %s: %d clients", self._path, len(clients))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other writers of the file waiting. The folder is locked, because each write makes a new file."""
    folder = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)  # gives the lock back


def load(path: Path) -> TokenTable:
    """ValueError when the content is wrong, OSError when there is none."""
    try:
        return _parse(_read(path)[0])
    except ValueError as error:
        raise ValueError(f"token file {path}: {error}") from error


def save(path: Path, table: TokenTable) -> None:
    """Whole or not at all. A new file is for its owner only; a rewritten one keeps its owner and mode."""
    path = path.resolve()  # a link stays a link
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(tokens.dump(table))
            _keep_ownership(path, number)
            file.flush()
            os.fsync(number)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _keep_ownership(path: Path, number: int) -> None:
    """An administrator may edit the file of a server that runs as another user, which has to read it afterwards."""
    try:
        old = os.stat(path)
    except FileNotFoundError:
        return
    new = os.fstat(number)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(number, old.st_uid, old.st_gid)
    os.fchmod(number, stat.S_IMODE(old.st_mode))


def _read(path: Path) -> tuple[bytes, Signature, int]:
    """Content, and signature and mode of that very content, whatever happens to the name meanwhile."""
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        content = file.read(MAX_BYTES + 1)
    return content, _signature(state), state.st_mode


def _parse(content: bytes) -> TokenTable:
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    return tokens.parse(content)


def _signature(state: os.stat_result) -> Signature:
    return state.st_mtime_ns, state.st_size, state.st_ino
