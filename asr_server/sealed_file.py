"""A private copy of a file in memory that nobody can change: what was checked is what is read.

KenLM and safetensors map their files. A mapped file that another process shortens kills this one with SIGBUS at the
next read, and one that is rewritten gives other values than those that were checked. So both read a copy: a memfd
whose size and contents the kernel has sealed (Linux, memfd_create(2), F_ADD_SEALS in fcntl(2)).
"""

from __future__ import annotations

import fcntl
import os
import stat
import weakref
from pathlib import Path

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_PIECE = 1 << 20


class SealedFile:
    """`path` is good for as long as this object lives; what has mapped it by then may keep its mapping.

    max_bytes: larger files are refused. ValueError for what is not a regular file, OSError where it cannot be read.
    """

    def __init__(self, source: Path, max_bytes: int | None = None) -> None:
        # Without O_NONBLOCK a pipe of that name would be waited for.
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{str(source)!r} is not a regular file")
            if max_bytes is not None and found.st_size > max_bytes:
                raise ValueError(f"{str(source)!r} has {found.st_size} bytes: at most {max_bytes}")
            self._descriptor = _sealed_copy(descriptor, found.st_size)
        finally:
            os.close(descriptor)
        self.size = os.fstat(self._descriptor).st_size
        self.close = weakref.finalize(self, os.close, self._descriptor)

    @property
    def path(self) -> Path:
        return Path(f"/proc/self/fd/{self._descriptor}")


def _sealed_copy(source: int, size: int) -> int:
    """At most the `size` bytes that were counted, so that a file that grows meanwhile is no way around the limit."""
    copy = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        while size > 0 and (piece := os.read(source, min(size, _PIECE))):
            size -= len(piece)
            while piece:
                piece = piece[os.write(copy, piece) :]
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(copy)
        raise
    return copy
