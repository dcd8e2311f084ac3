"""Dynamic batching: concurrent requests share one call of the model.

One thread runs the model. It takes the oldest waiting item, gathers more until the batch is full or `max_delay` has
passed since it began to gather, and runs them together. While a batch runs, the next one collects in the queue, so
under load batches fill by themselves and the delay costs only an idle server.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchOptions:
    """max_batch items run together; max_delay seconds are waited for company; capacity items may wait."""

    max_batch: int = 16
    max_delay: float = 0.003
    capacity: int = 64

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.capacity < 1:
            raise ValueError(f"max_batch {self.max_batch} and capacity {self.capacity} must be at least 1")
        if not 0 <= self.max_delay <= 1:
            raise ValueError(f"max_delay {self.max_delay} must be 0 to 1 second")


class QueueFullError(Exception):
    """As many items wait as the batcher may hold."""


class Batcher(Generic[Item, Result]):
    """run(items) -> one result for each, in order; always called from the one thread of this batcher."""

    def __init__(self, run: Callable[[list[Item]], Sequence[Result]], options: BatchOptions, name: str = "") -> None:
        self._run, self._options = run, options
        # None ends the thread.
        self._queue: queue.Queue[tuple[Item, Future[Result]] | None] = queue.Queue(options.capacity)
        self._lock = threading.Lock()  # orders submit against close, so that nothing is queued behind the end
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name=f"batcher {name}", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> Future[Result]:
        """Queues one item. Cancelling the future before its batch starts keeps the item from being run.

        Raises QueueFullError when `capacity` items wait, RuntimeError after close.
        """
        future: Future[Result] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            try:
                self._queue.put_nowait((item, future))
            except queue.Full:
                raise QueueFullError(f"{self._options.capacity} images are waiting already; try again later") from None
        return future

    def close(self) -> None:
        """Runs what is waiting, then ends the thread."""
        with self._lock:
            already, self._closed = self._closed, True
        if not already:
            self._queue.put(None)
        self._thread.join()

    def _loop(self) -> None:
        last = False
        while not last:
            batch, last = self._gather()
            self._serve([entry for entry in batch if entry[1].set_running_or_notify_cancel()])

    def _gather(self) -> tuple[list[tuple[Item, Future[Result]]], bool]:
        """-> the next batch and whether it is the last one."""
        entry = self._queue.get()
        deadline = time.monotonic() + self._options.max_delay
        batch: list[tuple[Item, Future[Result]]] = []
        while entry is not None:
            batch.append(entry)
            if len(batch) == self._options.max_batch:
                return batch, False
            try:
                wait = deadline - time.monotonic()
                entry = self._queue.get(timeout=wait) if wait > 0 else self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _serve(self, batch: list[tuple[Item, Future[Result]]]) -> None:
        if not batch:
            return
        try:
            results = self._run([item for item, _ in batch])
        except Exception as error:  # belongs to the callers; the thread lives on
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
