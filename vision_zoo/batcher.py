"""Dynamic batching: concurrent requests share one call of the model.

One thread runs the model. It takes what waits, the most urgent first, and runs up to `max_batch` of it together. While
a batch runs, the next one collects, so under load batches fill by themselves. An item that could run at once waits for
company only while company is known to come (`Batcher.coming`) or can be expected (`Arrivals`), and never longer than
the latency budget, counted from when it was submitted. What has been cancelled, or whose deadline has passed, is never
run.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Dropped: TypeAlias = Literal["cancelled", "expired", "full"]


@dataclass(frozen=True)
class BatchOptions:
    """max_batch items run together; one waits at most max_delay seconds for company; capacity items may wait.

    adaptive: wait only while the pace of the latest arrivals lets another be expected within the budget. Where others
    are known to come, the budget is `patience` times what all of them will take, if that is longer: a network that
    takes a second is better waited for than run twice. max_delay 0: never wait.
    """

    max_batch: int = 16
    max_delay: float = 0.003
    capacity: int = 64
    adaptive: bool = True
    patience: float = 0.05

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.capacity < 1:
            raise ValueError(f"max_batch {self.max_batch} and capacity {self.capacity} must be at least 1")
        if not 0 <= self.max_delay <= 1:
            raise ValueError(f"max_delay {self.max_delay} must be 0 to 1 second")
        if not 0 <= self.patience <= 1:
            raise ValueError(f"patience {self.patience} must be 0 to 1")

    def budget(self, items: int, item_seconds: float) -> float:
        """Seconds to wait for what is known to come, where `items` in all will take `item_seconds` each."""
        if self.max_delay == 0 or not self.adaptive:
            return self.max_delay
        return max(self.max_delay, min(1.0, self.patience * item_seconds * min(items, self.max_batch)))


@dataclass(frozen=True)
class Urgency:
    """priority: larger runs first, equal ones in their order. deadline: time.monotonic() after which it is not run."""

    priority: int = 0
    deadline: float | None = None


@dataclass(frozen=True)
class BatchFacts:
    """What one run cost: how long each item had waited, and how long the model took, in seconds."""

    queued: tuple[float, ...]
    run: float
    failed: bool


class Observer(Protocol):
    """Told in the batcher's thread, `dropped("full")` in the caller's; must be quick and raise nothing."""

    def ran(self, facts: BatchFacts) -> None: ...

    def dropped(self, reason: Dropped) -> None: ...


class QueueFullError(Exception):
    """As many items wait as the batcher may hold."""


class ExpiredError(Exception):
    """The deadline passed while the item waited; it was not run."""


class Arrivals:
    """The pace of arrivals: how long it is worth waiting for another one.

    The usual gap is an exponential mean over about the last ten. Where three of them pass without an arrival, whoever
    was to come in this burst has come. One gap counts for a second at most, so that a pause is soon forgotten.
    """

    def __init__(self) -> None:
        self._last: float | None = None
        self._gap: float | None = None

    def note(self, now: float) -> None:
        if self._last is not None:
            gap = min(now - self._last, 1.0)
            self._gap = gap if self._gap is None else 0.8 * self._gap + 0.2 * gap
        self._last = now

    def worth_waiting_until(self, budget_end: float) -> float:
        """At most `budget_end`; before anything is known, just that."""
        if self._last is None or self._gap is None:
            return budget_end
        if self._last + self._gap > budget_end:
            return self._last
        return min(budget_end, self._last + 3 * self._gap)


@dataclass(frozen=True)
class _Entry(Generic[Item, Result]):
    item: Item
    future: Future[Result]
    urgency: Urgency
    submitted: float


class Batcher(Generic[Item, Result]):
    """run(items) -> one result for each, in order; always called from the one thread of this batcher."""

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        options: BatchOptions,
        name: str = "",
        observer: Observer | None = None,
    ) -> None:
        self._run, self._options, self._observer = run, options, observer
        # (-priority, number, entry): numbers differ, so entries are never compared. Bounded by capacity.
        self._heap: list[tuple[int, int, _Entry[Item, Result]]] = []
        self._numbers = itertools.count()
        self._arrivals = Arrivals()
        self._changed = threading.Condition()
        self._coming = 0  # items
        self._item_seconds = 0.0  # of the latest run; read and written in the batcher's thread only
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name=f"batcher {name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items that have not begun, cancelled ones among them."""
        with self._changed:
            return len(self._heap)

    def submit(self, item: Item, urgency: Urgency | None = None) -> Future[Result]:
        """Queues one item. Cancelling the future before its batch starts keeps the item from being run.

        Raises QueueFullError when `capacity` items wait, RuntimeError after close. The future raises ExpiredError.
        """
        urgency, now = urgency or Urgency(), time.monotonic()
        entry: _Entry[Item, Result] = _Entry(item, Future(), urgency, now)
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            full = len(self._heap) >= self._options.capacity and not self._drop_dead(now)
            if not full:
                self._arrivals.note(now)
                heapq.heappush(self._heap, (-urgency.priority, next(self._numbers), entry))
                self._changed.notify()
        if full:
            self._tell_dropped("full")
            raise QueueFullError(f"{self._options.capacity} images are waiting already; try again later")
        return entry.future

    @contextmanager
    def coming(self, count: int = 1) -> Iterator[None]:
        """Says that `count` items are about to be submitted, which is then done right after: others wait for them."""
        with self._changed:
            self._coming += count
        try:
            yield
        except BaseException:
            with self._changed:
                self._coming -= count
                self._changed.notify()  # whoever waited for these
            raise
        with self._changed:
            self._coming -= count

    def close(self, wait: bool = True) -> None:
        """Runs what is waiting, then ends the thread. wait False: returns before that."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if wait:
            self._thread.join()

    def _drop_dead(self, now: float) -> bool:
        """Frees the places of what will never run; whether any was freed. The lock is held."""
        dead = [each for each in self._heap if each[2].future.cancelled() or _expired(each[2], now)]
        if dead:
            gone = {number for _, number, _ in dead}
            self._heap = [each for each in self._heap if each[1] not in gone]
            heapq.heapify(self._heap)
            for _, _, entry in dead:
                self._may_run(entry, now)
        return bool(dead)

    def _loop(self) -> None:
        while (batch := self._gather()) is not None:
            now = time.monotonic()
            self._serve([entry for entry in batch if self._may_run(entry, now)])

    def _gather(self) -> list[_Entry[Item, Result]] | None:
        """-> the next batch, most urgent first; None after the last one."""
        with self._changed:
            while not self._heap:
                if self._closed:
                    return None
                self._changed.wait()
            while not self._closed and len(self._heap) < self._options.max_batch:
                remaining = self._begin_at() - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            count = min(len(self._heap), self._options.max_batch)
            return [heapq.heappop(self._heap)[2] for _ in range(count)]

    def _begin_at(self) -> float:
        """When the items that wait should run even though more would fit."""
        oldest, options = min(entry.submitted for _, _, entry in self._heap), self._options
        if self._coming:
            return oldest + options.budget(len(self._heap) + self._coming, self._item_seconds)
        budget_end = oldest + options.max_delay
        return self._arrivals.worth_waiting_until(budget_end) if options.adaptive else budget_end

    def _may_run(self, entry: _Entry[Item, Result], now: float) -> bool:
        if not entry.future.set_running_or_notify_cancel():
            self._tell_dropped("cancelled")
            return False
        if _expired(entry, now):
            self._tell_dropped("expired")
            waited = now - entry.submitted
            entry.future.set_exception(ExpiredError(f"the deadline passed in the queue, after {waited:.3f} s; not run"))
            return False
        return True

    def _serve(self, batch: list[_Entry[Item, Result]]) -> None:
        if not batch:
            return
        start = time.monotonic()
        try:
            results = self._run([entry.item for entry in batch])
        except Exception as error:  # belongs to the callers; the thread lives on
            self._note_run(batch, start, failed=True)
            for entry in batch:
                entry.future.set_exception(error)
            return
        self._note_run(batch, start, failed=False)
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(result)

    def _note_run(self, batch: list[_Entry[Item, Result]], start: float, failed: bool) -> None:
        seconds = time.monotonic() - start
        self._item_seconds = seconds / len(batch)
        if self._observer is not None:
            queued = tuple(start - entry.submitted for entry in batch)
            self._observer.ran(BatchFacts(queued, seconds, failed))

    def _tell_dropped(self, reason: Dropped) -> None:
        if self._observer is not None:
            self._observer.dropped(reason)


def _expired(entry: _Entry[Item, Result], now: float) -> bool:
    return entry.urgency.deadline is not None and entry.urgency.deadline <= now
