"""What a server asks of its own process before it begins."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress

_M_ARENA_MAX = -8  # of mallopt, see malloc.h
_ARENAS = 1


def prepare() -> None:
    """Call it before threads are started."""
    _take_descriptors()
    _share_memory()


def _take_descriptors() -> None:
    """As many as the system allows: each connection needs one, and the usual 1,024 are soon used up."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _share_memory() -> None:
    """One heap for all threads.

    glibc gives each thread one of its own and keeps what is free in it. A call goes through many threads, so that much
    of their memory would lie there unused: after 40,000 malformed calls (benchmarks.fuzz) 1,140 MiB were resident, with
    one heap 830, and a stream cost no more of the processor.
    """
    with suppress(AttributeError):  # another C library has no such function
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
