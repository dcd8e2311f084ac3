"""How images come to a classifier, whichever contract they came by.

Decoding needs memory, so a few threads do it, and images that are accepted and not yet answered have places that are
counted over all calls. A call takes as many places as it has images: refused at once where they are not free, or, on a
stream, which can be held up, once they are. Who waits comes in in the order of arrival, and before anybody who would
not wait: else a request of many images could be passed for ever by requests of one.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from vision_zoo.batcher import QueueFullError, Urgency
from vision_zoo.classifier import Classifier

_T = TypeVar("_T")


class Intake:
    """One for all services that take images. decoders: threads for what would hold up the event loop."""

    def __init__(self, decoders: Executor, images: int = 64) -> None:
        self._decoders = decoders
        self._images = images
        self._free = images
        self._first_in_line = asyncio.Lock()  # whoever has it waits for `_freed`, all others wait for it
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def places(self, count: int, wait: bool = False) -> AsyncIterator[None]:
        """Holds `count` places. Raises ValueError for more than there are, QueueFullError where they are taken."""
        if count > self._images:
            raise ValueError(f"{count} images in one request; the limit is {self._images}")
        if wait:
            async with self._first_in_line:
                while count > self._free:
                    self._freed.clear()
                    await self._freed.wait()
                self._free -= count
        elif self._first_in_line.locked() or count > self._free:
            raise QueueFullError(f"{self._images - self._free} images are in work already; try again later")
        else:
            self._free -= count
        try:
            yield
        finally:
            self._free += count
            self._freed.set()

    async def off_loop(self, work: Callable[..., _T], *arguments: object) -> _T:
        """Runs `work` in one of the decoders' threads."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work, *arguments)

    async def pixels(self, classifier: Classifier, files: Sequence[bytes]) -> list[Tensor]:
        """Files -> uint8 (3, S, S) of each. Raises ImageError that says which image, where there are several."""
        with _nothing_left(), classifier.coming(len(files)):
            return list(await _together(self._read(classifier, index, files) for index in range(len(files))))

    async def probabilities(
        self, classifier: Classifier, pixels: Sequence[Tensor], urgency: Urgency | None = None
    ) -> Tensor:
        """B times what Classifier.submit takes -> (B, K). Raises QueueFullError and ExpiredError."""
        waiting = []
        try:
            for each in pixels:
                waiting.append(classifier.submit(each, urgency))  # noqa: PERF401 (what is queued must be known on an error)
            with _nothing_left():
                return torch.stack([await asyncio.wrap_future(future) for future in waiting])
        finally:
            while waiting:  # those of a call that has ended never run; it does nothing to finished ones
                waiting.pop().cancel()

    async def _read(self, classifier: Classifier, index: int, files: Sequence[bytes]) -> Tensor:
        try:
            return await self.off_loop(classifier.read, files[index])
        except ValueError as error:
            if len(files) == 1:
                raise
            raise type(error)(f"image {index}: {error}") from error


@contextmanager
def _nothing_left() -> Iterator[None]:
    """Empties the frames of what fails inside.

    They and the tasks hold each other, and with them the file and what was decoded of it, until the garbage collector
    comes by: seldom, in a process with as many objects as torch has.
    """
    try:
        yield
    except Exception as error:
        for each in (error, error.__cause__):
            if each is not None:
                traceback.clear_frames(each.__traceback__)
        raise


async def _together(works: Iterable[Coroutine[object, object, _T]]) -> list[_T]:
    """All results, or the first error, after which none of the others goes on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
