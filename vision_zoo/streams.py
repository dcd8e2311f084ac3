"""A stream's requests answered in their order, several in work at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


async def in_order(
    requests: AsyncIterator[_Request], answer: Callable[[_Request], Coroutine[Any, Any, _Answer]], window: int
) -> AsyncGenerator[_Answer, None]:
    """The answers as they are taken; `window` requests are in work or unanswered, and one more is read meanwhile.

    An error of `answer` or of `requests` ends it. However it ends, what is in work is cancelled.
    """
    owed: asyncio.Queue[asyncio.Task[_Answer] | None] = asyncio.Queue()
    free = asyncio.Semaphore(window)
    reader = asyncio.create_task(_start_each(requests, answer, owed, free))
    try:
        while (task := await owed.get()) is not None:
            yield await task
            free.release()
        await reader  # where reading failed, this ends with that error
    finally:
        reader.cancel()
        while not owed.empty():
            if (left := owed.get_nowait()) is not None:
                left.cancel()


async def _start_each(
    requests: AsyncIterator[_Request],
    answer: Callable[[_Request], Coroutine[Any, Any, _Answer]],
    owed: asyncio.Queue[asyncio.Task[_Answer] | None],
    free: asyncio.Semaphore,
) -> None:
    try:
        async for request in requests:
            await free.acquire()  # before the task: one that nobody could be given would run when all is over
            owed.put_nowait(asyncio.create_task(answer(request)))
            del request  # an idle stream would keep its last message
    finally:
        owed.put_nowait(None)
