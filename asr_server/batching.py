"""Continuous batching: one thread takes all live streams down the line, as many in a step as have audio for it.

A stream enters the queue when the samples of its next chunk are there, or its end is known, and is in it at most once;
so the queue is never longer than the number of streams, and that is limited where calls are let in. Each entry has a
deadline. A step takes the entries with the earliest ones, all of one engine, as many as the network carries within
`target` seconds (measured as it goes). When does it begin?

* at once where the machine has been idle for as long as the last step took: an idle server makes nobody wait;
* else at the earliest deadline, or when a full step is waiting: under load steps fill, and a full step costs far less
  than its streams one by one.

Who waits for a final result has an earlier deadline than who speaks. Recordings that were sent at once come after both,
however long they have waited, but for a share of each step, so that live streams do not keep them out for ever. When
live streams are late (`lag`), whoever lets calls in can refuse new ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from asr_server.options import BatchOptions
from asr_server.pcm import Samples
from asr_server.recognizer import Engine, Event, Step, StreamOptions
from asr_server.stream import Stream

BULK_SHARE = 8  # of so many places of a step one is for recordings; after so many steps the longest waiting one is next

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivery:
    """What a step brought one stream. After an error or with `done` nothing more comes."""

    stream: LiveStream
    events: list[Event]
    done: bool
    error: Exception | None = None


Receiver = Callable[[Delivery], None]


class Observer(Protocol):
    """Who wants to know what the scheduler does; called from its thread."""

    def stepped(self, model: str, streams: int, step: Step, waited: Sequence[float]) -> None: ...


class LiveStream:
    """A stream of the scheduler, used from any thread. What the steps bring goes to the scheduler's `deliver`."""

    def __init__(self, scheduler: Scheduler, stream: Stream, engine: Engine, receiver: Receiver, is_bulk: bool) -> None:
        self.engine = engine
        self.receiver = receiver  # for whom the deliveries are
        self.is_bulk = is_bulk
        self.waiting = 0  # samples put in that no step has taken; the caller holds back when they are too many
        self.steps = 0  # that are over; what the last of them brought may still be on its way to the receiver
        self._scheduler = scheduler
        self._stream = stream
        self._inbox: list[Samples | str] = []
        self._ready_at = 0.0  # when it entered the queue
        self._missing = stream.missing
        self._queued = False
        self._closed = False  # by the caller
        self._done = False

    def put(self, samples: Samples) -> bool:
        """(S,) at the engine's rate. Whether a step will follow."""
        return self._scheduler.receive(self, samples, len(samples))

    def end(self) -> None:
        """No more audio will come."""
        self._scheduler.receive(self, "end", 0)

    def end_utterance(self) -> None:
        """The utterance ends here (`Stream.end_utterance`)."""
        self._scheduler.receive(self, "border", 0)

    @property
    def busy(self) -> bool:
        """A step with what was put in so far is due or under way."""
        return self._missing == 0 and not (self._closed or self._done)

    def close(self) -> None:
        """Nobody wants to know any more: no step is done for it from now on."""
        self._closed = True
        self._inbox.clear()


class Scheduler:
    """The queue and its thread. `deliver` is called there after each step with what it brought."""

    def __init__(
        self,
        deliver: Callable[[Sequence[Delivery]], None],
        options: BatchOptions | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.options = options or BatchOptions()
        self._deliver = deliver
        self._observer = observer
        self._lock = threading.Condition()
        self._queue: dict[LiveStream, float] = {}  # -> deadline
        self._pace = 0.0  # no step before this time, unless a deadline comes first
        self._cost: dict[str, float] = {}  # seconds a stream of a step, by model
        self._steps_without_longest = 0  # without the recording that has waited longest
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def open(self, engine: Engine, options: StreamOptions, receiver: Receiver, is_bulk: bool = False) -> LiveStream:
        """is_bulk: a recording that was sent at once. ValueError as `Engine.stream`."""
        return LiveStream(self, engine.stream(options), engine, receiver, is_bulk)

    def close(self) -> None:
        """The step in hand ends; nothing more is done."""
        with self._lock:
            self._stopping = True
            self._lock.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Streams in the queue."""
        return len(self._queue)

    @property
    def lag(self) -> float:
        """Seconds by which the most urgent live stream in the queue is late."""
        with self._lock:
            due = min((deadline for live, deadline in self._queue.items() if not live.is_bulk), default=None)
        return 0.0 if due is None else max(time.monotonic() - due, 0.0)

    def receive(self, live: LiveStream, item: Samples | str, size: int) -> bool:
        with self._lock:
            if live._closed or live._done or self._stopping:
                return False
            live._inbox.append(item)
            live.waiting += size
            live._missing = 0 if isinstance(item, str) else max(live._missing - size, 0)
            return self._enqueue(live, urgent=isinstance(item, str))

    def _enqueue(self, live: LiveStream, urgent: bool) -> bool:
        """Under the lock: into the queue if a step has work for it."""
        if live._missing > 0 or live._closed:
            return False
        now = time.monotonic()
        patience = self.options.bulk if live.is_bulk else self.options.final if urgent else self.options.live
        if live not in self._queue:
            live._ready_at = now
            self._queue[live] = now + patience
            self._lock.notify()
        elif urgent and now + patience < self._queue[live]:
            self._queue[live] = now + patience
            self._lock.notify()
        return True

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            begin = time.monotonic()
            waited = [begin - live._ready_at for live in batch]
            name = batch[0].engine.name
            step = self._step(batch[0].engine, batch)
            seconds = time.monotonic() - begin
            before, cost = self._cost.get(name, 0.0), seconds / len(batch)
            self._cost[name] = 0.8 * before + 0.2 * cost if before else cost
            with self._lock:
                self._pace = time.monotonic() + seconds
            if self._observer is not None:
                self._observer.stepped(name, len(batch), step, waited)
            del batch, step  # an idle server must not hold on to streams and engines that have gone

    def _next_batch(self) -> list[LiveStream] | None:
        """Waits for it; None at the end."""
        with self._lock:
            while True:
                if self._stopping:
                    return None
                for live in [live for live in self._queue if live._closed]:
                    del self._queue[live]
                if not self._queue:
                    self._lock.wait()
                    continue
                first = self._first()
                limit = self._limit(first.engine)
                mates = [live for live in self._queue if live.engine is first.engine]
                # Recordings alone wait for nobody: company that may come joins the step after this one.
                due = min((deadline for live, deadline in self._queue.items() if not live.is_bulk), default=0.0)
                begin = min(due, self._pace)
                wait = begin - time.monotonic()
                if wait > 0 and len(mates) < limit:
                    self._lock.wait(wait)
                    continue
                batch = self._chosen(mates, limit)
                for live in batch:
                    del self._queue[live]
                return batch

    def _first(self) -> LiveStream:
        """Whose engine takes the next step: the most urgent live stream's, or now and then a recording's."""
        live = [each for each in self._queue if not each.is_bulk]
        bulk = [each for each in self._queue if each.is_bulk]
        of = bulk if not live or (bulk and self._steps_without_longest >= BULK_SHARE) else live
        return min(of, key=self._queue.__getitem__)

    def _chosen(self, mates: list[LiveStream], limit: int) -> list[LiveStream]:
        """The most urgent live streams of an engine, and recordings in the places they leave or in their share."""
        mates.sort(key=lambda each: (each.is_bulk, self._queue[each]))
        bulk = [each for each in mates if each.is_bulk]
        share = min(len(bulk), max(limit // BULK_SHARE, self._steps_without_longest >= BULK_SHARE))
        live = mates[: len(mates) - len(bulk)][: limit - share]
        chosen = [*live, *bulk[: limit - len(live)]]
        recordings = [each for each in self._queue if each.is_bulk]  # of other engines too
        longest = min(recordings, key=self._queue.__getitem__, default=None)
        self._steps_without_longest = 0 if longest is None or longest in chosen else self._steps_without_longest + 1
        return chosen

    def _limit(self, engine: Engine) -> int:
        """Streams that pass the line within the target, by what they have cost so far."""
        cost = self._cost.get(engine.name, 0.0)
        most = self.options.max_batch
        return most if cost <= 0 else max(min(most, round(self.options.target / cost)), min(8, most))

    def _step(self, engine: Engine, batch: Sequence[LiveStream]) -> Step:
        """Audio that has arrived enters the streams; those that are ready advance; what came of it is delivered."""
        with self._lock:
            for live in batch:
                for item in live._inbox:
                    if isinstance(item, str):
                        (live._stream.end if item == "end" else live._stream.end_utterance)()
                    else:
                        live._stream.put(item)
                live._inbox.clear()
        ready = [live for live in batch if live._stream.ready]
        try:
            step = engine.advance([live._stream for live in ready]) if ready else Step([])
        except Exception as error:  # a fault outside of any one stream must not end the thread
            logger.exception("a step failed")
            step = Step([error for _ in ready])
        outcomes = dict(zip(ready, step.outcomes, strict=True))
        deliveries = [self._conclude(live, outcomes.get(live, [])) for live in batch]
        self._deliver([delivery for delivery in deliveries if not delivery.stream._closed])
        return step

    def _conclude(self, live: LiveStream, outcome: list[Event] | Exception) -> Delivery:
        stream = live._stream
        done = isinstance(outcome, Exception) or stream.done
        with self._lock:
            live.steps += 1  # before the line below: who sees that it is not busy has to see this as well
            live._missing = stream.missing
            arrived = sum(len(item) for item in live._inbox if not isinstance(item, str))
            live.waiting = stream.waiting + arrived
            if any(isinstance(item, str) for item in live._inbox):
                live._missing = 0
            else:
                live._missing = max(live._missing - arrived, 0)
            if done:
                live._done = True
                live._inbox.clear()
            else:
                self._enqueue(live, urgent=stream.ending)
        if isinstance(outcome, Exception):
            return Delivery(live, [], True, outcome)
        return Delivery(live, outcome, done)
