"""Where long recordings wait to be read: files, piece by piece, never whole in memory.

A recording that came with a request is spooled to a file without a name, which vanishes with the process. One that a
request names lies in a folder that the operator chose; no name leads out of it.
"""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from asr_server.operations import ExhaustedError

SCHEME = "file://"
_MAX_URI = 2048  # characters
_SHOWN = 200  # characters of a URI that its error repeats


class Recording:
    """An open file. Its methods may block; they may be called from any thread."""

    def __init__(self, file: IO[bytes], size: int, closed: Callable[[], None] = lambda: None) -> None:
        self.size = size  # bytes
        self._file = file
        self._closed = closed

    def read(self, size: int) -> bytes:
        """The next bytes, at most so many; none at the end."""
        return self._file.read(size)

    def close(self) -> None:
        if not self._file.closed:
            try:
                self._file.close()
            finally:  # a full disk is noticed here too, by what was still to be written
                self._closed()


class Spool:
    """Recordings that came with requests, at most `limit` bytes of them, in a folder (the system's for such files)."""

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self._limit = limit
        self._folder = folder
        self._lock = threading.Lock()
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes of the recordings that are not closed."""
        return self._used

    def keep(self, content: bytes) -> Recording:
        """Until it is closed. ExhaustedError where there is no room for it."""
        size = len(content)
        self._take(size)
        try:
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - the recording closes it
        except OSError as error:
            self._give_back(size)
            raise ExhaustedError(f"The recording cannot be kept: {error.strerror}.") from error
        recording = Recording(file, size, lambda: self._give_back(size))
        try:
            file.write(content)
            file.seek(0)
        except OSError as error:
            with suppress(OSError):
                recording.close()
            raise ExhaustedError(f"The recording cannot be kept: {error.strerror}.") from error
        return recording

    def _take(self, size: int) -> None:
        with self._lock:
            if self._used + size > self._limit:
                raise ExhaustedError(
                    f"The recordings that wait have {self._used} bytes; with {size} more there would be more than "
                    f"{self._limit}. Try later."
                )
            self._used += size

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._used -= size


class AudioFolder:
    """The recordings that requests may name: `file:///talks/monday.flac` is `talks/monday.flac` in this folder.

    Every client may read all of it. Links are followed where they lead to a file inside.
    """

    def __init__(self, folder: Path) -> None:
        """ValueError where that is no folder."""
        if not folder.is_dir():
            raise ValueError(f"audio folder {folder} is not a folder")
        self._folder = folder

    def open(self, uri: str) -> Recording:
        """ValueError for what is not a readable file in here; whether there is something outside, it does not say."""
        names = _names(uri)
        try:
            root = self._folder.resolve(strict=True)
            inside = root.joinpath(*names).resolve(strict=True).relative_to(root)
            descriptor = _open_beneath(root, inside.parts)
        except (OSError, RuntimeError, ValueError):
            raise ValueError(f"uri '{uri[:_SHOWN]}': there is no such file in the server's audio folder.") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise ValueError(f"uri '{uri[:_SHOWN]}': that is not a regular file.")
        return Recording(os.fdopen(descriptor, "rb"), status.st_size)


def _names(uri: str) -> Sequence[str]:
    """The folders and the file's name in a file URI (RFC 8089), relative to the audio folder."""
    host, slash, path = uri[len(SCHEME) :].partition("/")
    if uri[: len(SCHEME)].lower() != SCHEME:
        raise ValueError(
            f"uri '{uri[:_SHOWN]}' is not supported: this server fetches nothing. "
            f"Send the audio as content, or name a file of its audio folder as {SCHEME}/NAME."
        )
    if host not in ("", "localhost") or not slash:
        raise ValueError(f"uri '{uri[:_SHOWN]}': a file of the audio folder is named {SCHEME}/NAME, without a host.")
    if len(uri) > _MAX_URI:
        raise ValueError(f"uri '{uri[:_SHOWN]}...' has {len(uri)} characters; it may have {_MAX_URI}.")
    try:
        names = [name for name in unquote(path, errors="strict").split("/") if name not in ("", ".")]
    except UnicodeDecodeError:
        raise ValueError(f"uri '{uri[:_SHOWN]}': its escaped bytes must be UTF-8.") from None
    if not names or ".." in names or any("\0" in name for name in names):
        raise ValueError(f"uri '{uri[:_SHOWN]}': it must name a file in the server's audio folder, without '..'.")
    return names


def _open_beneath(root: Path, names: Sequence[str]) -> int:
    """A descriptor. No name may be a link: `resolve` has followed them, so one that is there now came there since."""
    if not names:
        raise IsADirectoryError(root)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names[:-1]:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        # A pipe without a writer would be waited for.
        return os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
