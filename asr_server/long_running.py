"""Long recordings, recognised in the background: `begin`, then ask with `get` or `wait`, or `cancel`.

Each runs as a session of its own in a task of the event loop, like a recording that was sent at once, only that its
bytes come from a file, in pieces. A session reads no further than `Limits.ahead_seconds` ahead of the recognizer, so a
recording of hours takes no more memory than one of minutes; what grows are its results, which `OperationStore` bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from asr_server import logs, messages, tracing
from asr_server.gate import Gate, status_of
from asr_server.messages import Call, Writer
from asr_server.operations import CANCELLED, UNAVAILABLE, Operation, OperationLimits, OperationStore
from asr_server.quotas import CURRENT
from asr_server.recognizer import Result
from asr_server.recordings import AudioFolder, Recording, Spool
from asr_server.session import Session
from asr_server.telemetry_interceptor import request_number
from asr_server.wire import speech_pb2 as pb

PIECE_BYTES = 65536  # read at once
SWEEPS = 10  # in the time for which results are kept

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """What an operation needs until it has ended."""

    call: Call
    recording: Recording
    request_id: int
    context: contextvars.Context  # of the request: whose account is charged, and the id for the log
    ended: asyncio.Event


class LongRunning:
    """Make it inside the event loop. Stop the server first, then `close` it, then the line."""

    def __init__(self, gate: Gate, limits: OperationLimits, audio_folder: Path | None = None) -> None:
        """ValueError where the audio folder is none."""
        self.store = OperationStore(limits)
        self.spool = Spool(limits.spool_bytes)
        self._gate = gate
        self._limits = limits
        self._folder = AudioFolder(audio_folder) if audio_folder else None
        self._jobs: dict[str, _Job] = {}  # by name of the operation, until it has ended
        self._tasks: dict[str, asyncio.Task[None]] = {}  # of those that run
        self._closing: set[asyncio.Future[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    async def begin(self, call: Call, request: pb.LongRunningRecognizeRequest) -> Operation:
        """ValueError for a recording that cannot be had, ExhaustedError where there is no room for it."""
        if request.HasField("output_config"):
            raise ValueError("output_config is not supported: this server writes results nowhere. Leave it out.")
        self.store.check_room(CURRENT.get().name)
        recording = await _kept(self._open, request.audio)
        try:
            operation = self.store.begin(CURRENT.get().name, request.audio.uri)
        except BaseException:
            recording.close()
            raise
        context = contextvars.copy_context()
        context.run(tracing.enter, tracing.NoSpan())  # the request's own ends with its answer
        number = request_number(logs.request_id.get())
        self._jobs[operation.name] = _Job(call, recording, number, context, asyncio.Event())
        self._start()
        return operation

    def get(self, name: str) -> Operation:
        """The caller's. UnknownOperationError where it has none of that name; so do all of these."""
        return self.store.get(CURRENT.get().name, name)

    def page(self, size: int, token: str) -> tuple[list[Operation], str]:
        """The caller's operations, as `OperationStore.page`."""
        return self.store.page(CURRENT.get().name, size, token)

    async def wait(self, name: str, seconds: float | None) -> Operation:
        """Until it has ended or the time is up."""
        self.get(name)
        if job := self._jobs.get(name):
            longest = self._limits.wait_seconds
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(longest if seconds is None else min(seconds, longest)):
                    await job.ended.wait()
        return self.get(name)

    def cancel(self, name: str) -> None:
        """It has ended when this returns; the step in hand is the last of it."""
        self.get(name)
        self._stop(name, CANCELLED, "The operation was cancelled.")

    def delete(self, name: str) -> None:
        """One that has not ended is cancelled: nobody could ask for its results."""
        self.cancel(name)
        self.store.delete(CURRENT.get().name, name)

    async def close(self) -> None:
        """Ends all of them."""
        tasks = list(self._tasks.values())
        for name in [*(name for name in self._jobs if name not in self._tasks), *self._tasks]:  # or they would start
            self._stop(name, UNAVAILABLE, "The server is stopping.")
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._closing)
        if self._sweeping is not None:
            self._sweeping.cancel()

    def _open(self, audio: pb.RecognitionAudio) -> Recording:
        if audio.WhichOneof("audio_source") == "uri":
            if self._folder is None:
                raise ValueError(
                    f"uri '{audio.uri[:200]}' is not supported: this server fetches nothing and has no audio folder. "
                    "Send the audio as content."
                )
            return self._folder.open(audio.uri)
        if not audio.content:
            raise ValueError(messages.NO_AUDIO)
        if len(audio.content) > self._limits.content_bytes:
            raise ValueError(
                f"Request payload size exceeds the limit: {self._limits.content_bytes} bytes. "
                "Compress the audio, or use StreamingRecognize."
            )
        return self.spool.keep(audio.content)

    def _start(self) -> None:
        """Those whose turn it is."""
        while (operation := self.store.next()) is not None:
            name = operation.name
            job = self._jobs[name]
            task = asyncio.get_running_loop().create_task(self._run(name, job), context=job.context)
            self._tasks[name] = task
            task.add_done_callback(lambda _, name=name: self._finish(name))  # type: ignore[misc]

    def _stop(self, name: str, code: int, text: str) -> None:
        self.store.fail(name, code, text)
        if task := self._tasks.get(name):
            task.cancel()
        elif name in self._jobs:
            self._finish(name)

    def _finish(self, name: str) -> None:
        """After the last of it, however it ended."""
        job = self._jobs.pop(name)
        self._tasks.pop(name, None)
        job.ended.set()
        loop = asyncio.get_running_loop()
        # Of a task that was cancelled, a thread may still be reading.
        closing = loop.run_in_executor(None, job.recording.close)
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        if self._sweeping is None:
            self._sweep()
        self._start()

    def _sweep(self) -> None:
        """Results go also where nobody asks any more: one timer for all, which belongs to no request."""
        self.store.sweep()
        self._sweeping = asyncio.get_running_loop().call_later(
            self._limits.ttl_seconds / SWEEPS, self._sweep, context=contextvars.Context()
        )

    async def _run(self, name: str, job: _Job) -> None:
        try:
            await self._recognise(name, job)
        except Exception as error:
            code, text = status_of(error)
            self.store.fail(name, code.value[0], text)
            logger.info("operation %s failed: %s", name, code.name)
        else:
            logger.info("operation %s has ended", name)

    async def _recognise(self, name: str, job: _Job) -> None:
        writer = Writer(job.call, job.request_id)
        with self._gate.session(job.call, is_bulk=True, max_seconds=self._limits.seconds) as session:
            reader = asyncio.create_task(self._read(name, job.recording, session))
            try:
                async for channel, event in session.events():
                    if isinstance(event, Result) and event.is_final:
                        response = pb.LongRunningRecognizeResponse(results=writer.results([(channel, event)]))
                        if failed := self.store.add(name, event.end, response.SerializeToString()):
                            logger.info("operation %s failed: no room for its results", failed)
                            self._tasks[failed].cancel()
                        self._gate.metrics.finals()
            finally:
                reader.cancel()
        rest = pb.LongRunningRecognizeResponse(request_id=job.request_id)
        rest.total_billed_time.FromSeconds(math.ceil(session.seconds))
        self.store.succeed(name, rest.SerializeToString())

    async def _read(self, name: str, recording: Recording, session: Session) -> None:
        """Feeds the recording to its session."""
        fed = 0
        try:
            while not session.done and (piece := await asyncio.to_thread(recording.read, PIECE_BYTES)):
                await session.feed(piece)
                fed += len(piece)
                self.store.progress(name, percent(fed, recording.size, session.passed, session.seconds))
            if not session.done:
                await session.finish()
        except Exception as error:
            session.fail(error)


def percent(fed: int, size: int, passed: float, seconds: float) -> int:
    """How much is recognised of a recording of `size` bytes, of which those fed had so many seconds of audio.

    Its length is taken to be what the bytes so far say, which for samples that are not compressed is what it is.
    """
    return int(100 * fed / size * passed / seconds) if size and seconds else 0


async def _kept(opening: Callable[[pb.RecognitionAudio], Recording], audio: pb.RecognitionAudio) -> Recording:
    """What a thread opens, which is closed where the caller has gone before."""
    task = asyncio.create_task(asyncio.to_thread(opening, audio))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_close)
        raise


def _close(opened: asyncio.Task[Recording]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()
