"""One call's audio between the event loop and the engine: bytes in, events out, for every contract alike.

    feed(bytes) -> decoder -> channels -> scheduler ... its thread ... -> outbox -> events()

Nothing here blocks the loop: plain samples are decoded in passing (tens of microseconds), codecs in a few threads. And
every buffer has a bound: `feed` waits while more than `Limits.ahead_seconds` of audio have not been recognised, or
while the caller has not taken the results it has (of interim results only the latest waits).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor

from asr_server import messages
from asr_server.audio import AudioDecoder
from asr_server.batching import Delivery, LiveStream, Observer, Scheduler
from asr_server.messages import Call
from asr_server.options import BatchOptions
from asr_server.pcm import ChannelSamples
from asr_server.recognizer import Event, Result

_PIECE_BYTES = 16384  # a message is decoded in pieces, so that memory and turns are bounded by us
_MAX_OUTBOX = 256  # events that wait for a caller who does not read
_PLAIN = ("LINEAR16", "MULAW", "ALAW")

Heard = tuple[int, Event]  # the channel, from 0, and what was heard there


class Line:
    """The scheduler as the event loop sees it. Make it inside the loop; close it after the server has stopped."""

    def __init__(
        self, executor: Executor, options: BatchOptions | None = None, observer: Observer | None = None
    ) -> None:
        self.executor = executor  # for codecs
        self._loop = asyncio.get_running_loop()
        self.scheduler = Scheduler(self._deliver, options, observer)

    def close(self) -> None:
        self.scheduler.close()

    def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Called in the scheduler's thread; one hop for all streams of a step."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is left to tell
            self._loop.call_soon_threadsafe(_hand_out, deliveries)


def _hand_out(deliveries: Sequence[Delivery]) -> None:
    for delivery in deliveries:
        delivery.stream.receiver(delivery)


class Session:
    """`feed` the bytes and `finish`, while somebody takes the `events`; `close` in any case."""

    def __init__(
        self,
        line: Line,
        call: Call,
        too_long: Callable[[], Exception],
        *,
        max_seconds: float,
        ahead_seconds: float,
        charge: Callable[[float], None] = lambda seconds: None,
        is_bulk: bool = False,
    ) -> None:
        """max_seconds of audio are taken, then `too_long` is raised; `charge` is told how many came."""
        self.call = call
        self.recognised = 0.0  # of audio, by the results so far
        self.latency: float | None = None  # seconds from `finish` to the last event, once that is there
        self._line = line
        self._too_long = too_long
        self._max_seconds = max_seconds
        self._ahead = ahead_seconds * call.engine.sample_rate
        self._charge = charge
        self._is_bulk = is_bulk
        self._decoder = AudioDecoder(call.audio_format, call.engine.sample_rate, call.separate_channels)
        self._samples = 0  # of each channel; a sum of seconds would round up to one too many
        self._channels: list[LiveStream] = []
        self._left = 0  # channels that are not done
        self._outbox: deque[Heard] = deque()
        self._changed = asyncio.Event()  # something for `events` to look at
        self._room = asyncio.Event()  # something for `feed` to look at
        self._error: BaseException | None = None
        self._finished_at: float | None = None
        self.steps = 0  # deliveries, also empty ones

    @property
    def seconds(self) -> float:
        """Of audio that came, however many channels it has."""
        return float(self._samples / self.call.engine.sample_rate)

    @property
    def passed(self) -> float:
        """Of those seconds, how many steps have taken."""
        waiting = max((channel.waiting for channel in self._channels), default=0)
        return max(self.seconds - waiting / self.call.engine.sample_rate, 0.0)

    @property
    def done(self) -> bool:
        """Nothing more will come: the audio has been recognised, or more of it would change nothing."""
        return self._error is not None or (bool(self._channels) and not self._left)

    async def feed(self, data: bytes) -> bool:
        """Any number of bytes; whether they complete a step. ValueError for audio that cannot be decoded."""
        steps = False
        for start in range(0, len(data), _PIECE_BYTES):
            steps |= await self._put(await self._decode(self._decoder.feed, data[start : start + _PIECE_BYTES]))
        return steps

    async def finish(self) -> None:
        """No more bytes will come. ValueError where there was no sample."""
        await self._put(await self._decode(self._decoder.flush))
        if not self._channels:
            raise ValueError(messages.EMPTY_AUDIO)
        self._finished_at = time.monotonic()
        for channel in self._channels:
            channel.end()

    def end_utterance(self) -> None:
        """The utterances being spoken end here."""
        for channel in self._channels:
            channel.end_utterance()

    def fail(self, error: BaseException) -> None:
        """`events` ends with this error after what has been heard."""
        self._error = self._error or error
        self._changed.set()
        self._room.set()

    async def events(self) -> AsyncIterator[Heard]:
        """What is heard, until all of it is."""
        while True:
            while self._outbox:
                heard = self._outbox.popleft()
                self._room.set()
                yield heard
            if self._error is not None:
                raise self._error
            if self.done:
                return
            self._changed.clear()
            await self._changed.wait()

    def take(self) -> list[Heard]:
        """What is heard and not yet taken."""
        taken = list(self._outbox)
        self._outbox.clear()
        self._room.set()
        return taken

    async def changed(self) -> None:
        """Waits for a step's end, an error or the end."""
        self._changed.clear()
        await self._changed.wait()

    async def hear(self, data: bytes) -> list[Heard]:
        """Feeds bytes and waits for what they bring: for contracts in which every message has its answer."""
        heard: list[Heard] = []
        for start in range(0, len(data), _PIECE_BYTES):
            await self.feed(data[start : start + _PIECE_BYTES])
            heard += self.take()  # or a long recording would fill the outbox, with nobody left to empty it
        return heard + await self.settle()

    async def settle(self) -> list[Heard]:
        """What has been heard once no step is due without more audio. Raises the error that there was."""
        while not self.done and self._is_busy():
            await self.changed()
        if self._error is not None:
            raise self._error
        return self.take()

    def _is_busy(self) -> bool:
        if any(channel.busy for channel in self._channels):
            return True
        return self.steps < sum(channel.steps for channel in self._channels)  # a delivery is on its way

    @property
    def error(self) -> BaseException | None:
        return self._error

    def close(self) -> None:
        """Nobody wants to know any more."""
        self._decoder.close()
        for channel in self._channels:
            channel.close()

    async def _decode(self, step: Callable[..., ChannelSamples], *arguments: bytes) -> ChannelSamples:
        header = self._decoder.header
        encoding = header.encoding if header else self.call.audio_format.encoding
        if encoding in _PLAIN or (header and header.container == "WAV"):
            return step(*arguments)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._line.executor, step, *arguments)

    async def _put(self, samples: ChannelSamples) -> bool:
        if not samples.shape[1]:
            return False
        seconds = samples.shape[1] / self.call.engine.sample_rate
        if self.seconds + seconds > self._max_seconds:
            raise self._too_long()
        self._charge(seconds * len(samples))
        self._samples += samples.shape[1]
        if not self._channels:
            self._channels = [self._open(number) for number in range(len(samples))]
            self._left = len(self._channels)
        steps = [channel.put(row) for channel, row in zip(self._channels, samples, strict=True)]
        while not self.done and self._is_full():
            self._room.clear()
            await self._room.wait()
        return any(steps)

    def _is_full(self) -> bool:
        """Only what a step is due for can become less: not what waits for the rest of a chunk, or where all is said."""
        ahead = any(channel.busy and channel.waiting > self._ahead for channel in self._channels)
        return ahead or len(self._outbox) > _MAX_OUTBOX

    def _open(self, number: int) -> LiveStream:
        engine, options = self.call.engine, self.call.stream_options
        return self._line.scheduler.open(
            engine, options, lambda delivery: self._receive(number, delivery), self._is_bulk
        )

    def _receive(self, number: int, delivery: Delivery) -> None:
        """In the event loop: what a step brought one channel."""
        self.steps += 1
        for event in delivery.events:
            if isinstance(event, Result):
                self.recognised = max(self.recognised, event.end)
                self._drop_interim(number)
            self._outbox.append((number, event))
        self._left -= delivery.done
        if delivery.error is not None:
            self.fail(delivery.error)
        if self.done and self._finished_at is not None:
            self.latency = time.monotonic() - self._finished_at
        self._changed.set()
        self._room.set()

    def _drop_interim(self, number: int) -> None:
        """One that nobody took is out of date when the channel says more."""
        for place, (channel, event) in enumerate(self._outbox):
            if channel == number and isinstance(event, Result) and not event.is_final:
                del self._outbox[place]
                return
