"""Answers of a stream: in order, a window in work, and nothing that runs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from vision_zoo.streams import in_order


class Work:
    """Answers that end when they are let go, and 13 with an error. `begun`, `cancelled`: the requests of those."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self.read = 0
        self.let_go = asyncio.Event()

    async def answer(self, request: int) -> int:
        self.begun.append(request)
        if request == 13:
            raise ValueError("13")
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise
        return -request

    async def requests(self, first: int, count: int) -> AsyncIterator[int]:
        for number in range(first, first + count):
            self.read += 1
            yield number


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_answers_keep_the_order_of_the_requests() -> None:
    async def work() -> list[int]:
        of = Work()
        of.let_go.set()
        return [each async for each in in_order(of.requests(1, 9), of.answer, 3)]

    assert asyncio.run(work()) == [-number for number in range(1, 10)]


def test_a_window_is_in_work_and_all_of_it_ends_with_the_stream() -> None:
    async def work() -> None:
        of = Work()
        answers = in_order(of.requests(1, 9), of.answer, 3)
        waiting = asyncio.ensure_future(anext(answers))
        await _settle()
        assert of.begun == [1, 2, 3] and of.read == 4, "the fourth waits, unanswered"
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await answers.aclose()
        await _settle()
        assert of.begun == of.cancelled == [1, 2, 3]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())


def test_an_error_ends_it_and_what_is_in_work() -> None:
    async def work() -> None:
        of = Work()
        async with aclosing(in_order(of.requests(13, 9), of.answer, 3)) as answers:
            with pytest.raises(ValueError, match="13"):
                await anext(answers)
        await _settle()
        assert of.begun == [13, *of.cancelled]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())


def test_an_error_in_reading_comes_after_the_answers() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError("gone")

    async def collect(found: list[int]) -> None:
        of = Work()
        of.let_go.set()
        async for each in in_order(broken(), of.answer, 3):
            found.append(each)  # noqa: PERF401 (what came before the error counts)

    found: list[int] = []
    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(collect(found))
    assert found == [-1]
