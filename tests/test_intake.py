"""Places of images over several calls, and errors of one image among several."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.inference_fixtures import colours
from tests.vision_fixtures import picture
from vision_zoo.batcher import QueueFullError
from vision_zoo.images import ImageError
from vision_zoo.intake import Intake


def run(work: Callable[[Intake], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        with ThreadPoolExecutor(2) as decoders:
            await asyncio.wait_for(work(Intake(decoders, images=3)), 30)

    asyncio.run(limited())


def test_places_are_counted_in_images() -> None:
    async def work(intake: Intake) -> None:
        async with intake.places(2):
            with pytest.raises(QueueFullError, match="2 images are in work already"):
                await intake.places(2).__aenter__()
            async with intake.places(1):
                pass
        async with intake.places(3):
            pass
        with pytest.raises(ValueError, match="4 images in one request; the limit is 3"):
            await intake.places(4).__aenter__()

    run(work)


def test_who_waits_comes_in_when_places_are_free() -> None:
    async def work(intake: Intake) -> None:
        entered: list[str] = []

        async def enter(name: str) -> None:
            async with intake.places(2, wait=True):
                entered.append(name)

        async with intake.places(2):
            waiting = [asyncio.create_task(enter(name)) for name in "abc"]
            await asyncio.sleep(0.02)
            assert entered == []
            waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert entered == ["a", "c"]
        async with intake.places(3):
            pass

    run(work)


def test_nobody_is_passed_by_those_who_come_later() -> None:
    """Else a request of three images would wait for ever beside ever more of one."""

    async def work(intake: Intake) -> None:
        entered: list[str] = []

        async def enter(name: str, count: int) -> None:
            async with intake.places(count, wait=True):
                entered.append(name)

        async with intake.places(1):
            waiting = [asyncio.create_task(enter("three", 3)), asyncio.create_task(enter("one", 1))]
            await asyncio.sleep(0.02)
            with pytest.raises(QueueFullError, match="1 images are in work already"):
                await intake.places(1).__aenter__()
            assert entered == [], "two places are free, but whoever came first needs three"
        await asyncio.gather(*waiting)
        assert entered == ["three", "one"]
        async with intake.places(3):
            pass

    run(work)


def test_an_error_says_which_image_and_keeps_its_kind() -> None:
    async def work(intake: Intake) -> None:
        classifier = colours()
        with pytest.raises(ImageError, match=r"^image 1: the image is empty"):
            await intake.pixels(classifier, [picture(), b"", picture()])
        with pytest.raises(ImageError, match=r"^the image is empty"):
            await intake.pixels(classifier, [b""])
        pixels = await intake.pixels(classifier, [picture("red"), picture("blue")])
        rows = await intake.probabilities(classifier, pixels)
        assert rows.argmax(dim=1).tolist() == [0, 2]
        classifier.close()

    run(work)
